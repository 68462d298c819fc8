"""Networks: (x, labels, keys) -> like x. They know nothing of SDEs; `create` builds the one a config names."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.config import BadInput, choose
from score_sde.models.mlp import MLP
from score_sde.models.ncsnpp import NCSNpp

MODELS = {"ncsnpp": NCSNpp, "mlp": MLP}


def create(config: ConfigDict, shape: tuple[int, ...]) -> nn.Module:
  """The network of `config.model` for examples of `shape`.

  Raises:
    BadInput: for an unknown name, or a network that does not fit the data.
  """
  choose("model.name", config.model.name, tuple(MODELS))
  module = MODELS[config.model.name]
  if module is NCSNpp:
    _check_unet(config, shape)
  fields = {f.name for f in dataclasses.fields(module)} & set(config.model)
  values = {name: config.model[name] for name in fields}
  values = {name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in values.items()}
  values["dtype"] = jnp.dtype(config.model.dtype)
  # Data that is scaled to unit variance on its way in no longer lies in [0, 1].
  values["centered"] = len(shape) == 1 or config.data.centered or config.model.parameterization == "edm"
  return module(**values)


def _check_unet(config: ConfigDict, shape: tuple[int, ...]) -> None:
  if len(shape) != 3:
    raise BadInput(f"model.name='ncsnpp' needs images, and the data has shape {shape}. Use --config.model.name=mlp.")
  halvings = len(config.model.ch_mult) - 1
  if shape[0] % 2**halvings:
    raise BadInput(
      f"model.ch_mult={tuple(config.model.ch_mult)} halves the image {halvings} times, but data.image_size={shape[0]} "
      f"is no multiple of {2**halvings}. Use fewer entries, or another size."
    )
  for mult in config.model.ch_mult:
    channels = config.model.nf * mult
    if channels % 4 or channels % min(channels // 4, 32):
      raise BadInput(
        f"model.nf={config.model.nf} gives {channels} channels, which GroupNorm cannot divide into "
        f"{min(max(channels // 4, 1), 32)} groups. Use a multiple of 4, and of 32 from 128 on."
      )
