"""Networks that a config can name, including a user's own."""

import dataclasses
import inspect
import logging
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde.augmentation import AUGMENTED
from score_sde.models import MLP, MODELS, WideResnet
from score_sde.run.config.errors import BadInput, choose
from score_sde.run.config.keys import default_config
from score_sde.run.config.plugins import is_plugin, load
from score_sde.run.config.readers import keys, reads

log = logging.getLogger(__name__)


def create(config: ConfigDict, shape: tuple[int, ...]) -> nn.Module:
  """Returns the network of `config.model` for examples of `shape`.

  Raises:
    BadInput: if the name is unknown, the network does not fit the data, or a changed setting is not read by it.
  """
  name = config.model.name
  if is_plugin(name):
    network = load("model.name", name, "from config.model to a Flax module (x, t, y)")(config.model)
    if not isinstance(network, nn.Module):
      raise BadInput(f"model.name={name!r} gives a {type(network).__name__}, not a Flax module.")
    if config.training.augment:
      raise BadInput(f"training.augment={config.training.augment}: model.name={name!r} is not told of it. Set it to 0.")
    return network
  choose("model.name", name, tuple(MODELS))
  _check_read(config)
  module: Any = MODELS[name]
  if module is not MLP:
    _check_shape(config, shape)
  fields = {f.name for f in dataclasses.fields(module)} & set(config.model)
  values: dict[str, Any] = {field: config.model[field] for field in fields}
  values = {field: tuple(v) if isinstance(v, (list, tuple)) else v for field, v in values.items()}
  values["dtype"] = jnp.dtype(config.model.dtype)
  condition = tuple(config.data.condition_shape)
  if config.training.augment:
    _check_augmentation(config, module, shape, condition)
    values["augmented"] = AUGMENTED
  if condition:
    _check_condition(config, module, shape, condition)
    values["condition_shape"] = condition
  if module is WideResnet:
    return module(**values)
  # The EDM parameterization scales its input to unit variance, so the input does not lie in [0, 1].
  floats = len(shape) == 1 or (config.data.dataset == "array" and config.data.levels is None)
  values["centered"] = floats or config.data.centered or config.model.parameterization == "edm"
  return module(**values)


