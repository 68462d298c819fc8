"""Layers that the networks share. Class and parameter names are those of the published checkpoints.

Images are NHWC. Convolutions and products run in `dtype` (float32 or bfloat16); parameters and norms stay float32.
"""

import functools
import math
import zlib
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, fold


@jax.custom_jvp
def swish(x: Array) -> Array:
  """x sigmoid(x). Its derivative keeps nothing but x, where that of nn.swish would keep sigmoid(x) beside it."""
  return nn.swish(x)


@swish.defjvp
def _swish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  (x,), (dx,) = primals, tangents
  # Not written as in the function itself, or the compiler would find the common part and keep it from there.
  s = 0.5 * (1 + jnp.tanh(x / 2))
  return swish(x), s * (1 + x * (1 - s)) * dx


ACTIVATIONS = {
  "elu": nn.elu,
  "relu": nn.relu,
  "lrelu": lambda x: nn.leaky_relu(x, negative_slope=0.2),
  "swish": swish,
}


def default_init(scale: float = 1.0) -> Callable:
  """Uniform with variance scale / fan_avg (Ho et al. 2020); scale 0 becomes 1e-10, a last layer that starts at zero."""
  return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def over_channels(x: Array, w: Array) -> Array:
  """x @ w for (..., in) and (in, out), as a product of two matrices: so is its gradient then, without a transpose."""
  return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def _pointwise(x: Array, kernel: Array, *_, **__) -> Array:
  """The 1 x 1 convolution as a matrix product, whose gradient in the kernel is one too: faster on a CPU."""
  return over_channels(x, kernel[0, 0])


def conv(features: int, size: int, dtype: jnp.dtype, *, strides: int = 1, init_scale: float = 1.0) -> nn.Conv:
  """A size x size convolution with bias that keeps the resolution (divided by `strides`)."""
  return nn.Conv(
    features,
    (size, size),
    strides=(strides, strides),
    padding="SAME",
    dtype=dtype,
    kernel_init=default_init(init_scale),
    conv_general_dilated=_pointwise if size == strides == 1 else None,
  )


