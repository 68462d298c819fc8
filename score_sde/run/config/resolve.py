"""Resolving of configs: fills the defaults that depend on other keys, and checks all values."""

import os
from typing import Any

import jax
from ml_collections import ConfigDict

from score_sde.options import options_of
from score_sde.run.config.checks import check, family_of
from score_sde.run.config.errors import BadInput, get
from score_sde.run.config.plugins import is_plugin
from score_sde.run.config.sdes import SDES, make_sde
from score_sde.run.config.sections import LINEAR_TASKS, NONLINEAR_TASKS, Training, distills_progressively
from score_sde.sampling import METHODS, FewStep
from score_sde.sde import SDE

# Defaults that depend on the SDE. Song et al. 2021, Appendices C, D and G.
_VE = {
  "data.centered": False,
  "model.parameterization": "score",
  "model.conditioning": "sigma",
  "model.embedding_type": "fourier",
  "training.reduce_mean": False,
  "sampling.predictor": "reverse_diffusion",
  "sampling.corrector": "langevin",
}
_VP = {
  "data.centered": True,
  "model.parameterization": "noise",
  "model.conditioning": "time",
  "model.embedding_type": "positional",
  "training.reduce_mean": True,
  "sampling.predictor": "euler_maruyama",
  "sampling.corrector": "none",
}
_FOLLOWS = {
  "vesde": _VE,
  "vpsde": _VP,
  "subvpsde": _VP,
  "cosine": _VP,
  "rectified_flow": _VP | {"model.parameterization": "flow", "training.weighting": "flow"},
}
# Defaults for a user's own SDE, with a closed-form kernel (linear) and without (simulated).
_LINEAR = _VP | {"model.conditioning": "log_sigma"}
_SIMULATED = _VP | {
  "model.conditioning": "sigma",
  "model.embedding_type": "fourier",
  "training.objective": "ssm_vr",
}

# Keys whose defaults depend on other keys although their fields have a default.
FOLLOWS = frozenset(_SIMULATED) | {
  "training.n_jitted_steps",
  "training.weighting",
  "training.time_sampling",
  "training.p_mean",
  "training.p_std",
  "training.distance",
  "training.first_scales",
  "training.last_scales",
  "training.target_rate",
  "training.tangent_warmup",
  "sampling.sde_atol",
  "guidance.prior_variance",
  "model.sigma_data",
}


def _follows(config: ConfigDict, sde: SDE) -> dict[str, Any]:
  if config.training.sde in _FOLLOWS:
    return _FOLLOWS[config.training.sde]
  return _LINEAR if sde.is_linear else _SIMULATED


def _fill(config: ConfigDict, key: str, value: Any) -> None:
  section, name = key.split(".")
  if config[section][name] is None:
    config[section][name] = value


def _steps_per_dispatch(config: ConfigDict) -> int:
  """Returns the default of training.n_jitted_steps: 1 for networks with convolutions on a CPU, else that of the field.

  There the steps of a dispatch are unrolled, and compiling them takes minutes.
  """
  dense = config.model.name in ("mlp", "dit") or is_plugin(config.model.name)
  return Training.n_jitted_steps if dense or jax.default_backend() != "cpu" else 1


class Resolved(ConfigDict):
  """Resolved config: every key has its value. Returned by `resolve`. Its sections are plain ConfigDicts."""


