"""Checks that the values of a config go together. The range of each single value is in its field, see `readers`."""

import logging
import re
from typing import Any

import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.averaging import exponent
from score_sde.run.config.errors import BadInput, as_bad_input, choose
from score_sde.run.config.plugins import is_plugin
from score_sde.run.config.readers import check_ranges
from score_sde.run.config.sections import (
  AUTOGUIDANCE,
  CLASS_METHODS,
  CONSTRAINTS,
  EDITING_TASKS,
  GIVEN_TASKS,
  LINEAR_TASKS,
  SCORE_METHODS,
  trains_paths,
)
from score_sde.run.toys import TOYS
from score_sde.sde import SDE, linear

log = logging.getLogger(__name__)

NORMALIZATIONS = {"ncsnpp": "GroupNorm", "ddpm": "GroupNorm", "ncsn": "InstanceNorm++", "ncsnv2": "InstanceNorm++"}


def family_of(config: ConfigDict) -> tuple[str, str]:
  """Returns the family of the network, such as "ncsnv2", and the norm of its layers."""
  family = config.model.name.split("_")[0]
  return family, NORMALIZATIONS.get(family, "LayerNorm")


def check(config: ConfigDict, sde: SDE) -> None:
  """Raises BadInput if a complete config has a value out of range or values that do not go together."""
  t = config.training
  if t.likelihood_weighting and t.weighting != "likelihood":
    raise BadInput(f"training.likelihood_weighting=True, but training.weighting={t.weighting!r}. Set one of them.")
  if t.importance_sampling and t.time_sampling != "importance":
    raise BadInput(f"training.importance_sampling=True, but training.time_sampling={t.time_sampling!r}. Set one.")
  if not 0 <= config.seed < 2**32:
    raise BadInput(f"seed={config.seed} must lie in [0, 2^32).")
  check_ranges(config)
  with as_bad_input({"width": "model.ema_widths"}):
    for width in config.model.ema_widths:
      exponent(width)
  _check_consistency(config)
  _check_model(config)
  _check_guidance(config, sde)
  _check_evaluation(config, sde)


def _check_consistency(config: ConfigDict) -> None:
  t, method = config.training, config.sampling.method
  ends = trains_paths(t)
  if ends != (method == "consistency") and not is_plugin(method):
    raise BadInput(
      f"sampling.method={method!r} with training.task={t.task!r} and training.objective={t.objective!r}: "
      "'consistency' is the sampler of consistency models, which have no other; use --config.sampling.method="
      f"{'consistency' if ends else 'ddim or another method'}."
    )
  if t.task != "consistency":
    return
  if not t.continuous:
    raise BadInput("training.task='consistency' needs --config.training.continuous=True.")
  if not t.teacher and (t.objective in ("cd", "progressive") or (t.objective == "ect" and t.finetune)):
    without = " ect with --config.training.finetune=False," if t.objective == "ect" else ""
    raise BadInput(
      f"training.objective={t.objective!r} starts from a trained score model: give its workdir as "
      f"--config.training.teacher. Objectives without one are{without} ct, ict and scm."
    )
  # The D of a student of progressive distillation is the end of its step, and not E[x_0 | x_t].
  name, g = "A consistency model" if ends else "A progressively distilled model", config.guidance
  if config.eval.enable_bpd:
    raise BadInput(f"{name} has no likelihood: set --config.eval.enable_bpd=False.")
  if g.task == "interpolate":
    raise BadInput(f"guidance.task='interpolate': {name.lower()} cannot encode images, use its teacher.")
  if g.task == "edit" and config.sampling.start_sigma and ends:
    raise BadInput(
      "guidance.task='edit' of a consistency model: guidance.t0 is the start of sampling, leave sampling.start_sigma "
      "unset."
    )
  if g.task in GIVEN_TASKS:
    raise BadInput(
      f"guidance.task={g.task!r} mixes scores, which {name.lower()} does not have. Leave it unset: guidance.label and "
      "sampling.condition alone choose what is drawn."
    )
  if g.method in (*SCORE_METHODS, "ddrm"):
    raise BadInput(
      f"guidance.method={g.method!r} needs a score, which {name.lower()} does not have: use 'replacement' or "
      "'projection'."
    )


