"""What a config may hold: names, ranges, and what goes together."""

import math
import re

from ml_collections import ConfigDict

from score_sde.run.config.keys import BadInput, choose, get
from score_sde.sde import SDE, LinearSDE

CLASS_METHODS = ("classifier", "classifier_free")
SCORE_METHODS = ("pigdm", "tmpd", "dps")  # their scores hold derivatives of the network
CONSTRAINTS = ("replacement", "projection", "ddrm")
LINEAR_TASKS = (
  "inpaint",
  "colorize",
  "super_resolution",
  "deblur",
  "motion_deblur",
  "fourier",
  "projections",
)
NONLINEAR_TASKS = ("phase_retrieval", "jpeg")
EDITING_TASKS = ("edit", "interpolate")

_CHOICES = {
  "training.task": ("score", "classifier"),
  "guidance.task": ("none", "class", *LINEAR_TASKS, *NONLINEAR_TASKS, *EDITING_TASKS),
  "guidance.kernel": ("average", "bicubic"),
  "guidance.covariance": ("diagonal", "full"),
  "data.on_corrupt": ("error", "skip"),
  "model.parameterization": ("score", "noise", "data", "velocity", "flow", "edm"),
  "model.conditioning": ("sigma", "log_sigma", "time"),
  "model.embedding_type": ("fourier", "positional"),
  "model.dtype": ("float32", "bfloat16"),
  "model.normalization": ("GroupNorm", "InstanceNorm++", "LayerNorm"),
  "model.attention_type": ("ddpm",),
  "model.conv_size": (3,),
  "model.interpolation": ("bilinear", "nearest_neighbor"),
  "model.reference": ("jax", "pytorch"),
  "model.nonlinearity": ("elu", "relu", "lrelu", "swish"),
  "model.resblock_type": ("ddpm", "biggan"),
  "model.progressive": ("none", "output_skip", "residual"),
  "model.progressive_input": ("none", "input_skip", "residual"),
  "model.progressive_combine": ("sum", "cat"),
  "optim.optimizer": ("Adam",),
  "optim.decay": ("none", "cosine"),
  "eval.bpd_dataset": ("train", "test"),
  "eval.likelihood": ("ode", "elbo", "chain"),
  "training.parallelism": ("pmap", "fsdp"),
  "eval.quantization": ("truncate", "round"),
  "eval.save_samples": ("npz", "png", "array_record", "none"),
  "eval.fidelity_engine": ("own", "torch-fidelity"),
}

NORMALIZATIONS = {"ncsnpp": "GroupNorm", "ddpm": "GroupNorm", "ncsn": "InstanceNorm++", "ncsnv2": "InstanceNorm++"}

_POSITIVE = (
  "data.image_size", "data.num_channels", "model.sigma_data", "model.num_scales", "model.nf", "model.num_res_blocks",
  "model.num_heads", "model.patch_size",
  "training.num_probes", "training.fd_step", "training.path_steps", "training.snr_gamma", "training.single_sigma",
  "optim.lr", "training.batch_size", "training.n_iters", "training.n_jitted_steps", "training.log_freq",
  "training.eval_freq", "training.snapshot_freq", "training.snapshot_freq_for_preemption", "sampling.num_steps",
  "sampling.n_steps_each", "sampling.num_samples", "sampling.temperature", "sampling.rtol", "sampling.atol",
  "sampling.sde_rtol", "sampling.sde_atol", "eval.batch_size", "eval.num_samples", "eval.num_repeats",
  "eval.num_probes", "eval.num_features", "eval.num_times", "eval.rtol", "eval.atol", "training.fid_steps",
  "training.accumulation", "training.data_timeout",
  "model.blocks_per_group", "model.channel_multiplier",
  "guidance.num_inputs", "guidance.samples_per_input", "guidance.prior_variance", "guidance.iterations",
)  # fmt: skip


def family_of(config: ConfigDict) -> tuple[str, str]:
  """The family of the network, such as "ncsnv2", and the norm that its layers have."""
  family = config.model.name.split("_")[0]
  return family, NORMALIZATIONS.get(family, "LayerNorm")


def check(config: ConfigDict, sde: SDE) -> None:
  """Raises BadInput for a value of a complete config that is not accepted, or a combination that cannot work."""
  t = config.training
  if t.likelihood_weighting and t.weighting != "likelihood":
    raise BadInput(f"training.likelihood_weighting=True, but training.weighting={t.weighting!r}. Set one of them.")
  if t.importance_sampling and t.time_sampling != "importance":
    raise BadInput(f"training.importance_sampling=True, but training.time_sampling={t.time_sampling!r}. Set one.")
  for key, accepted in _CHOICES.items():
    choose(key, get(config, key), accepted)
  for key in _POSITIVE:
    value = get(config, key)
    if not value > 0 or not math.isfinite(value):
      raise BadInput(f"{key} must be positive, got {value}.")
  for key in ("eval.wait_minutes", "training.fid_samples", "training.fsdp_devices"):
    if not 0 <= get(config, key) < math.inf:
      raise BadInput(f"{key} must be 0 or positive, got {get(config, key)}.")
  _check_model(config)
  _check_guidance(config, sde)
  _check_evaluation(config, sde)