def warn_of_attention(config: ConfigDict, shape: tuple[int, ...]) -> None:
  """Logs a warning if none of model.attn_resolutions is a resolution of the network, which then has no attention."""
  known = {f.name for f in dataclasses.fields(MODELS[config.model.name])} if config.model.name in MODELS else set()
  wanted = tuple(config.model.get("attn_resolutions") or ())
  if not {"attn_resolutions", "ch_mult"} <= known or not wanted:
    return
  levels = [shape[0] // 2**i for i in range(len(config.model.ch_mult))]
  if not set(wanted) & set(levels):
    log.warning(
      "model.attn_resolutions=%s names none of the network's resolutions (%s): its levels have no attention. Choose "
      "one of them, or () for none.", wanted, ", ".join(map(str, levels)),
    )  # fmt: skip


def apply_of(network: nn.Module) -> Callable[..., Any]:
  """Returns (params, x, labels, keys[, y]) -> the network's output. `keys` drive dropout; None turns it off.

  A user's network without an argument `keys` is called without it.
  """
  with_keys = "keys" in inspect.signature(type(network).__call__).parameters

  def apply(params: Any, x: Any, labels: Any, keys: Any = None, *rest: Any) -> Any:
    dropout = (keys,) if with_keys else ()
    return network.apply({"params": params}, x, labels, *dropout, *rest)

  return apply


def _check_read(config: ConfigDict) -> None:
  """Raises BadInput if a changed setting is only read by other networks. (Settings of other SDEs are allowed.)"""
  default = default_config().model
  for key, readers in keys().items():
    section, name = key.split(".")
    if section != "model" or config.model[name] == default[name]:
      continue
    of_networks = [r for r, *_ in readers if r.options in MODELS.values()]
    if of_networks and not any(reads(config, reader, known) for reader, _, known in readers):
      if name in ("label_dropout", "condition_dropout"):
        continue  # read as soon as there are classes or conditions
      raise BadInput(
        f"{key}={config.model[name]!r} is not read by model.name={config.model.name!r}. Leave it at {default[name]!r}."
      )


def _check_augmentation(config: ConfigDict, module: Any, shape: tuple[int, ...], condition: tuple[int, ...]) -> None:
  given = f"training.augment={config.training.augment}"
  if "augmented" not in {f.name for f in dataclasses.fields(module)} or not config.model.conditional:
    raise BadInput(f"{given}: model.name={config.model.name!r} is not told of it. Use ncsnpp or ddpm, conditional.")
  if len(shape) != 3:
    raise BadInput(f"{given} needs images, and the data have shape {shape}. Leave it at 0.")
  if len(condition) > 1:
    raise BadInput(
      f"{given} changes images and not their conditions, which are images of shape {condition}. Set it to 0."
    )
  if config.data.random_flip:
    raise BadInput(f"{given} mirrors images already: set --config.data.random_flip=False.")


def _check_condition(config: ConfigDict, module: Any, shape: tuple[int, ...], condition: tuple[int, ...]) -> None:
  if "condition_shape" not in {f.name for f in dataclasses.fields(module)}:
    raise BadInput(
      f"model.name={config.model.name!r} takes no conditions, and the data have some, of shape {condition}. Use "
      "--config.data.condition=none, or ncsnpp, ddpm, dit or mlp."
    )
  if len(condition) == 1 and not config.model.get("conditional", True) and config.model.name in ("ncsnpp", "ddpm"):
    raise BadInput(
      "model.conditional=False leaves out the embedding, to which vector conditions are added. Set it to True."
    )
  if len(condition) > 1 and condition[:-1] != shape[:-1]:
    raise BadInput(
      f"Conditions of shape {condition} do not fit examples of shape {shape}: they must be vectors (K,), or have the "
      f"examples' size, {(*shape[:-1], 'K')}. Resize them."
    )


def _check_shape(config: ConfigDict, shape: tuple[int, ...]) -> None:
  model = config.model
  sizes, any_rank = shape[:-1], model.name in ("ncsnpp", "ddpm", "dit")
  if len(shape) == 1 or (len(shape) != 3 and not any_rank):
    if len(shape) == 1:
      advice = "a config whose network is mlp, such as configs/array/wine.py"
    else:
      advice = "--config.model.name=ncsnpp, ddpm, dit or mlp"
    raise BadInput(f"model.name={model.name!r} needs images, and the data have shape {shape}. Use {advice}.")
  size = sizes[0] if len(set(sizes)) == 1 else sizes
  if model.name == "wideresnet":
    if any(n % 4 for n in sizes):
      raise BadInput(f"model.name='wideresnet' halves the image twice: data.image_size={size} must divide by 4.")
    return
  if model.name == "dit":
    if any(n % model.patch_size for n in sizes):
      raise BadInput(f"data.image_size={size} does not divide into patches of model.patch_size={model.patch_size}.")
    if model.nf % 4 or model.nf % model.num_heads:
      raise BadInput(f"model.nf={model.nf} must be a multiple of 4 and of model.num_heads={model.num_heads}.")
    return
  unet = model.name in ("ncsnpp", "ddpm")
  halvings = len(model.ch_mult) - 1 if unet else {"ncsnv2_128": 2, "ncsnv2_256": 3}.get(model.name, 1)
  if any(n % 2**halvings for n in sizes):
    what = f"model.ch_mult={tuple(model.ch_mult)}" if unet else f"model.name={model.name!r}"
    raise BadInput(
      f"{what} halves the image {halvings} times, but data.image_size={size} is no multiple of {2**halvings}. Use "
      "another size" + (", or fewer entries of model.ch_mult." if unet else ".")
    )
  if not unet:
    return
  for mult in model.ch_mult:
    channels = model.nf * mult
    groups = model.norm_groups if model.name == "ddpm" else min(max(channels // 4, 1), 32)
    if channels % groups:
      raise BadInput(
        f"model.nf={model.nf} gives {channels} channels, which GroupNorm cannot divide into {groups} groups. Use a "
        + (f"multiple of {groups}." if model.name == "ddpm" else "multiple of 4, and of 32 from 128 on.")
      )
    if model.head_dim and channels % model.head_dim:
      raise BadInput(f"model.head_dim={model.head_dim} does not divide {channels} channels.")