def _check_extrapolation(config: ConfigDict) -> None:
  """Raises BadInput if guidance compares with a score that the network was not trained for."""
  given = {"label_dropout": config.model.num_classes, "condition_dropout": config.data.condition_shape}
  never = [f"model.{name}" for name, has in given.items() if has and not config.model[name]]
  if config.guidance.scale != 1 and never:
    raise BadInput(
      f"guidance.scale={config.guidance.scale} compares with the network's score without classes and conditions, and "
      f"{' and '.join(never)} of 0 never trained it. Train with a share such as 0.1, or leave guidance.scale at 1."
    )


def _check_evaluation(config: ConfigDict, sde: SDE) -> None:
  e, continuous = config.eval, config.training.continuous
  if not re.fullmatch(r"report\w*", e.report):
    raise BadInput(f"eval.report={e.report!r} must be 'report' with letters and digits after, e.g. report_ode.")
  if e.enable_bpd and e.likelihood == "chain" and config.data.levels is None:
    raise BadInput("eval.likelihood='chain' is of integers with levels, and the array holds floats: use 'ode'.")
  if e.likelihood == "chain" and continuous:
    raise BadInput("eval.likelihood='chain' needs a model with training.continuous=False: use 'ode' or 'elbo'.")
  if e.likelihood == "elbo" and not continuous:
    raise BadInput("eval.likelihood='elbo' needs training.continuous=True: use 'chain' or 'ode' for a discrete model.")
  if e.enable_bpd and e.dequantization == "truncated_normal":
    _check_truncated(config, sde)
  if e.likelihood == "elbo":
    with as_bad_input():
      linear(sde, "eval.likelihood='elbo'")
  if e.enable_bpd and sde.why_no_likelihood:
    raise BadInput(
      f"eval.enable_bpd=True, but {type(sde).__name__} has no likelihood: {sde.why_no_likelihood} Or use "
      "--config.eval.enable_bpd=False."
    )


def _check_truncated(config: ConfigDict, sde: SDE) -> None:
  e, name = config.eval, "eval.dequantization='truncated_normal'"
  if config.data.dataset in TOYS or config.data.levels is None or e.likelihood != "ode":
    raise BadInput(f"{name} needs images with gray levels and eval.likelihood='ode'.")
  if config.data.uniform_dequantization:
    raise BadInput(f"{name} is for models of discrete images, and data.uniform_dequantization=True: use 'uniform'.")
  with as_bad_input():
    sde = linear(sde, name)
  t = jnp.asarray(e.eps)
  gap = (2 if config.data.centered else 1) / (config.data.levels - 1)
  tau = float(gap * sde.alpha(t) / (2 * sde.sigma(t)))
  if tau < 2:
    raise BadInput(
      f"{name}: half the distance of two gray levels is only {tau:.2g} standard deviations of the noise at "
      f"eval.eps={e.eps:g}, and the bound would be loose (3 or more is good). Use a smaller eval.eps, or 'uniform'."
    )


