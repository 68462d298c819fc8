"""The U-Net of Ho et al. 2020 (DDPM), as in the published models."""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from score_sde.batch import Array, expand
from score_sde.models.conditions import beside, with_conditions
from score_sde.models.layers import (
  ACTIVATIONS,
  AttnBlockpp,
  Downsample,
  ResnetBlockDDPMpp,
  Upsample,
  conv,
  dense,
  group_norm,
  positional_embedding,
  rematerialized,
  sigma_of_index,
  spatial,
)
from score_sde.models.options import setting


class ResnetBlockDDPM(ResnetBlockDDPMpp):
  """Residual block, under its name in the published parameters."""


class AttnBlock(AttnBlockpp):
  """Self-attention, under its name in the published parameters."""


class DDPM(nn.Module):
  """U-Net of an image, a noise level and optionally a condition: (B, H, W, C), (B,)[, ...] -> (B, H, W, C).

  Series (B, L, C) and volumes (B, D, H, W, C) have convolutions in one and three dimensions.

  Attributes:
    nf: channels at full resolution, a multiple of 32; level i has nf * ch_mult[i].
    num_res_blocks: residual blocks per level on the way down (one more on the way up).
    attn_resolutions: heights with self-attention. It follows each block on the way down and the last block on the way
      up. With `attn_every_block` it follows each block on the way up too, as in the code of Ho et al.
    conditional: True if the network uses the label.
    resamp_with_conv: convolve when resampling.
    scale_by_sigma: divide the output by the noise level with index `label` (for score prediction).
    sigma_min, sigma_max, num_scales: the noise levels, indexed by the label, for scale_by_sigma.
    nonlinearity, outer_nonlinearity: activation within blocks, and that of the embedding of the noise level and before
      the last layer; None takes the same.
    norm_groups, norm_eps: groups of each norm, and the number added to its variance.
    downsample_padding: pixels on each side before a strided convolution; 0 is one below and one to the right, as
      published.
    freq_shift, flip_sin_to_cos: of the positional embedding, see `positional_embedding`.
    mid_block_scale_factor: number that sums in the middle of the network are divided by.
    head_dim, num_classes, label_dropout, condition_shape, condition_dropout, augmented, remat, centered, dtype: as for
      NCSNpp.
  """

  nf: int = setting("nf", 128)
  ch_mult: tuple[int, ...] = setting("ch_mult", (1, 2, 2, 2))
  num_res_blocks: int = setting("num_res_blocks", 2)
  attn_resolutions: tuple[int, ...] = setting("attn_resolutions", (16,))
  attn_every_block: bool = setting("attn_every_block", False)
  nonlinearity: str = setting("nonlinearity", "swish")
  outer_nonlinearity: str | None = setting("outer_nonlinearity", None)
  dropout: float = setting("dropout", 0.1)
  conditional: bool = setting("conditional", True)
  resamp_with_conv: bool = setting("resamp_with_conv", True)
  init_scale: float = setting("init_scale", 0.0)
  norm_groups: int = setting("norm_groups", 32)
  norm_eps: float = setting("norm_eps", 1e-6)
  downsample_padding: int = setting("downsample_padding", 0)
  freq_shift: float = setting("freq_shift", 1.0)
  flip_sin_to_cos: bool = setting("flip_sin_to_cos", False)
  mid_block_scale_factor: float = setting("mid_block_scale_factor", 1.0)
  scale_by_sigma: bool = setting("scale_by_sigma", False)
  sigma_min: float = 0.01
  sigma_max: float = 50.0
  num_scales: int = 1000
  head_dim: int | None = setting("head_dim", None)
  num_classes: int = setting("num_classes", 0)
  label_dropout: float = setting("label_dropout", 0.1)
  condition_shape: tuple[int, ...] = ()
  augmented: int = 0
  condition_dropout: float = setting("condition_dropout", 0.1)
  remat: bool = setting("remat", False)
  centered: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, labels: Array, keys: Array | None = None, y: Any = None) -> Array:
    """Returns the output at noise level `labels` for y, see `conditions`. `keys` (B,) drive dropout; None: none."""
    act, channels, levels, dims = ACTIVATIONS[self.nonlinearity], x.shape[-1], len(self.ch_mult), spatial(x)
    outer = ACTIVATIONS[self.outer_nonlinearity or self.nonlinearity]
    common = {
      "init_scale": self.init_scale, "groups": self.norm_groups, "epsilon": self.norm_eps, "dtype": self.dtype
    }  # fmt: skip
    block_type = rematerialized(ResnetBlockDDPM, self.remat)
    attention_type = rematerialized(AttnBlock, self.remat)

    def attention(h, divisor=1.0):
      return attention_type(head_dim=self.head_dim, divisor=divisor, **common)(h)

    def block(h, features, divisor=1.0):
      return block_type(features, dropout=self.dropout, act=act, divisor=divisor, **common)(h, temb, keys)

    def attention_where_wanted(h, wanted=True):
      return attention(h) if wanted and h.shape[1] in self.attn_resolutions else h

    temb = self._embedding(labels, y, keys, act, outer)
    h = x if self.centered else 2 * x - 1
    h = beside(h, y, self.condition_shape, self.condition_dropout, keys)

    # Down: every activation is kept for the way up.
    skips = [conv(self.nf, 3, self.dtype, dims=dims)(h)]
    for i in range(levels):
      for _ in range(self.num_res_blocks):
        skips.append(attention_where_wanted(block(skips[-1], self.nf * self.ch_mult[i])))
      if i < levels - 1:
        half = Downsample(with_conv=self.resamp_with_conv, padding=self.downsample_padding, dtype=self.dtype)
        skips.append(half(skips[-1]))

    h = block(skips[-1], None, self.mid_block_scale_factor)
    h = attention(h, self.mid_block_scale_factor)
    h = block(h, None, self.mid_block_scale_factor)

    # Up: each block also takes the matching activation of the way down.
    for i in reversed(range(levels)):
      for j in range(self.num_res_blocks + 1):
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.nf * self.ch_mult[i])
        h = attention_where_wanted(h, self.attn_every_block or j == self.num_res_blocks)
      if i:
        h = Upsample(with_conv=self.resamp_with_conv, dtype=self.dtype)(h)

    h = outer(group_norm(h.shape[-1], self.norm_groups, self.norm_eps)(h))
    h = conv(channels, 3, self.dtype, dims=dims, init_scale=self.init_scale)(h).astype(jnp.float32)
    if not self.scale_by_sigma:
      return h
    return h / expand(sigma_of_index(labels, self.sigma_min, self.sigma_max, self.num_scales), h)

  def _embedding(self, labels, y, keys, act, outer):
    if not self.conditional:
      return None
    temb = positional_embedding(labels, self.nf, self.freq_shift, self.flip_sin_to_cos)
    temb = dense(4 * self.nf, self.dtype)(temb)
    temb = dense(4 * self.nf, self.dtype)(outer(temb))
    return act(with_conditions(self, temb, y, keys, act))
