"""Networks: (x, labels, keys, y) -> like x. They know nothing of SDEs; `create` builds the one a config names."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.models.ddpm import DDPM
from score_sde.models.dit import DiT
from score_sde.models.mlp import MLP
from score_sde.models.ncsn import NCSN, NCSNv2_64, NCSNv2_128, NCSNv2_256, RefineNet
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.wideresnet import WideResnet
from score_sde.run.config import BadInput, choose, default_config

__all__ = [
  "DDPM",
  "MLP",
  "MODELS",
  "NCSN",
  "DiT",
  "NCSNpp",
  "NCSNv2_64",
  "NCSNv2_128",
  "NCSNv2_256",
  "RefineNet",
  "WideResnet",
  "create",
]

MODELS = {
  "ncsnpp": NCSNpp,
  "ddpm": DDPM,
  "ncsn": NCSN,
  "ncsnv2_64": NCSNv2_64,
  "ncsnv2_128": NCSNv2_128,
  "ncsnv2_256": NCSNv2_256,
  "dit": DiT,
  "mlp": MLP,
  "wideresnet": WideResnet,  # a classifier
}

# Keys of config.model that others than the network read: the SDE, its parameterization, training and `resolve`.
_READ_ELSEWHERE = {
  "name", "parameterization", "conditioning", "sigma_data", "sigma_min", "sigma_max", "beta_min", "beta_max",
  "cosine_s", "delta", "energy", "num_scales", "ema_rate", "ema_warmup", "dtype", "embedding_type", "scale_by_sigma",
  "normalization", "attention_type", "conv_size",
}  # fmt: skip


def create(config: ConfigDict, shape: tuple[int, ...]) -> nn.Module:
  """The network of `config.model` for examples of `shape`.

  Raises:
    BadInput: for an unknown name, a network that does not fit the data, or a setting that it would not read.
  """
  choose("model.name", config.model.name, tuple(MODELS))
  module = MODELS[config.model.name]
  fields = {f.name for f in dataclasses.fields(module)} & set(config.model)
  if module is WideResnet:
    fields.add("num_classes")
  _check_read(config, fields)
  if module is not MLP:
    _check_shape(config, shape)
  values = {name: config.model[name] for name in fields}
  values = {name: tuple(v) if isinstance(v, (list, tuple)) else v for name, v in values.items()}
  values["dtype"] = jnp.dtype(config.model.dtype)
  if module is WideResnet:
    return module(**values)
  # Data that is scaled to unit variance on its way in no longer lies in [0, 1].
  values["centered"] = len(shape) == 1 or config.data.centered or config.model.parameterization == "edm"
  return module(**values)


def _check_read(config: ConfigDict, fields: set[str]) -> None:
  """Nothing that was set is silently ignored."""
  default = default_config().model
  for name, value in config.model.items():
    if name not in fields | _READ_ELSEWHERE and value != default[name]:
      raise BadInput(
        f"model.{name}={value!r} is not read by model.name={config.model.name!r}. Leave it at {default[name]!r}."
      )


def _check_shape(config: ConfigDict, shape: tuple[int, ...]) -> None:
  model = config.model
  if len(shape) != 3:
    raise BadInput(
      f"model.name={model.name!r} needs images, and the data has shape {shape}. Use --config.model.name=mlp."
    )
  if model.name == "wideresnet":
    if shape[0] % 4:
      raise BadInput(f"model.name='wideresnet' halves the image twice: data.image_size={shape[0]} must divide by 4.")
    return
  if model.name == "dit":
    if shape[0] % model.patch_size:
      raise BadInput(f"data.image_size={shape[0]} does not divide into patches of model.patch_size={model.patch_size}.")
    if model.nf % 4 or model.nf % model.num_heads:
      raise BadInput(f"model.nf={model.nf} must be a multiple of 4 and of model.num_heads={model.num_heads}.")
    return
  unet = model.name in ("ncsnpp", "ddpm")
  halvings = len(model.ch_mult) - 1 if unet else {"ncsnv2_128": 2, "ncsnv2_256": 3}.get(model.name, 1)
  if shape[0] % 2**halvings:
    what = f"model.ch_mult={tuple(model.ch_mult)}" if unet else f"model.name={model.name!r}"
    raise BadInput(
      f"{what} halves the image {halvings} times, but data.image_size={shape[0]} is no multiple of {2**halvings}. Use "
      "another size" + (", or fewer entries." if unet else ".")
    )
  if not unet:
    return
  for mult in model.ch_mult:
    channels = model.nf * mult
    groups = 32 if model.name == "ddpm" else min(max(channels // 4, 1), 32)
    if channels % groups:
      raise BadInput(
        f"model.nf={model.nf} gives {channels} channels, which GroupNorm cannot divide into {groups} groups. Use a "
        + ("multiple of 32." if model.name == "ddpm" else "multiple of 4, and of 32 from 128 on.")
      )
    if model.head_dim and channels % model.head_dim:
      raise BadInput(f"model.head_dim={model.head_dim} does not divide {channels} channels.")