def _check_guidance(config: ConfigDict, sde: SDE) -> None:
  g, networks_classes = config.guidance, config.model.num_classes
  if g.task == "none" and g.method is None:
    return
  if g.method == AUTOGUIDANCE:
    _check_autoguidance(config, sde)
    return
  if g.task == "none":
    raise BadInput(f"guidance.method={g.method!r} has no guidance.task. Set one, or leave the method unset.")
  if config.training.task == "classifier":
    raise BadInput(
      f"guidance.task={g.task!r} is for sampling, and training.task='classifier' draws no samples. Leave guidance.task "
      "at 'none'."
    )
  with as_bad_input():
    linear(sde, f"guidance.task={g.task!r}")
  if g.task == "condition":
    choose("guidance.method", g.method, ("classifier_free",))
    if not config.data.condition_shape:
      raise BadInput(
        "guidance.task='condition' needs a network that was trained with conditions (data.condition). For classes use "
        "'class'."
      )
    _check_extrapolation(config)
    return
  if g.task == "class":
    choose("guidance.method", g.method, CLASS_METHODS)
    if g.method == "classifier_free" and not networks_classes:
      raise BadInput(
        "guidance.method='classifier_free' needs a class-conditional network (model.num_classes). Use 'classifier', "
        "with guidance.classifier the workdir of one that --config=configs/classifier/*.py trained."
      )
    if g.method == "classifier_free":
      _check_extrapolation(config)
    if g.method == "classifier" and config.data.condition_shape:
      raise BadInput(
        "guidance.method='classifier' is for networks without conditions: use --config.data.condition=none."
      )
    if g.method == "classifier" and networks_classes:
      raise BadInput(
        f"guidance.method='classifier' is for unconditional networks, and model.num_classes={networks_classes}. Use "
        "'classifier_free'."
      )
    if g.method == "classifier" and not g.classifier:
      raise BadInput("guidance.method='classifier' needs guidance.classifier, the workdir of a trained classifier.")
    return
  if g.method is not None and g.task in EDITING_TASKS:
    raise BadInput(f"guidance.task={g.task!r} has no guidance.method. Leave it unset.")
  # A network that is trained without the class of some examples is also one of all classes.
  if (networks_classes and not config.model.label_dropout) or (
    config.data.condition_shape and not config.model.condition_dropout
  ):
    raise BadInput(
      f"guidance.task={g.task!r} needs an unconditional network, or one that was trained with model.label_dropout and "
      f"model.condition_dropout; model.num_classes={networks_classes}, data.condition_shape="
      f"{tuple(config.data.condition_shape)}."
    )
  if g.task in EDITING_TASKS:
    if not 0 < g.t0 <= sde.T:
      raise BadInput(f"guidance.t0 must lie in (0, {sde.T}], got {g.t0}.")
    if g.task == "edit" and config.sampling.method == "ode" and config.sampling.temperature != 1:
      raise BadInput(
        f"sampling.temperature={config.sampling.temperature} with guidance.task='edit' would scale the image that is "
        "edited, and not only its noise. Leave it at 1."
      )
    return
  of_linear = g.task in LINEAR_TASKS
  choose("guidance.method", g.method, SCORE_METHODS + CONSTRAINTS)
  s = config.sampling
  if g.method == "dps" and g.paper_steps and not (s.num_steps == g.paper_steps and s.grid in ("uniform", "official")):
    raise BadInput(
      f"guidance.paper_steps={g.paper_steps} is the step of a sampler with as many steps, equal in time, and there are "
      f"sampling.num_steps={s.num_steps} and sampling.grid={s.grid!r}. Use --config.sampling.num_steps={g.paper_steps} "
      "--config.sampling.grid=uniform."
    )
  if not of_linear and g.method != "dps":
    raise BadInput(f"guidance.task={g.task!r} is not linear: guidance.method={g.method!r} cannot invert it. Use 'dps'.")


def check_label(label: Any, classes: int, owner: str = "there are") -> None:
  """Raises BadInput if `label` is no class of `owner`. A name is checked when the workdir with the names is read."""
  if label is None or isinstance(label, str):
    return
  if not isinstance(label, int) or not 0 <= label < classes:
    raise BadInput(f"guidance.label={label} is no class: {owner} {classes}, from 0.")


