"""Operators that are not linear in the image. `posterior.DPS` can use them, through their derivative."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Batch, Measured
from score_sde.errors import InvalidArgument

_FREQUENCY, _PLACE = np.meshgrid(np.arange(8), np.arange(8), indexing="ij")
DCT = (np.cos(np.pi * (2 * _PLACE + 1) * _FREQUENCY / 16) * np.where(_FREQUENCY, 0.5, np.sqrt(1 / 8))).astype(
  np.float32
)
# JPEG's quantization steps for luminance at quality 50. ITU-T T.81, Annex K.
LUMINANCE = np.array([
  [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
  [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
  [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
])  # fmt: skip


@flax.struct.dataclass
class PhaseRetrieval:
  """Operator |F x|, the magnitudes of the Fourier transform: (B, H, W, C) -> (B, H', W', C).

  The image is first padded with zeros on each side, by `border` times its height.
  """

  border: float = flax.struct.field(pytree_node=False, default=0.5)

  def apply(self, x: Batch) -> Measured:
    pad = round(self.border * x.shape[1])
    z = jnp.fft.fft2(jnp.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0))), axes=(1, 2), norm="ortho")
    return jnp.sqrt(z.real**2 + z.imag**2 + 1e-12)  # 1e-12 makes the derivative at 0 finite


@flax.struct.dataclass
class Quantized:
  """Operator of JPEG's quantization: cosine coefficients of 8 x 8 blocks are rounded to multiples of a step.

  The step grows with frequency. The derivative of rounding is taken as one. `quality` from 1 to 100 scales the steps of
  JPEG's luminance table as in the reference encoder. `span` is the range of the pixels: 1 for images in [0, 1], 2 for
  [-1, 1].

  Raises:
    InvalidArgument: for a quality outside [1, 100].
  """

  quality: int = flax.struct.field(pytree_node=False, default=10)
  span: float = flax.struct.field(pytree_node=False, default=1.0)

  def __post_init__(self):
    if not 1 <= self.quality <= 100:
      raise InvalidArgument(f"quality={self.quality} must lie in [1, 100].", "quality")

  def apply(self, x: Batch) -> Measured:
    batch, height, width, channels = x.shape
    padded = jnp.pad(x, ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0)), mode="edge")
    blocks = padded.reshape(batch, padded.shape[1] // 8, 8, padded.shape[2] // 8, 8, channels)
    scale = 5000 / self.quality if self.quality < 50 else 200 - 2 * self.quality
    step = np.maximum(np.floor((scale * LUMINANCE + 50) / 100), 1) * self.span / 255
    step = jnp.asarray(step, x.dtype)[None, None, :, None, :, None]
    z = jnp.einsum("ui,bhiwjc,vj->bhuwvc", DCT, blocks, DCT) / step
    z = (z + jax.lax.stop_gradient(jnp.round(z) - z)) * step
    out = jnp.einsum("ui,bhuwvc,vj->bhiwjc", DCT, z, DCT).reshape(padded.shape)
    return out[:, :height, :width]
