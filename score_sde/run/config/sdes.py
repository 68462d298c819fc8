"""SDEs that a config can name, including a user's own."""

from ml_collections import ConfigDict

from score_sde.options import options_of
from score_sde.run.config.errors import BadInput, as_bad_input, choose
from score_sde.run.config.plugins import is_plugin, load
from score_sde.sde import SDE, VE, VP, CosineVP, RectifiedFlow, SubVP

SDES: dict[str, type[SDE]] = {
  "vesde": VE,
  "vpsde": VP,
  "subvpsde": SubVP,
  "cosine": CosineVP,
  "rectified_flow": RectifiedFlow,
}

_NAMES = {
  "vesde": "VE SDE",
  "vpsde": "VP SDE",
  "subvpsde": "sub-VP SDE",
  "cosine": "cosine VP SDE",
  "rectified_flow": "rectified flow",
}


def make_sde(config: ConfigDict) -> SDE:
  """Returns the SDE of `config.training.sde`.

  Raises:
    BadInput: if the name is unknown, the SDE refuses its parameters, or a user's function does not return an SDE.
  """
  name = config.training.sde
  if is_plugin(name):
    sde = load("training.sde", name, "from config.model to an SDE")(config.model)
    if not isinstance(sde, SDE):
      raise BadInput(f"training.sde={name!r} gives a {type(sde).__name__}, not a score_sde.SDE.")
    return sde
  choose("training.sde", name, tuple(SDES))
  keys = {field.name: known.key or field.name for field, known in options_of(SDES[name])}
  with as_bad_input({name: f"model.{key}" for name, key in keys.items()}):
    return SDES[name](**{name: config.model[key] for name, key in keys.items()})


def sde_name(name: str, sde: SDE | None = None) -> str:
  """Returns the SDE's name for pictures and reports. A user's own is named by its class, or by its function."""
  own = type(sde).__name__ if sde is not None else name.rpartition(":")[2]
  return _NAMES.get(name, own)
