"""Layers that take the condition of an example, a vector or an image, see `score_sde.conditions`."""

import zlib
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from score_sde.batch import Array, expand, fold
from score_sde.conditions import part_of
from score_sde.models.layers import LabelEmbedding, dense


class Given(nn.Module):
  """Condition as an input of a network: (B, *shape) -> (B, *shape[:-1], channels + 1), with zeros for NaN.

  The last channel is 1 if the condition is given and else 0, so a condition of zeros is not mistaken for none. In
  training (with `keys`) it is left out for a fraction `dropout` of the examples. One network then learns both scores
  for classifier-free guidance (Ho & Salimans 2022).
  """

  shape: tuple[int, ...]
  dropout: float = 0.1

  @nn.compact
  def __call__(self, y: Any, batch: int, keys: Array | None) -> Array:
    condition = part_of(y, "condition")
    if condition is None:
      return jnp.zeros((batch, *self.shape[:-1], self.shape[-1] + 1))
    given = ~jnp.any(jnp.isnan(condition.reshape(batch, -1)), axis=1)
    if keys is not None and self.dropout:
      keys = fold(keys, zlib.crc32("/".join(self.path).encode()))
      given &= ~jax.vmap(lambda key: jax.random.bernoulli(key, self.dropout))(keys)
    known = jnp.where(expand(given, condition), condition, 0)
    flags = jnp.broadcast_to(expand(given, condition), (*condition.shape[:-1], 1))
    return jnp.concatenate([known, flags.astype(known.dtype)], axis=-1)


class VectorEmbedding(nn.Module):
  """Learned embedding of a vector: (B, K) -> (B, features), by two layers. It is added to that of time."""

  shape: tuple[int, ...]
  features: int
  act: Any
  dropout: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, y: Any, batch: int, keys: Array | None) -> Array:
    given = Given(self.shape, self.dropout)(y, batch, keys)
    return dense(self.features, self.dtype)(self.act(dense(self.features, self.dtype)(given)))


def with_conditions(network: Any, temb: Array, y: Any, keys: Array | None, act: Any) -> Array:
  """Returns the embedding of time (B, features) plus those of the class, the augmentation and a vector in y.

  It is called within `network`, whose num_classes, condition_shape and augmented tell which of them there are.
  """
  batch, features = temb.shape
  if network.num_classes:
    temb = temb + LabelEmbedding(network.num_classes, features, network.label_dropout)(part_of(y, "label"), batch, keys)
  if augmented := getattr(network, "augmented", 0):
    changes = part_of(y, "augment")
    changes = jnp.zeros((batch, augmented)) if changes is None else changes
    temb = temb + nn.Dense(features, use_bias=False, dtype=network.dtype, name="augment")(changes)
  if len(network.condition_shape) == 1:
    embedding = VectorEmbedding(network.condition_shape, features, act, network.condition_dropout, network.dtype)
    temb = temb + embedding(y, batch, keys)
  return temb


def beside(x: Array, y: Any, shape: tuple[int, ...], dropout: float, keys: Array | None) -> Array:
  """Returns x (B, ..., C) with a condition of the same resolution as more channels; x itself if there is none.

  Saharia et al. 2022 (Palette, SR3). It is called within a network: `shape` is that of a condition, () for none, and a
  vector (K,) is no image and is left to `VectorEmbedding`.
  """
  if len(shape) < 2:
    return x
  return jnp.concatenate([x, Given(shape, dropout)(y, len(x), keys).astype(x.dtype)], axis=-1)
