"""DiT: a transformer over patches, conditioned by adaptive norms (adaLN-Zero). Peebles & Xie 2023."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array
from score_sde.models.conditions import beside, with_conditions
from score_sde.models.layers import (
  Dropout,
  GaussianFourierProjection,
  attend,
  positional_embedding,
  rematerialized,
  swish,
)
from score_sde.models.options import setting

_xavier = nn.initializers.xavier_uniform()
_zeros = nn.initializers.zeros


def _sincos(sizes: tuple[int, ...], dim: int) -> np.ndarray:
  """Returns fixed position embeddings (tokens, dim) of a grid of `sizes`: equal parts of the features for each axis."""
  count = dim // (2 * len(sizes))
  frequencies = 1 / 10000 ** (np.arange(count) / count)
  angles = [np.outer(place.ravel(), frequencies) for place in np.indices(sizes)]
  found = np.concatenate([f(a) for a in reversed(angles) for f in (np.sin, np.cos)], axis=1)
  return np.pad(found, ((0, 0), (0, dim - found.shape[1])))


def _to_tokens(x: Array, p: int) -> Array:
  """Cuts x (B, ..., C) into patches of p entries per axis, (B, tokens, p^axes * C)."""
  b, *sizes, channels = x.shape
  axes = len(sizes)
  x = x.reshape(b, *(n for size in sizes for n in (size // p, p)), channels)
  x = x.transpose(0, *range(1, 2 * axes, 2), *range(2, 2 * axes + 1, 2), 2 * axes + 1)
  return x.reshape(b, math.prod(sizes) // p**axes, -1)


def _from_tokens(tokens: Array, shape: tuple[int, ...], p: int) -> Array:
  """Puts patches together again, to an array of `shape` (B, ..., C): the inverse of `_to_tokens`."""
  b, *sizes, channels = shape
  axes = len(sizes)
  x = tokens.reshape(b, *(size // p for size in sizes), *(p for _ in sizes), channels)
  pairs = [place for axis in range(1, axes + 1) for place in (axis, axis + axes)]
  return x.transpose(0, *pairs, 2 * axes + 1).reshape(shape)


def _modulate(x: Array, shift: Array, scale: Array) -> Array:
  return x * (1 + scale[:, None, :]) + shift[:, None, :]


def _norm(x: Array) -> Array:
  return nn.LayerNorm(epsilon=1e-6, use_bias=False, use_scale=False)(x)


class DiTBlock(nn.Module):
  """Attention and a two-layer perceptron, both scaled, shifted and gated by the condition (adaLN-Zero).

  The gates start at zero, so each block starts as the identity.
  """

  heads: int
  mlp_ratio: float = 4.0
  dropout: float = 0.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, c: Array, keys: Array | None) -> Array:
    b, tokens, width = x.shape
    modulation = nn.Dense(6 * width, dtype=self.dtype, kernel_init=_zeros, name="modulation")(swish(c))
    shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = jnp.split(modulation, 6, axis=-1)

    h = _modulate(_norm(x), shift, scale)
    qkv = nn.Dense(3 * width, dtype=self.dtype, kernel_init=_xavier, name="qkv")(h)
    q, k, v = (a.reshape(b, tokens, self.heads, -1) for a in jnp.split(qkv, 3, axis=-1))
    h = attend(q, k, v).reshape(x.shape)
    x = x + gate[:, None, :] * nn.Dense(width, dtype=self.dtype, kernel_init=_xavier, name="proj")(h)

    h = _modulate(_norm(x), mlp_shift, mlp_scale)
    h = nn.gelu(nn.Dense(int(self.mlp_ratio * width), dtype=self.dtype, kernel_init=_xavier, name="fc1")(h))
    h = nn.Dense(width, dtype=self.dtype, kernel_init=_xavier, name="fc2")(Dropout(self.dropout)(h, keys))
    return x + mlp_gate[:, None, :] * h


class DiT(nn.Module):
  """Transformer of an image, a noise level and optionally a condition: (B, H, W, C), (B,)[, ...] -> (B, H, W, C).

  Series (B, L, C) and volumes (B, D, H, W, C) have patches in one and three dimensions.

  Attributes:
    nf: width, a multiple of 4 and of num_heads. (DiT-S, B, L, XL: 384, 768, 1024, 1152.)
    num_res_blocks: depth. (12, 12, 24, 28.)
    num_heads: attention heads. (6, 12, 16, 16.)
    patch_size: pixels per side of a patch.
    embedding_type, fourier_scale, num_classes, label_dropout, condition_shape, condition_dropout, remat, centered,
      dtype: as for NCSNpp.
  """

  nf: int = setting("nf", 384)
  num_res_blocks: int = setting("num_res_blocks", 12)
  num_heads: int = setting("num_heads", 6)
  patch_size: int = setting("patch_size", 2)
  dropout: float = setting("dropout", 0.0)
  embedding_type: str = setting("embedding_type", "positional")
  fourier_scale: float = setting("fourier_scale", 16.0)
  num_classes: int = setting("num_classes", 0)
  label_dropout: float = setting("label_dropout", 0.1)
  condition_shape: tuple[int, ...] = ()
  condition_dropout: float = setting("condition_dropout", 0.1)
  remat: bool = setting("remat", False)
  centered: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, labels: Array, keys: Array | None = None, y: Any = None) -> Array:
    """Returns the output at noise level `labels` for y, see `conditions`. `keys` (B,) drive dropout; None: none."""
    _, *sizes, channels = x.shape
    p = self.patch_size
    h = x if self.centered else 2 * x - 1
    h = _to_tokens(beside(h, y, self.condition_shape, self.condition_dropout, keys), p)
    h = nn.Dense(self.nf, dtype=self.dtype, kernel_init=_xavier, name="patches")(h)
    h = h + jnp.asarray(_sincos(tuple(size // p for size in sizes), self.nf), h.dtype)

    if self.embedding_type == "fourier":
      c = GaussianFourierProjection(128, self.fourier_scale)(jnp.log(labels))
    else:
      c = positional_embedding(labels, 256)
    normal = nn.initializers.normal(0.02)
    c = swish(nn.Dense(self.nf, dtype=self.dtype, kernel_init=normal, name="time_1")(c))
    c = nn.Dense(self.nf, dtype=self.dtype, kernel_init=normal, name="time_2")(c)
    c = with_conditions(self, c, y, keys, swish)

    block = rematerialized(DiTBlock, self.remat)
    for _ in range(self.num_res_blocks):
      h = block(self.num_heads, dropout=self.dropout, dtype=self.dtype)(h, c, keys)

    last = nn.Dense(2 * self.nf, dtype=self.dtype, kernel_init=_zeros, name="last_modulation")(swish(c))
    h = _modulate(_norm(h), *jnp.split(last, 2, axis=-1))
    h = nn.Dense(p ** len(sizes) * channels, dtype=self.dtype, kernel_init=_zeros, name="pixels")(h)
    return _from_tokens(h, x.shape, p).astype(jnp.float32)