def _fill_consistency(config: ConfigDict) -> None:
  """Fills the options of a consistency loss, and their values of score matching, which depend on training.objective."""
  t = config.training
  if t.task == "consistency":
    _fill(config, "training.objective", "ect" if t.teacher else "ict")
    # Lu & Song 2025, Section 4.1; Song & Dhariwal 2024, Table 1, and Geng et al. 2024
    levels = {"p_mean": -1.0, "p_std": 1.4} if t.objective == "scm" else {"p_mean": -1.1, "p_std": 2.0}
  else:
    levels = {"p_mean": -1.2, "p_std": 1.2}
  # Song et al. 2023, Table 3; Song & Dhariwal 2024, Table 1
  first = {"ct": 2, "progressive": 1}.get(t.objective, 10)
  last = {"cd": 18, "ct": 150, "progressive": 64}.get(t.objective, 1280)
  values = levels | {
    "distance": "l2" if t.objective in ("cd", "ct") else "pseudo_huber", "first_scales": first, "last_scales": last,
    "target_rate": 0.9 if t.objective == "ct" else 0.0, "tangent_warmup": min(10_000, max(t.n_iters // 6, 1)),
  }  # fmt: skip
  for name, value in values.items():
    _fill(config, f"training.{name}", value)


def _replace(section: ConfigDict, name: str, value: Any) -> None:
  """Sets a value of any type. (A ConfigDict makes a tuple a list if it holds a list, even when it ignores types.)"""
  with section.unlocked():
    del section[name]
    section[name] = value


def _fill_data(config: ConfigDict) -> None:
  """Fills the values of config.data that follow the data, and makes lists tuples: a stored config has lists."""
  from score_sde.run.data import description_of, example_shape, is_image  # which imports this package

  d = config.data
  if isinstance(d.image_size, list):
    _replace(d, "image_size", tuple(d.image_size))
  size = d.image_size if isinstance(d.image_size, tuple) else (d.image_size,)
  if len(size) > 2 or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in size):
    raise BadInput(f"data.image_size={d.image_size!r} must be a positive integer, or (height, width).")
  if d.condition not in ("", "none") and not is_plugin(d.condition):
    raise BadInput(f"data.condition={d.condition!r} must be FILE.py:FUNCTION, none, or unset for those of the file.")
  described = description_of(config)
  for name, value in described.items():
    if name != "levels" or d.levels is None:
      d[name] = value
  if d.dataset == "array" and len(d.shape) == 3:  # so that files for guidance get the size of the array's images
    _replace(d, "image_size", tuple(d.shape[:2]))
    d.num_channels = d.shape[2]
  # Of a run that is read back, only data.std says that the array holds floats.
  if d.dataset == "array" and d.levels is not None and (d.std or described.get("levels", 0) is None):
    raise BadInput(f"data.levels={d.levels}, but the array holds floats, which have none. Leave it unset.")
  if d.dataset != "array":
    _fill(config, "data.levels", 17 if d.dataset == "digits" else 256)
  elif d.levels is None and d.uniform_dequantization:
    raise BadInput("data.uniform_dequantization=True fills gaps between levels, and the array holds floats. Unset it.")
  _fill(config, "data.random_flip", is_image(config))
  if d.random_flip and len(example_shape(config)) != 3:
    raise BadInput(
      f"data.random_flip=True flips images, and the data have shape {example_shape(config)}. Set it to False."
    )


def _expand_home(config: ConfigDict) -> None:
  """Replaces a `~` at the beginning of every path in `config` by the user's home folder."""
  for section in config.values():
    for key, value in section.items() if isinstance(section, ConfigDict) else ():
      if isinstance(value, str) and value.startswith("~"):
        section[key] = os.path.expanduser(value)


def resolve(config: ConfigDict) -> Resolved:
  """Returns a locked copy of `config` with every placeholder filled and every value checked.

  A Resolved config is returned unchanged. (Copies of one are plain ConfigDicts, so they are resolved again.)

  Raises:
    BadInput: if a value is out of range, or if values do not go together.
  """
  if isinstance(config, Resolved):
    return config
  config = ConfigDict(config).copy_and_resolve_references()
  _expand_home(config)
  sde = make_sde(config)
  if config.training.likelihood_weighting:
    _fill(config, "training.weighting", "likelihood")
  for key, value in _follows(config, sde).items():
    if key == "model.embedding_type" and (not config.training.continuous or config.model.name == "ddpm"):
      value = "positional"  # discrete models get the index of the noise level
    _fill(config, key, value)
  if config.training.n_jitted_steps is None:  # asking for the backend starts it
    config.training.n_jitted_steps = _steps_per_dispatch(config)
  family, normalization = family_of(config)
  scaled = config.model.parameterization == "score" and family in ("ncsnpp", "ncsnv2")
  _fill(config, "model.scale_by_sigma", scaled)
  _fill(config, "model.normalization", normalization)
  t, solver = config.training, METHODS.get(config.sampling.method, object)
  few = issubclass(solver, FewStep)
  _fill_consistency(config)
  _fill(config, "training.weighting", "simple")
  _fill(config, "training.objective", "dsm")
  _fill(config, "training.time_sampling", "importance" if t.importance_sampling else "uniform")
  progressive = distills_progressively(t)  # sampled at the levels of its training
  if progressive and few:
    _fill(config, "sampling.grid", "karras")
  _fill(config, "sampling.grid", "log_snr" if few and sde.is_linear else "uniform")
  _fill(config, "sampling.num_steps", solver.default_steps if few else config.model.num_scales)
  _fill(config, "sampling.eps", t.eps if progressive else sde.eps)
  _fill(config, "sampling.sde_atol", (2 if config.data.centered else 1) / 256)
  _fill_data(config)
  unit = bool(config.data.std)  # standardized floats
  _fill(config, "model.sigma_data", 1.0 if unit else 0.5)
  _fill(config, "guidance.prior_variance", 1.0 if unit or config.data.centered else 0.25)
  g = config.guidance
  if g.task == "class":
    _fill(config, "guidance.method", "classifier_free" if config.model.num_classes else "classifier")
  elif g.task == "condition":
    _fill(config, "guidance.method", "classifier_free")
  elif g.task in LINEAR_TASKS + NONLINEAR_TASKS:
    _fill(config, "guidance.method", "pigdm" if g.task in LINEAR_TASKS else "dps")
  check(config, sde)
  resolved = Resolved(config)
  resolved.lock()
  return resolved


# Keys of config.model that may differ between the config of a checkpoint and that of a later run in its workdir.
_FREE = (
  "dropout",
  "label_dropout",
  "condition_dropout",
  "ema_rate",
  "ema_warmup",
  "ema_widths",
  "dtype",
  "init_scale",
  "remat",
)


def signature(config: ConfigDict) -> dict[str, Any]:
  """Returns the settings that a checkpoint depends on, as flat {key: value}: the model, the SDE, the data's scaling."""
  of_sdes = {known.key or field.name for sde in SDES.values() for field, known in options_of(sde)}
  keys = [f"model.{k}" for k in config.model if k not in of_sdes and k not in _FREE]
  keys += ["training.sde", "training.continuous", "data.centered", "data.image_size", "data.num_channels"]
  values = {key: get(config, key) for key in keys}
  values["the SDE"] = str(make_sde(config))
  # Of arrays and conditional networks; others have no such entry.
  for name in ("shape", "mean", "std", "condition_shape", "condition_mean", "condition_std"):
    if config.data[name]:
      values[f"data.{name}"] = config.data[name]
  if config.training.augment:
    values["training.augment"] = "set"  # the network has an input for it
  if config.model.ema_widths:  # the widths of the averages that a checkpoint keeps
    values["model.ema_widths"] = config.model.ema_widths
  if config.training.task == "consistency":  # other models have no such entry
    values["training.task"] = "consistency"
    t = config.training
    groups = {"progressive": "progressive"} | dict.fromkeys(("cd", "ct", "ict"), "cd, ct or ict")
    values["training.objective"] = groups.get(t.objective, "ect or scm")
    if t.objective in ("cd", "ct", "ict"):  # f(x, t) = x at this time; for "ect" and "scm" at 0
      values["training.eps"] = t.eps
  return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
