"""DiT: a transformer over patches, conditioned by adaptive norms (adaLN-Zero). Peebles & Xie 2023."""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array
from score_sde.models.layers import (
  Dropout,
  GaussianFourierProjection,
  LabelEmbedding,
  attend,
  positional_embedding,
  rematerialized,
  swish,
)
from score_sde.models.options import setting

_xavier = nn.initializers.xavier_uniform()
_zeros = nn.initializers.zeros


def _sincos_2d(rows: int, columns: int, dim: int) -> np.ndarray:
  """Returns fixed position embeddings (rows * columns, dim): half of the features encode the row, half the column."""
  frequencies = 1 / 10000 ** (np.arange(dim // 4) / (dim / 4))
  angles = [np.outer(place.ravel(), frequencies) for place in np.mgrid[:rows, :columns]]
  return np.concatenate([f(a) for a in reversed(angles) for f in (np.sin, np.cos)], axis=1)


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
  """Transformer of an image, a noise level and optionally a class: (B, H, W, C), (B,)[, (B,)] -> (B, H, W, C).

  Attributes:
    nf: width, a multiple of 4 and of num_heads. (DiT-S, B, L, XL: 384, 768, 1024, 1152.)
    num_res_blocks: depth. (12, 12, 24, 28.)
    num_heads: attention heads. (6, 12, 16, 16.)
    patch_size: pixels per side of a patch.
    embedding_type, fourier_scale, num_classes, label_dropout, remat, centered, dtype: as for NCSNpp.
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
  remat: bool = setting("remat", False)
  centered: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, labels: Array, keys: Array | None = None, y: Array | None = None) -> Array:
    """Returns the output at noise level `labels` for class `y`. `keys` (B,) drive dropout, and None turns it off."""
    b, height, width, channels = x.shape
    p, rows, columns = self.patch_size, height // self.patch_size, width // self.patch_size
    h = x if self.centered else 2 * x - 1
    h = h.reshape(b, rows, p, columns, p, channels).transpose(0, 1, 3, 2, 4, 5).reshape(b, rows * columns, -1)
    h = nn.Dense(self.nf, dtype=self.dtype, kernel_init=_xavier, name="patches")(h)
    h = h + jnp.asarray(_sincos_2d(rows, columns, self.nf), h.dtype)

    if self.embedding_type == "fourier":
      c = GaussianFourierProjection(128, self.fourier_scale)(jnp.log(labels))
    else:
      c = positional_embedding(labels, 256)
    normal = nn.initializers.normal(0.02)
    c = swish(nn.Dense(self.nf, dtype=self.dtype, kernel_init=normal, name="time_1")(c))
    c = nn.Dense(self.nf, dtype=self.dtype, kernel_init=normal, name="time_2")(c)
    if self.num_classes:
      c = c + LabelEmbedding(self.num_classes, self.nf, self.label_dropout)(y, b, keys)

    block = rematerialized(DiTBlock, self.remat)
    for _ in range(self.num_res_blocks):
      h = block(self.num_heads, dropout=self.dropout, dtype=self.dtype)(h, c, keys)

    last = nn.Dense(2 * self.nf, dtype=self.dtype, kernel_init=_zeros, name="last_modulation")(swish(c))
    h = _modulate(_norm(h), *jnp.split(last, 2, axis=-1))
    h = nn.Dense(p * p * channels, dtype=self.dtype, kernel_init=_zeros, name="pixels")(h)
    h = h.reshape(b, rows, columns, p, p, channels).transpose(0, 1, 3, 2, 4, 5)
    return h.reshape(x.shape).astype(jnp.float32)