def _check_autoguidance(config: ConfigDict, sde: SDE) -> None:
  g = config.guidance
  if g.task not in ("none", "class"):
    raise BadInput(
      f"guidance.method={AUTOGUIDANCE!r} with guidance.task={g.task!r}: it guides samples without a measurement. Leave "
      "guidance.task at 'none'."
    )
  classes = config.model.num_classes
  if g.task == "class" and not classes:
    raise BadInput("guidance.task='class' with autoguidance needs a class-conditional network (model.num_classes).")
  if config.training.task == "classifier" or config.sampling.method == "consistency":
    raise BadInput(f"guidance.method={AUTOGUIDANCE!r} needs a score model, not training.task={config.training.task!r}.")
  with as_bad_input():
    linear(sde, f"guidance.method={AUTOGUIDANCE!r}")
  if g.scale == 1:
    log.warning("guidance.scale=1 of autoguidance is no guidance, at twice the work. Give --config.guidance.scale=2.")
  if not g.weak and g.weak_checkpoint == "latest":
    raise BadInput(
      f"guidance.method={AUTOGUIDANCE!r} needs a weaker model: guidance.weak, a workdir, or guidance.weak_checkpoint, "
      "an earlier step of this run."
    )


def _check_model(config: ConfigDict) -> None:
  classifier = config.training.task == "classifier"
  if classifier != (config.model.name == "wideresnet"):
    raise BadInput(
      f"training.task={config.training.task!r} with model.name={config.model.name!r}: the classifier is 'wideresnet', "
      "and every other network a model of scores."
    )
  if classifier and not config.model.num_classes:
    raise BadInput("training.task='classifier' needs model.num_classes, the number of classes of the data.")
  if classifier and config.eval.enable_bpd:
    raise BadInput("training.task='classifier' has no likelihood: set --config.eval.enable_bpd=False.")
  if is_plugin(config.model.name):  # it may read any key of config.model
    return
  model, continuous = config.model, config.training.continuous
  family, normalization = family_of(config)
  if model.normalization != normalization:
    raise BadInput(
      f"model.normalization={model.normalization!r}, but model.name={model.name!r} has {normalization}. Leave it unset."
    )
  if family in ("ncsn", "ncsnv2") and (continuous or config.training.sde != "vesde"):
    raise BadInput(
      f"model.name={model.name!r} takes the index of a noise level of a discrete VE model: it needs "
      "--config.training.continuous=False and --config.training.sde=vesde."
    )
  if family == "ddpm" and model.embedding_type == "fourier":
    raise BadInput(
      "model.name='ddpm' only has model.embedding_type='positional'. Leave it unset, or use --config.model.name=ncsnpp."
    )
  if model.scale_by_sigma and continuous and family == "ddpm":
    raise BadInput(
      "model.scale_by_sigma=True of model.name='ddpm' divides by the sigma of a discrete noise level: it needs "
      "--config.training.continuous=False."
    )
  if config.training.sde == "subvpsde" and not continuous:
    raise BadInput(
      "training.continuous=False has no discrete model for subvpsde. Use vesde (NCSN) or vpsde (DDPM), "
      "or --config.training.continuous=True."
    )
  if continuous and model.embedding_type == "positional" and model.conditioning == "sigma":
    raise BadInput(
      "model.embedding_type='positional' cannot tell noise levels apart: with model.conditioning='sigma' (the default "
      f"of continuous {config.training.sde}) labels are as small as {model.sigma_min}. Use "
      "--config.model.embedding_type=fourier, or --config.training.continuous=False."
    )
  if continuous and model.embedding_type == "fourier" and model.conditioning == "log_sigma":
    raise BadInput(
      "model.embedding_type='fourier' already takes the log of its input: use --config.model.conditioning=sigma."
    )
  if not continuous and model.embedding_type == "fourier":
    raise BadInput(
      "model.embedding_type='fourier' takes the log of a noise level, but a discrete model gets its index, which "
      "starts at 0. Use --config.model.embedding_type=positional, or --config.training.continuous=True."
    )
  if model.scale_by_sigma and model.parameterization != "score":
    raise BadInput(
      f"model.scale_by_sigma=True divides the output by sigma, which turns it into a score, but "
      f"model.parameterization={model.parameterization!r}. Use --config.model.scale_by_sigma=False."
    )
  if model.scale_by_sigma and continuous and model.embedding_type == "positional":
    raise BadInput("model.scale_by_sigma=True needs model.embedding_type='fourier' in a continuous model.")