def _check_evaluation(config: ConfigDict, sde: SDE) -> None:
  e, continuous = config.eval, config.training.continuous
  if not re.fullmatch(r"report\w*", e.report):
    raise BadInput(f"eval.report={e.report!r} must be 'report' with letters and digits after, e.g. report_ode.")
  if e.likelihood == "chain" and continuous:
    raise BadInput("eval.likelihood='chain' is of a model trained with training.continuous=False: use 'ode' or 'elbo'.")
  if e.likelihood == "elbo" and not continuous:
    raise BadInput("eval.likelihood='elbo' needs training.continuous=True; a discrete model has 'chain', or 'ode'.")
  if e.likelihood == "elbo" and not isinstance(sde, LinearSDE):
    raise BadInput(f"eval.likelihood='elbo' needs a linear SDE, not {type(sde).__name__}.")
  if e.enable_bpd and sde.why_no_likelihood:
    raise BadInput(
      f"eval.enable_bpd=True, but {type(sde).__name__} has no likelihood: {sde.why_no_likelihood} Or use "
      "--config.eval.enable_bpd=False."
    )


def _check_guidance(config: ConfigDict, sde: SDE) -> None:
  g, networks_classes = config.guidance, config.model.num_classes
  if g.task == "none":
    return
  if config.training.task != "score":
    raise BadInput("guidance.task is of sampling, and training.task='classifier' draws no samples. Leave it at 'none'.")
  if not isinstance(sde, LinearSDE):
    raise BadInput(f"guidance.task={g.task!r} needs a linear SDE, not {type(sde).__name__}.")
  if g.task == "class":
    choose("guidance.method", g.method, CLASS_METHODS)
    if g.method == "classifier_free" and not networks_classes:
      raise BadInput(
        "guidance.method='classifier_free' needs a class-conditional network (model.num_classes). Use 'classifier', "
        "with guidance.classifier the workdir of one that --config=configs/classifier/*.py trained."
      )
    if g.method == "classifier" and networks_classes:
      raise BadInput(
        f"guidance.method='classifier' is for unconditional networks, and model.num_classes={networks_classes}. Use "
        "'classifier_free'."
      )
    if g.method == "classifier" and not g.classifier:
      raise BadInput("guidance.method='classifier' needs guidance.classifier, the workdir of a trained classifier.")
    if networks_classes and g.label is not None and not 0 <= g.label < networks_classes:
      raise BadInput(f"guidance.label={g.label} is no class: there are {networks_classes}, from 0.")
    return
  if g.method is not None and g.task in EDITING_TASKS:
    raise BadInput(f"guidance.task={g.task!r} has no guidance.method. Leave it unset.")
  if networks_classes:
    raise BadInput(
      f"guidance.task={g.task!r} needs an unconditional network, and model.num_classes={networks_classes}."
    )
  if g.task in EDITING_TASKS:
    if not 0 < g.t0 <= sde.T:
      raise BadInput(f"guidance.t0 must lie in (0, {sde.T}], got {g.t0}.")
    return
  linear = g.task in LINEAR_TASKS
  choose("guidance.method", g.method, SCORE_METHODS + CONSTRAINTS)
  if not linear and g.method != "dps":
    raise BadInput(f"guidance.task={g.task!r} is not linear: guidance.method={g.method!r} cannot invert it. Use 'dps'.")
  if not 0 <= g.noise < math.inf:
    raise BadInput(f"guidance.noise must not be negative, got {g.noise}.")


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
  model, continuous = config.model, config.training.continuous
  family, normalization = family_of(config)
  if model.normalization != normalization:
    raise BadInput(
      f"model.normalization={model.normalization!r}, but model.name={model.name!r} has {normalization}. Leave it unset."
    )
  if family in ("ncsn", "ncsnv2") and (continuous or config.training.sde != "vesde"):
    raise BadInput(
      f"model.name={model.name!r} knows noise levels by their index in a discrete VE model: it needs "
      "--config.training.continuous=False and --config.training.sde=vesde."
    )
  if family == "ddpm" and model.embedding_type == "fourier":
    raise BadInput("model.name='ddpm' has model.embedding_type='positional' alone. Leave it unset, or use ncsnpp.")
  if model.scale_by_sigma and continuous and family == "ddpm":
    raise BadInput("model.scale_by_sigma=True of ddpm divides by the sigma of an index: set training.continuous=False.")
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
    raise BadInput("model.embedding_type='fourier' takes the log itself: use --config.model.conditioning=sigma.")
  if not continuous and model.embedding_type == "fourier":
    raise BadInput(
      "model.embedding_type='fourier' takes the log of a noise level, and a discrete model sees its index, which "
      "starts at 0. Use --config.model.embedding_type=positional, or --config.training.continuous=True."
    )
  if model.scale_by_sigma and model.parameterization != "score":
    raise BadInput(
      f"model.scale_by_sigma=True divides the output by sigma, which turns it into a score, but "
      f"model.parameterization={model.parameterization!r}. Use --config.model.scale_by_sigma=False."
    )
  if model.scale_by_sigma and continuous and model.embedding_type == "positional":
    raise BadInput("model.scale_by_sigma=True needs model.embedding_type='fourier' in a continuous model.")
  for name in ("dropout", "ema_rate", "label_dropout"):
    if not 0 <= model[name] < 1:
      raise BadInput(f"model.{name} must lie in [0, 1), got {model[name]}.")
  if model.num_classes < 0:
    raise BadInput(f"model.num_classes must be 0 (none) or positive, got {model.num_classes}.")