class Shortcut(nn.Module):
  """A 1 x 1 convolution, parameters as nn.Conv's, with `resample` before its bias is added.

  Products of channels and filters of pixels commute, so that a block which doubles the resolution multiplies a quarter
  of the pixels. The bias comes last: filters see zeros beyond the border, not the bias.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, resample: Callable[[Array], Array] = lambda x: x) -> Array:
    w = self.param("kernel", default_init(), (1, 1, x.shape[-1], self.features))
    b = self.param("bias", nn.initializers.zeros, (self.features,))
    return resample(over_channels(x.astype(self.dtype), w[0, 0].astype(self.dtype))) + b.astype(self.dtype)


def dense(features: int, dtype: jnp.dtype) -> nn.Dense:
  return nn.Dense(features, dtype=dtype, kernel_init=default_init())


class GroupNorm(nn.Module):
  """GroupNorm in float32 over NHWC images, parameters `scale` and `bias`. Wu & He 2018.

  Sums are taken over pixels first, channel by channel, and the norm becomes one multiplication and addition a channel:
  the same numbers as nn.GroupNorm's in half the time on a CPU.
  """

  num_groups: int
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, channels = x.shape[0], x.shape[-1]
    scale = self.param("scale", nn.initializers.ones, (channels,))
    bias = self.param("bias", nn.initializers.zeros, (channels,))
    x = x.astype(jnp.float32)
    size = channels // self.num_groups
    over_group = lambda a: jnp.repeat(jnp.mean(a.reshape(b, self.num_groups, size), axis=2), size, axis=1)
    mean, square = over_group(jnp.mean(x, axis=(1, 2))), over_group(jnp.mean(x * x, axis=(1, 2)))
    factor = scale * jax.lax.rsqrt(jnp.maximum(square - mean**2, 0) + self.epsilon)
    return x * factor[:, None, None, :] + (bias - mean * factor)[:, None, None, :]


def group_norm(channels: int, groups: int | None = None) -> GroupNorm:
  """GroupNorm with `groups` groups, or min(channels / 4, 32)."""
  return GroupNorm(groups or min(channels // 4, 32))


def attend(q: Array, k: Array, v: Array) -> Array:
  """softmax(q kᵀ / sqrt(size)) v over (B, tokens, heads, size)."""

  def plain(q, k, v):
    # XLA's CPU backend multiplies these in half the time with the heads in front.
    q, k, v = (jnp.moveaxis(a, 2, 1) for a in (q, k, v))
    weights = jax.nn.softmax((q * q.shape[-1] ** -0.5 @ jnp.swapaxes(k, 2, 3)).astype(jnp.float32))
    return jnp.moveaxis(weights.astype(v.dtype) @ v, 1, 2)

  return jax.lax.platform_dependent(q, k, v, cpu=plain, default=jax.nn.dot_product_attention)


def rematerialized(module: type[nn.Module], enabled: bool) -> type[nn.Module]:
  """`module`, whose activations are computed anew in the backward pass instead of being kept; names stay the same."""
  if not enabled:
    return module
  wrapped = nn.remat(module)
  wrapped.__name__ = module.__name__
  return wrapped


def _mix(h: Array) -> Array:
  """The last step of the hash function MurmurHash3: changes about half of the 32 bits for any that changes."""
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def cheap_bits(keys: Array, shape: tuple[int, ...]) -> Array:
  """32 random bits for each element of arrays of `shape`, one array a key: (B,) -> (B, *shape), uint32.

  Threefry gives two words a key, which number the elements through a hash. Good enough for dropout, and a tenth of
  threefry's work: in a loop's stead a few operations that are done where the bits are used, and again in the backward
  pass, so that nothing is kept in memory.
  """
  words = jax.vmap(lambda key: jax.random.bits(key, (2,)))(keys).reshape(-1, 2, *(1 for _ in shape))
  number = jnp.arange(math.prod(shape), dtype=jnp.uint32).reshape(shape)
  return _mix(_mix(number + words[:, 0]) ^ words[:, 1])


class Dropout(nn.Module):
  """Dropout with one key an example (nn.Dropout takes one a batch, which would depend on how the batch is split)."""

  rate: float

  def __call__(self, x: Array, keys: Array | None) -> Array:
    if keys is None or self.rate == 0:
      return x
    keys = fold(keys, zlib.crc32("/".join(self.path).encode()))  # each layer draws its own mask
    keep = cheap_bits(keys, x.shape[1:]) >= np.uint32(self.rate * 2**32)
    return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class GaussianFourierProjection(nn.Module):
  """[sin(2 pi W x), cos(2 pi W x)] with fixed W ~ N(0, scale²): (B,) -> (B, 2 embedding_size). Tancik et al. 2020."""

  embedding_size: int
  scale: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = self.param("W", nn.initializers.normal(stddev=self.scale), (self.embedding_size,))
    angle = 2 * jnp.pi * x[:, None] * jax.lax.stop_gradient(w)[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def positional_embedding(t: Array, dim: int) -> Array:
  """[sin(t w), cos(t w)] with w geometric from 1 to 1 / 10000: (B,) -> (B, dim). Vaswani et al. 2017."""
  half = dim // 2
  w = np.exp(-math.log(10000) * np.arange(half) / (half - 1))
  angle = t.astype(jnp.float32)[:, None] * jnp.asarray(w, jnp.float32)[None, :]
  return jnp.pad(jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1), ((0, 0), (0, dim % 2)))


def sigma_of_index(index: Array, sigma_min: float, sigma_max: float, num_scales: int) -> Array:
  """The noise levels of a discrete VE model (NCSN): geometric, `sigma_max` at index 0: (B,) -> (B,)."""
  sigmas = jnp.asarray(np.geomspace(sigma_max, sigma_min, num_scales), jnp.float32)
  return sigmas[index.astype(jnp.int32)]


class LabelEmbedding(nn.Module):
  """A learned vector a class: (B,) -> (B, features). One row more stands for "no class".

  That row is taken where `y` is None or negative, and in training (with `keys`) for a fraction `dropout` of the
  examples, so that one network learns both scores that classifier-free guidance needs (Ho & Salimans 2022).
  """

  num_classes: int
  features: int
  dropout: float = 0.1

  @nn.compact
  def __call__(self, y: Array | None, batch: int, keys: Array | None) -> Array:
    table = self.param("embedding", nn.initializers.normal(stddev=0.02), (self.num_classes + 1, self.features))
    y = jnp.full((batch,), -1) if y is None else y
    if keys is not None and self.dropout:
      keys = fold(keys, zlib.crc32("/".join(self.path).encode()))
      y = jnp.where(jax.vmap(lambda key: jax.random.bernoulli(key, self.dropout))(keys), -1, y)
    return table[jnp.where(y < 0, self.num_classes, y)]


class NIN(nn.Module):
  """A dense layer over channels, parameters `W` (in, out) and `b`."""

  features: int
  init_scale: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = self.param("W", default_init(self.init_scale), (x.shape[-1], self.features))
    b = self.param("b", nn.initializers.zeros, (self.features,))
    return over_channels(x.astype(self.dtype), w.astype(self.dtype)) + b.astype(self.dtype)


class AttnBlockpp(nn.Module):
  """Self-attention over all pixels, added to its input; heads of `head_dim` channels, or one head."""

  skip_rescale: bool = False
  init_scale: float = 0.0
  head_dim: int | None = None
  groups: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, height, width, channels = x.shape
    size = self.head_dim or channels
    h = group_norm(channels, self.groups)(x)
    q, k, v = (NIN(channels, dtype=self.dtype)(h).reshape(b, height * width, -1, size) for _ in range(3))
    h = attend(q, k, v).reshape(x.shape)
    h = NIN(channels, init_scale=self.init_scale, dtype=self.dtype)(h)
    return add(x, h, self.skip_rescale)


def add(x: Array, h: Array, rescale: bool) -> Array:
  """x + h, divided by sqrt(2) with `rescale` to keep the variance."""
  return (x + h) / math.sqrt(2) if rescale else x + h


def _fir_axis(x: Array, taps: np.ndarray, axis: int, up: int, down: int, pad: tuple[int, int]) -> Array:
  """Along one axis: insert up - 1 zeros after each entry, pad, convolve with `taps`, keep every `down`-th.

  Polyphase: output phase p reads only the taps that meet a nonzero entry, so no zero is ever multiplied.
  """
  taps = taps[::-1]  # convolution, not correlation
  n = x.shape[axis]
  length = (n * up + sum(pad) - len(taps)) // down + 1
  # Output i sums taps[j] z[i down + j - pad[0]] with z[up m] = x[m]; phases of i repeat every `up` outputs.
  phases = []
  for phase in range(up):
    count = len(range(phase, length, up))
    total = 0.0
    for j, tap in enumerate(taps):
      offset = phase * down + j - pad[0]
      if offset % up:
        continue
      first = offset // up
      last = first + (count - 1) * down  # up and down never exceed one together
      low, high = max(0, -first), max(0, last + 1 - n)
      padded = jnp.pad(x, [(low, high) if a == axis else (0, 0) for a in range(x.ndim)])
      total = total + float(tap) * jax.lax.slice_in_dim(padded, first + low, last + low + 1, down, axis)
    phases.append(total)
  if up == 1:
    return phases[0]
  width = max(p.shape[axis] for p in phases)
  phases = [jnp.pad(p, [(0, width - p.shape[a]) if a == axis else (0, 0) for a in range(x.ndim)]) for p in phases]
  shape = (*x.shape[:axis], width * up, *x.shape[axis + 1 :])
  return jax.lax.slice_in_dim(jnp.stack(phases, axis=axis + 1).reshape(shape), 0, length, 1, axis)


def fir(x: Array, kernel: tuple[int, ...], *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Array:
  """Resampling of NHWC images by a separable low-pass filter `kernel`, normalized to sum up per axis.

  StyleGAN2's upfirdn2d (Karras et al. 2020) with the outer product of `kernel` with itself; `up` or `down` is 1.
  """
  taps = np.asarray(kernel, np.float64)
  taps = taps / taps.sum() * up
  for axis in (1, 2):
    x = _fir_axis(x, taps, axis, up, down, pad)
  return x


def upsample(x: Array, kernel: tuple[int, ...] | None) -> Array:
  """Twice the resolution: FIR-filtered, or nearest neighbour where `kernel` is None."""
  if kernel is None:
    return jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
  p = len(kernel) - 2
  return fir(x, kernel, up=2, pad=((p + 1) // 2 + 1, p // 2))


def downsample(x: Array, kernel: tuple[int, ...] | None) -> Array:
  """Half the resolution: FIR-filtered, or the mean of 2 x 2 where `kernel` is None."""
  if kernel is None:
    b, height, width, channels = x.shape
    return x.reshape(b, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
  p = len(kernel) - 2
  return fir(x, kernel, down=2, pad=((p + 1) // 2, p // 2))


class Conv2d(nn.Module):
  """A 3 x 3 convolution fused with FIR up- or down-sampling (StyleGAN2), parameters `weight` (HWIO) and `bias`."""

  features: int
  kernel: tuple[int, ...]
  up: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = self.param("weight", default_init(), (3, 3, x.shape[-1], self.features)).astype(self.dtype)
    b = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
    p = len(self.kernel)
    if self.up:
      # The convolution sees the filtered image one pixel beyond the border, as the fused kernel does.
      x, stride = fir(x, self.kernel, up=2, pad=((p - 1) // 2 + 2, (p - 2) // 2 + 1)), 1
    else:
      x, stride = fir(x, self.kernel, pad=((p + 1) // 2, p // 2)), 2
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x.astype(self.dtype), w, (stride, stride), "VALID", dimension_numbers=dims) + b


class Upsample(nn.Module):
  """Twice the resolution, by FIR filter or nearest neighbour, with a 3 x 3 convolution where `with_conv`."""

  features: int | None = None
  with_conv: bool = False
  kernel: tuple[int, ...] | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    features = self.features or x.shape[-1]
    if not self.with_conv:
      return upsample(x, self.kernel)
    if self.kernel is not None:
      return Conv2d(features, self.kernel, up=True, dtype=self.dtype)(x)
    return conv(features, 3, self.dtype)(upsample(x, None))


class Downsample(nn.Module):
  """Half the resolution, by FIR filter or mean, or by a strided 3 x 3 convolution where `with_conv`."""

  features: int | None = None
  with_conv: bool = False
  kernel: tuple[int, ...] | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    features = self.features or x.shape[-1]
    if not self.with_conv:
      return downsample(x, self.kernel)
    if self.kernel is not None:
      return Conv2d(features, self.kernel, dtype=self.dtype)(x)
    return conv(features, 3, self.dtype, strides=2)(x)


class Combine(nn.Module):
  """Joins a skip image to features, after a 1 x 1 convolution, by "sum" or "cat"."""

  method: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, y: Array) -> Array:
    h = conv(y.shape[-1], 1, self.dtype)(x)
    return h + y if self.method == "sum" else jnp.concatenate([h, y], axis=-1)


class ResnetBlockDDPMpp(nn.Module):
  """Ho et al.'s residual block: GroupNorm, activation and convolution twice, the time embedding added in between."""

  features: int | None = None
  dropout: float = 0.0
  skip_rescale: bool = False
  init_scale: float = 0.0
  act: Callable = swish
  groups: int | None = None
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, temb: Array | None, keys: Array | None) -> Array:
    features = self.features or x.shape[-1]
    h = conv(features, 3, self.dtype)(self.act(group_norm(x.shape[-1], self.groups)(x)))
    if temb is not None:
      h = h + dense(features, self.dtype)(self.act(temb))[:, None, None, :]
    h = Dropout(self.dropout)(self.act(group_norm(features, self.groups)(h)), keys)
    h = conv(features, 3, self.dtype, init_scale=self.init_scale)(h)
    if x.shape[-1] != features:
      x = NIN(features, dtype=self.dtype)(x)
    return add(x, h, self.skip_rescale)


class ResnetBlockBigGANpp(nn.Module):
  """BigGAN's residual block (Brock et al. 2019), which also changes the resolution of both its branches."""

  features: int | None = None
  up: bool = False
  down: bool = False
  dropout: float = 0.0
  kernel: tuple[int, ...] | None = None
  skip_rescale: bool = True
  init_scale: float = 0.0
  act: Callable = swish
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, temb: Array | None, keys: Array | None) -> Array:
    channels = x.shape[-1]
    features = self.features or channels
    h = self.act(group_norm(channels)(x))
    resample = lambda x: x
    if self.up or self.down:
      resample = functools.partial(upsample if self.up else downsample, kernel=self.kernel)
    h = conv(features, 3, self.dtype)(resample(h))
    if temb is not None:
      h = h + dense(features, self.dtype)(self.act(temb))[:, None, None, :]
    h = Dropout(self.dropout)(self.act(group_norm(features)(h)), keys)
    h = conv(features, 3, self.dtype, init_scale=self.init_scale)(h)
    if channels != features or self.up or self.down:
      shortcut = Shortcut(features, self.dtype, name="Conv_2")
      x = shortcut(x, resample) if self.up else shortcut(resample(x))
    return add(x, h, self.skip_rescale)
