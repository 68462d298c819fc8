"""A wide ResNet that classifies noisy images, with the noise level as an input.

Zagoruyko & Komodakis 2016; Song et al. 2021, Appendix I.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array
from score_sde.models.layers import GaussianFourierProjection, swish
from score_sde.models.options import setting

_conv_init = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def _dense_init(key, shape, dtype=jnp.float32):
  """Draws weights uniformly in +-1 / sqrt(units out)."""
  bound = 1 / np.sqrt(shape[1])
  return jax.random.uniform(key, shape, dtype, -bound, bound)


def _conv(features: int, name: str, dtype: jnp.dtype, stride: int = 1) -> nn.Conv:
  return nn.Conv(features, (3, 3), (stride, stride), use_bias=False, kernel_init=_conv_init, dtype=dtype, name=name)


def _norm_relu(x: Array, name: str) -> Array:
  return nn.relu(nn.GroupNorm(num_groups=min(x.shape[-1] // 4, 32), epsilon=1e-5, name=name)(x))


class WideResnetBlock(nn.Module):
  """Two convolutions and a shortcut. If the shape changes, the shortcut pools and appends zero channels."""

  features: int
  stride: int = 1
  activate_first: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, temb: Array) -> Array:
    h = _norm_relu(x, "init_bn")
    shortcut = h if self.activate_first else x
    h = _conv(self.features, "conv1", self.dtype, self.stride)(h)
    h = h + nn.Dense(self.features, dtype=self.dtype)(temb)[:, None, None, :]
    h = _conv(self.features, "conv2", self.dtype)(_norm_relu(h, "bn_2"))
    if self.stride > 1:
      shortcut = nn.avg_pool(shortcut, (self.stride,) * 2, (self.stride,) * 2)
    return h + jnp.pad(shortcut, [(0, 0)] * 3 + [(0, self.features - shortcut.shape[-1])])


class WideResnetGroup(nn.Module):
  """Residual blocks of one resolution."""

  blocks: int
  features: int
  stride: int = 1
  activate_first: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, temb: Array) -> Array:
    for i in range(self.blocks):
      first = i == 0
      block = WideResnetBlock(
        self.features, self.stride if first else 1, self.activate_first and first, dtype=self.dtype
      )
      x = block(x, temb)
    return x


class WideResnet(nn.Module):
  """Classifier of noisy images, x (B, H, W, C) and sigma (B,) -> logits (B, num_classes).

  `sigma` is the noise-to-signal ratio sigma(t) / alpha(t), under every SDE. Each input image is standardized. With
  `with_features` it returns (features (B, D), logits). The features are the input of the last layer.

  Attributes:
    blocks_per_group: residual blocks at each of three resolutions.
    channel_multiplier: factor of the channels 16, 32, 64.
    num_classes: number of classes.
    fourier_scale: standard deviation of the frequencies in log sigma, 16 as published.
    dtype: dtype of convolutions and matrix products; parameters and norms are float32.
  """

  blocks_per_group: int = setting("blocks_per_group", 4)
  channel_multiplier: int = setting("channel_multiplier", 10)
  num_classes: int = setting("num_classes", 10)
  fourier_scale: float = setting("fourier_scale", 16.0)
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, sigma: Array, with_features: bool = False) -> Array | tuple[Array, Array]:
    dims = x.shape[1:]
    axes = tuple(range(1, x.ndim))
    spread = jnp.maximum(jnp.std(x, axis=axes, keepdims=True), 1 / np.sqrt(np.prod(dims)))
    x = (x - jnp.mean(x, axis=axes, keepdims=True)) / spread

    temb = GaussianFourierProjection(128, self.fourier_scale)(jnp.log(sigma))
    temb = nn.Dense(512, dtype=self.dtype)(temb)
    temb = swish(nn.Dense(512, dtype=self.dtype)(swish(temb)))

    x = _conv(16, "init_conv", self.dtype)(x)
    for i, (width, stride) in enumerate(((16, 1), (32, 2), (64, 2))):
      x = WideResnetGroup(
        self.blocks_per_group, width * self.channel_multiplier, stride, activate_first=i == 0, dtype=self.dtype
      )(x, temb)
    x = jnp.mean(_norm_relu(x, "pre-pool-bn"), axis=(1, 2))
    logits = nn.Dense(self.num_classes, kernel_init=_dense_init)(x.astype(jnp.float32))
    return (x, logits) if with_features else logits
