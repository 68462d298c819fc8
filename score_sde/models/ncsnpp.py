"""NCSN++ and DDPM++: the U-Nets of Song et al. 2021, Appendix H, with every option of the published models."""

from typing import Any, cast

import flax.linen as nn
import jax.numpy as jnp

from score_sde.batch import Array, expand
from score_sde.models.conditions import beside, with_conditions
from score_sde.models.layers import (
  ACTIVATIONS,
  AttnBlockpp,
  Combine,
  Downsample,
  GaussianFourierProjection,
  ResnetBlockBigGANpp,
  ResnetBlockDDPMpp,
  Upsample,
  add,
  conv,
  dense,
  group_norm,
  positional_embedding,
  rematerialized,
  sigma_of_index,
  spatial,
)
from score_sde.models.options import setting


class NCSNpp(nn.Module):
  """U-Net of an image, a noise level and optionally a condition: (B, H, W, C), (B,)[, ...] -> (B, H, W, C).

  Series (B, L, C) and volumes (B, D, H, W, C) have convolutions in one and three dimensions.

  Attributes:
    nf: channels at full resolution; level i has nf * ch_mult[i].
    num_res_blocks: residual blocks per level on the way down (one more on the way up).
    attn_resolutions: heights (lengths, depths) with self-attention. It follows each block on the way down and the last
      block on the way up.
    resblock_type: "ddpm" or "biggan".
    embedding_type: "fourier" (features of log(label); the label is a noise-to-signal ratio) or "positional" (features
      of the label).
    conditional: True if the network uses the label.
    fir, fir_kernel: resample with this filter (Zhang 2019) instead of nearest neighbours and means.
    resamp_with_conv: convolve when resampling, with "ddpm" blocks.
    progressive: how outputs of all resolutions are combined: "none", "output_skip" or "residual".
    progressive_input: how the image enters every resolution: "none", "input_skip" or "residual".
    progressive_combine: how input skips are joined: "sum" or "cat".
    skip_rescale: divide sums by sqrt(2).
    scale_by_sigma: divide the output by the noise level (for score prediction).
    sigma_min, sigma_max, num_scales: the noise levels, indexed by positional labels, for scale_by_sigma.
    centered: True for images in [-1, 1]. Otherwise the input is mapped from [0, 1] to [-1, 1].
    head_dim: channels per head of attention; None for one head.
    num_classes, label_dropout: number of classes, whose embedding is added to that of time; see `LabelEmbedding`.
    condition_shape, condition_dropout: shape of a condition, a vector (K,) or an image (H, W, K); () for none. See
      `conditions`.
    augmented: numbers that describe how an example was changed, see `augmentation`; 0 for none.
    remat: do not keep activations within blocks for the backward pass: a third more work, much less memory.
    dtype: dtype of convolutions and matrix products; parameters and norms are float32.

  The other options are described in `models/options.py`.
  """

  nf: int = setting("nf", 128)
  ch_mult: tuple[int, ...] = setting("ch_mult", (1, 2, 2, 2))
  num_res_blocks: int = setting("num_res_blocks", 4)
  attn_resolutions: tuple[int, ...] = setting("attn_resolutions", (16,))
  resblock_type: str = setting("resblock_type", "biggan")
  nonlinearity: str = setting("nonlinearity", "swish")
  dropout: float = setting("dropout", 0.1)
  embedding_type: str = setting("embedding_type", "fourier")
  fourier_scale: float = setting("fourier_scale", 16.0)
  conditional: bool = setting("conditional", True)
  fir: bool = setting("fir", True)
  fir_kernel: tuple[int, ...] = setting("fir_kernel", (1, 3, 3, 1))
  resamp_with_conv: bool = setting("resamp_with_conv", True)
  progressive: str = setting("progressive", "none")
  progressive_input: str = setting("progressive_input", "residual")
  progressive_combine: str = setting("progressive_combine", "sum")
  skip_rescale: bool = setting("skip_rescale", True)
  init_scale: float = setting("init_scale", 0.0)
  scale_by_sigma: bool = setting("scale_by_sigma", True)
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
    kernel = tuple(self.fir_kernel) if self.fir else None
    common = {"skip_rescale": self.skip_rescale, "init_scale": self.init_scale, "dtype": self.dtype}

    block_type = ResnetBlockDDPMpp if self.resblock_type == "ddpm" else ResnetBlockBigGANpp
    block_type = rematerialized(block_type, self.remat)
    attention_block = rematerialized(AttnBlockpp, self.remat)

    def attention(h):
      return attention_block(head_dim=self.head_dim, **common)(h)

    def attention_where_wanted(h):
      return attention(h) if h.shape[1] in self.attn_resolutions else h

    def block(h, features=None):
      return block_type(features, dropout=self.dropout, act=act, **common)(h, temb, keys)

    def resampled_block(h, **direction):
      """Changes the resolution between two levels."""
      if self.resblock_type == "ddpm":
        layer = Upsample if "up" in direction else Downsample
        return layer(with_conv=self.resamp_with_conv, kernel=kernel, dtype=self.dtype)(h)
      resample = block_type(dropout=self.dropout, act=act, kernel=kernel, **direction, **common)
      return resample(h, temb, keys)

    def output_head(h, features, scale):
      return conv(features, 3, self.dtype, dims=dims, init_scale=scale)(act(group_norm(h.shape[-1])(h)))

    temb = self._embedding(labels, y, keys, act)
    if not self.centered:
      x = 2 * x - 1
    pyramid = x = beside(x, y, self.condition_shape, self.condition_dropout, keys)

    # Down: every activation is kept for the way up.
    skips = [conv(self.nf, 3, self.dtype, dims=dims)(x)]
    for i, mult in enumerate(self.ch_mult):
      for _ in range(self.num_res_blocks):
        skips.append(attention_where_wanted(block(skips[-1], self.nf * mult)))
      if i == levels - 1:
        break
      h = resampled_block(skips[-1], down=True)
      if self.progressive_input == "input_skip":
        pyramid = Downsample(kernel=kernel, dtype=self.dtype)(pyramid)
        h = Combine(self.progressive_combine, dtype=self.dtype)(pyramid, h)
      elif self.progressive_input == "residual":
        pyramid = Downsample(h.shape[-1], with_conv=True, kernel=kernel, dtype=self.dtype)(pyramid)
        h = pyramid = add(pyramid, h, self.skip_rescale)
      skips.append(h)

    h = block(skips[-1])
    h = attention(h)
    h = block(h)

    # Up: each block also takes the matching activation of the way down.
    output = None
    for i in reversed(range(levels)):
      for _ in range(self.num_res_blocks + 1):
        h = block(jnp.concatenate([h, skips.pop()], axis=-1), self.nf * self.ch_mult[i])
      h = attention_where_wanted(h)
      if self.progressive == "output_skip":
        if output is not None:
          output = Upsample(kernel=kernel, dtype=self.dtype)(output)
        head = output_head(h, channels, self.init_scale)
        output = head if output is None else output + head
      elif self.progressive == "residual":
        if output is None:
          output = output_head(h, h.shape[-1], 1.0)
        else:
          output = Upsample(h.shape[-1], with_conv=True, kernel=kernel, dtype=self.dtype)(output)
          h = output = add(output, h, self.skip_rescale)
      if i:
        h = resampled_block(h, up=True)

    if self.progressive != "output_skip":
      output = output_head(h, channels, self.init_scale)
    h = cast(Array, output)
    h = h.astype(jnp.float32)
    return h / expand(self._noise_level(labels), h) if self.scale_by_sigma else h

  def _embedding(self, labels, y, keys, act):
    if self.embedding_type == "fourier":
      temb = GaussianFourierProjection(self.nf, self.fourier_scale)(jnp.log(labels))
    else:
      temb = positional_embedding(labels, self.nf)
    if not self.conditional:
      return None
    temb = dense(4 * self.nf, self.dtype)(temb)
    temb = dense(4 * self.nf, self.dtype)(act(temb))
    return act(with_conditions(self, temb, y, keys, act))

  def _noise_level(self, labels):
    if self.embedding_type == "fourier":
      return labels
    return sigma_of_index(labels, self.sigma_min, self.sigma_max, self.num_scales)
