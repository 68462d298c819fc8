"""A residual multilayer perceptron with a time input, for data without spatial structure or with few dimensions."""

import math
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from score_sde.batch import Array
from score_sde.models.conditions import beside, with_conditions
from score_sde.models.layers import (
  ACTIVATIONS,
  Dropout,
  GaussianFourierProjection,
  default_init,
  dense,
  positional_embedding,
)
from score_sde.models.options import setting


class MLP(nn.Module):
  """Residual multilayer perceptron: (B, ...), (B,)[, ...] -> (B, ...).

  A residual block has a LayerNorm with a time-dependent scale and shift, and two dense layers.

  Attributes:
    nf: units of the residual stream and of every hidden layer.
    num_res_blocks: residual blocks.
    nonlinearity, dropout, embedding_type, fourier_scale, num_classes, label_dropout, condition_shape,
      condition_dropout: as for NCSNpp.
    centered: True for data in [-1, 1], or data other than images. Otherwise the input is mapped from [0, 1] to [-1, 1].
    dtype: dtype of matrix products; parameters and norms are float32.
  """

  nf: int = setting("nf", 512)
  num_res_blocks: int = setting("num_res_blocks", 4)
  nonlinearity: str = setting("nonlinearity", "swish")
  dropout: float = setting("dropout", 0.0)
  embedding_type: str = setting("embedding_type", "fourier")
  fourier_scale: float = setting("fourier_scale", 1.0)
  init_scale: float = setting("init_scale", 0.0)
  num_classes: int = setting("num_classes", 0)
  label_dropout: float = setting("label_dropout", 0.1)
  condition_shape: tuple[int, ...] = ()
  condition_dropout: float = setting("condition_dropout", 0.1)
  centered: bool = True
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, labels: Array, keys: Array | None = None, y: Any = None) -> Array:
    """Returns the output at noise level `labels` for y, see `conditions`. `keys` (B,) drive dropout; None: none."""
    act = ACTIVATIONS[self.nonlinearity]
    if self.embedding_type == "fourier":
      temb = GaussianFourierProjection(self.nf // 4, self.fourier_scale)(jnp.log(labels))
    else:
      temb = positional_embedding(labels, self.nf // 2)
    temb = dense(self.nf, self.dtype)(temb)
    temb = act(with_conditions(self, temb, y, keys, act))

    h = x if self.centered else 2 * x - 1
    h = beside(h, y, self.condition_shape, self.condition_dropout, keys)
    h = dense(self.nf, self.dtype)(h.reshape(len(h), -1))
    for _ in range(self.num_res_blocks):
      scale, shift = jnp.split(dense(2 * self.nf, self.dtype)(temb), 2, axis=-1)
      r = dense(self.nf, self.dtype)(act(nn.LayerNorm()(h) * (1 + scale) + shift))
      r = Dropout(self.dropout)(act(r), keys)
      h = h + dense(self.nf, self.dtype)(r)
    last = nn.Dense(math.prod(x.shape[1:]), dtype=self.dtype, kernel_init=default_init(self.init_scale))
    return last(act(nn.LayerNorm()(h))).astype(jnp.float32).reshape(x.shape)
