"""Layers that several networks use. Class and parameter names are those of the published checkpoints.

Images are NHWC. The layers of NCSN++, DDPM and DiT also take series (B, L, C) and volumes (B, D, H, W, C), with
kernels of as many dimensions. Convolutions and products run in `dtype` (float32 or bfloat16); parameters and norms stay
float32.
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
  """Returns x sigmoid(x). The backward pass keeps only x in memory, while that of nn.swish also keeps sigmoid(x)."""
  return nn.swish(x)


@swish.defjvp
def _swish_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
  (x,), (dx,) = primals, tangents
  # Uses tanh, unlike the function itself. Otherwise the compiler would find the common sigmoid and keep it in memory.
  s = 0.5 * (1 + jnp.tanh(x / 2))
  return swish(x), s * (1 + x * (1 - s)) * dx


ACTIVATIONS = {
  "elu": nn.elu,
  "relu": nn.relu,
  "lrelu": lambda x: nn.leaky_relu(x, negative_slope=0.2),
  "swish": swish,
  "gelu": lambda x: nn.gelu(x, approximate=False),
  "mish": jax.nn.mish,
}


def default_init(scale: float = 1.0) -> Callable:
  """Returns the initializer of Ho et al. 2020, uniform with variance scale / fan_avg.

  A scale of 0 becomes 1e-10, for a last layer that starts close to zero.
  """
  return nn.initializers.variance_scaling(scale or 1e-10, "fan_avg", "uniform")


def spatial(x: Array) -> int:
  """Returns the number of spatial dimensions of x (B, ..., C): 2 for images."""
  return x.ndim - 2


def over_channels(x: Array, w: Array) -> Array:
  """Returns x @ w for (..., in) and (in, out), as one matrix product. Its gradient then needs no transpose."""
  return (x.reshape(-1, x.shape[-1]) @ w).reshape(*x.shape[:-1], w.shape[-1])


def _pointwise(x: Array, kernel: Array, *_, **__) -> Array:
  """Computes the 1 x 1 convolution as a matrix product. The gradient of the kernel is one too: faster on a CPU."""
  return over_channels(x, kernel.reshape(kernel.shape[-2:]))


def conv(
  features: int,
  size: int,
  dtype: jnp.dtype,
  *,
  dims: int = 2,
  strides: int = 1,
  padding: str | int = "SAME",
  init_scale: float = 1.0,
) -> nn.Conv:
  """Returns a convolution with bias of `size` in each of `dims` dimensions. `strides` divides the resolution."""
  return nn.Conv(
    features,
    (size,) * dims,
    strides=(strides,) * dims,
    padding=padding,
    dtype=dtype,
    kernel_init=default_init(init_scale),
    conv_general_dilated=_pointwise if size == strides == 1 else None,
  )


class Shortcut(nn.Module):
  """1 x 1 convolution with the parameters of nn.Conv. `resample` runs before the bias is added.

  A 1 x 1 convolution and a filter over pixels commute. So a block that doubles the resolution convolves only a quarter
  of the pixels. The bias comes last, because filters must see zeros beyond the border, not the bias.
  """

  features: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array, resample: Callable[[Array], Array] = lambda x: x) -> Array:
    w = self.param("kernel", default_init(), (*(1,) * spatial(x), x.shape[-1], self.features))
    b = self.param("bias", nn.initializers.zeros, (self.features,))
    w = w.reshape(w.shape[-2:]).astype(self.dtype)
    return resample(over_channels(x.astype(self.dtype), w)) + b.astype(self.dtype)


def to_pixels(features: Array, x: Array) -> Array:
  """Adds axes of size one to features (B, C), so that they are the same at all pixels of x (B, ..., C)."""
  return features.reshape(len(features), *(1,) * spatial(x), -1)


def dense(features: int, dtype: jnp.dtype) -> nn.Dense:
  return nn.Dense(features, dtype=dtype, kernel_init=default_init())


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def normalize_groups(x: Array, scale: Array, bias: Array, groups: int, epsilon: float) -> Array:
  """Returns scale (x - mean) / sqrt(variance + epsilon) + bias, with statistics of each example's groups of channels.

  Means are taken over the pixels of each channel first. The norm is then one multiplication and one addition per entry.
  So is its derivative, by a rule of its own: half the operations of a derivative that is taken one by one.

  Args:
    x: float32 images (B, H, W, C), or any (B, ..., C).
    scale, bias: (C,).
    groups: number of groups; divides C.
    epsilon: added to the variance.
  """
  entries = x[0].size // groups
  scale, bias, sum_of, spread = _group_views(x, scale, bias, groups)
  mean, r = _group_statistics(x, sum_of, entries, epsilon)
  factor = r * scale
  return x * spread(factor) + spread(bias - mean * factor)


def _group_views(x, scale, bias, groups):
  """Returns scale and bias as (groups, size), the sum over groups (B, groups, 1), and the way back to channels."""
  b, channels, axes = x.shape[0], x.shape[-1], tuple(range(1, x.ndim - 1))
  shape = (groups, channels // groups)
  sum_of = lambda a: jnp.sum(jnp.sum(a, axes).reshape(b, *shape), 2, keepdims=True)
  spread = lambda a: a.reshape(b, *(1 for _ in axes), channels)
  return scale.reshape(shape), bias.reshape(shape), sum_of, spread


def _group_statistics(x, sum_of, entries, epsilon):
  """Returns the mean and the inverse of the standard deviation of each group."""
  mean = sum_of(x) / entries
  return mean, jax.lax.rsqrt(jnp.maximum(sum_of(x * x) / entries - mean * mean, 0) + epsilon)


@normalize_groups.defjvp
def _normalize_groups_jvp(groups, epsilon, primals, tangents):
  x, dx = primals[0], tangents[0]
  entries = x[0].size // groups
  scale, bias, sum_of, spread = _group_views(x, primals[1], primals[2], groups)
  dscale, dbias, *_ = _group_views(dx, tangents[1], tangents[2], groups)
  mean, r = _group_statistics(x, sum_of, entries, epsilon)
  factor = r * scale
  dmean = sum_of(dx)  # times entries, as the next one
  dr = (r**3 / -entries) * (sum_of(x * dx) - mean * dmean)
  dfactor = dr * scale + r * dscale
  dshift = dbias - mean * dfactor - dmean * (factor / entries)
  return x * spread(factor) + spread(bias - mean * factor), dx * spread(factor) + x * spread(dfactor) + spread(dshift)


# One function per shape serves all norms of a network: they are traced and lowered once.
_normalize_groups = jax.jit(normalize_groups, static_argnums=(3, 4))


class GroupNorm(nn.Module):
  """GroupNorm in float32 over images, series or volumes, with parameters `scale` and `bias`. Wu & He 2018.

  The result is that of nn.GroupNorm in half the time on a CPU.
  """

  num_groups: int
  epsilon: float = 1e-6

  @nn.compact
  def __call__(self, x: Array) -> Array:
    scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
    bias = self.param("bias", nn.initializers.zeros, (x.shape[-1],))
    return _normalize_groups(x.astype(jnp.float32), scale, bias, self.num_groups, self.epsilon)


def group_norm(channels: int, groups: int | None = None, epsilon: float = 1e-6) -> GroupNorm:
  """Returns a GroupNorm with `groups` groups, by default min(channels / 4, 32)."""
  return GroupNorm(groups or min(channels // 4, 32), epsilon)


def attend(q: Array, k: Array, v: Array) -> Array:
  """Returns softmax(q kᵀ / sqrt(size)) v for q, k, v (B, tokens, heads, size)."""

  def plain(q, k, v):
    # XLA's CPU backend multiplies these in half the time if the heads axis comes before the tokens.
    q, k, v = (jnp.moveaxis(a, 2, 1) for a in (q, k, v))
    weights = jax.nn.softmax((q * q.shape[-1] ** -0.5 @ jnp.swapaxes(k, 2, 3)).astype(jnp.float32))
    return jnp.moveaxis(weights.astype(v.dtype) @ v, 1, 2)

  return jax.lax.platform_dependent(q, k, v, cpu=plain, default=jax.nn.dot_product_attention)


def rematerialized(module: type[nn.Module], enabled: bool) -> type[nn.Module]:
  """Returns `module` under the same name. If `enabled`, the backward pass recomputes its activations to save memory."""
  if not enabled:
    return module
  wrapped = nn.remat(module)
  wrapped.__name__ = module.__name__
  return wrapped


def _mix(h: Array) -> Array:
  """Applies the last step of the hash MurmurHash3: a change of any bit changes about half of the 32 bits."""
  h = (h ^ (h >> 16)) * np.uint32(0x85EBCA6B)
  h = (h ^ (h >> 13)) * np.uint32(0xC2B2AE35)
  return h ^ (h >> 16)


def cheap_bits(keys: Array, shape: tuple[int, ...], stream: int = 0) -> Array:
  """Draws 32 random bits for each element of arrays of `shape`, one array per key: (B,) -> (B, *shape), uint32.

  A hash of the two words of a key, the number of the `stream` and the index of an element gives its bits. This is good
  enough for dropout, and takes a tenth of the work of threefry and of the time to compile it. The compiler fuses it
  into the code that uses the bits and recomputes it in the backward pass, so no bits are kept in memory.
  """
  words = jax.random.key_data(keys)
  first, second = (words[:, i].reshape(-1, *(1 for _ in shape)) for i in (0, -1))
  number = jax.lax.iota(jnp.uint32, math.prod(shape)).reshape(shape)
  return _mix(_mix(number + first) ^ (second ^ np.uint32(stream)))


class Dropout(nn.Module):
  """Dropout with one key per example. nn.Dropout has one key per batch: its masks depend on how the batch is split."""

  rate: float

  def __call__(self, x: Array, keys: Array | None) -> Array:
    if keys is None or self.rate == 0:
      return x
    layer = zlib.crc32("/".join(self.path).encode())  # each layer draws its own mask
    keep = cheap_bits(keys, x.shape[1:], layer) >= np.uint32(self.rate * 2**32)
    return jnp.where(keep, x / (1 - self.rate), 0).astype(x.dtype)


class GaussianFourierProjection(nn.Module):
  """Fourier features [sin(2 pi W x), cos(2 pi W x)] with fixed W ~ N(0, scale²): (B,) -> (B, 2 embedding_size).

  Tancik et al. 2020.
  """

  embedding_size: int
  scale: float

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = self.param("W", nn.initializers.normal(stddev=self.scale), (self.embedding_size,))
    angle = 2 * jnp.pi * x[:, None] * jax.lax.stop_gradient(w)[None, :]
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def positional_embedding(t: Array, dim: int, shift: float = 1.0, cos_first: bool = False) -> Array:
  """Returns [sin(t w), cos(t w)] with w geometric from 1 to 1 / 10000: (B,) -> (B, dim). Vaswani et al. 2017.

  Both halves have n = dim / 2 frequencies w_k = 10000^(-k / (n - shift)). `cos_first` swaps the halves.
  """
  half = dim // 2
  w = np.exp(-math.log(10000) * np.arange(half) / (half - shift))
  angle = t.astype(jnp.float32)[:, None] * jnp.asarray(w, jnp.float32)[None, :]
  parts = [jnp.sin(angle), jnp.cos(angle)]
  return jnp.pad(jnp.concatenate(parts[::-1] if cos_first else parts, axis=-1), ((0, 0), (0, dim % 2)))


def sigma_of_index(index: Array, sigma_min: float, sigma_max: float, num_scales: int) -> Array:
  """Returns noise levels of a discrete VE model (NCSN), geometric, with `sigma_max` at index 0: (B,) -> (B,)."""
  sigmas = jnp.asarray(np.geomspace(sigma_max, sigma_min, num_scales), jnp.float32)
  return sigmas[index.astype(jnp.int32)]


class LabelEmbedding(nn.Module):
  """Learned embedding of classes: (B,) -> (B, features). One more row means "no class".

  That row is used if `y` is None or negative, and in training (with `keys`) for a fraction `dropout` of the examples.
  One network then learns both scores for classifier-free guidance (Ho & Salimans 2022).
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
  """Dense layer over channels, with parameters `W` (in, out) and `b`."""

  features: int
  init_scale: float = 0.1
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    w = self.param("W", default_init(self.init_scale), (x.shape[-1], self.features))
    b = self.param("b", nn.initializers.zeros, (self.features,))
    return over_channels(x.astype(self.dtype), w.astype(self.dtype)) + b.astype(self.dtype)


class AttnBlockpp(nn.Module):
  """Self-attention over all pixels, added to its input. Heads have `head_dim` channels; None gives one head."""

  skip_rescale: bool = False
  init_scale: float = 0.0
  head_dim: int | None = None
  groups: int | None = None
  epsilon: float = 1e-6
  divisor: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    b, *pixels, channels = x.shape
    size = self.head_dim or channels
    h = group_norm(channels, self.groups, self.epsilon)(x)
    q, k, v = (NIN(channels, dtype=self.dtype)(h).reshape(b, math.prod(pixels), -1, size) for _ in range(3))
    h = attend(q, k, v).reshape(x.shape)
    h = NIN(channels, init_scale=self.init_scale, dtype=self.dtype)(h)
    return divided(add(x, h, self.skip_rescale), self.divisor)


def divided(x: Array, divisor: float) -> Array:
  """Returns x / divisor."""
  return x if divisor == 1 else x / divisor


def add(x: Array, h: Array, rescale: bool) -> Array:
  """Returns x + h, divided by sqrt(2) with `rescale` to keep the variance."""
  return (x + h) / math.sqrt(2) if rescale else x + h


def _fir_axis(x: Array, taps: np.ndarray, axis: int, up: int, down: int, pad: tuple[int, int]) -> Array:
  """Inserts up - 1 zeros after each entry of one axis, pads, convolves with `taps` and keeps every `down`-th entry.

  The computation is polyphase: each output phase uses only the taps at nonzero entries, so no zero is multiplied.
  """
  taps = taps[::-1]  # convolution, not correlation
  n = x.shape[axis]
  length = (n * up + sum(pad) - len(taps)) // down + 1
  count = -(-length // up)
  # Output i sums taps[j] z[i down + j - pad[0]] with z[up m] = x[m]; phases of i repeat every `up` outputs. Each is a
  # list of (tap, index of the first entry that it meets); up and down never exceed one together.
  offsets = [[(tap, phase * down + j - pad[0]) for j, tap in enumerate(taps)] for phase in range(up)]
  phases = [[(tap, o // up) for tap, o in phase if o % up == 0] for phase in offsets]
  low = max(0, *(-first for phase in phases for _, first in phase))
  high = max(0, *(first + (count - 1) * down + 1 - n for phase in phases for _, first in phase))
  padded = jnp.pad(x, [(low, high) if a == axis else (0, 0) for a in range(x.ndim)])
  met = lambda first: jax.lax.slice_in_dim(padded, first + low, first + low + (count - 1) * down + 1, down, axis)

  def filtered(phase: list[tuple[float, int]]) -> Array:
    of_tap: dict[float, list[Array]] = {}  # filters are symmetric: entries with the same tap are added first
    for tap, first in phase:
      of_tap.setdefault(float(tap), []).append(met(first))
    return functools.reduce(jnp.add, (tap * functools.reduce(jnp.add, parts) for tap, parts in of_tap.items()))

  outputs = [filtered(phase) for phase in phases]
  if up == 1:
    return outputs[0]
  shape = (*x.shape[:axis], count * up, *x.shape[axis + 1 :])
  return jax.lax.slice_in_dim(jnp.stack(outputs, axis=axis + 1).reshape(shape), 0, length, 1, axis)


def fir(x: Array, kernel: tuple[int, ...], *, up: int = 1, down: int = 1, pad: tuple[int, int]) -> Array:
  """Resamples x (B, ..., C) with a separable low-pass filter `kernel`, normalized to the sum `up` per axis.

  For images this is StyleGAN2's upfirdn2d (Karras et al. 2020) with the outer product of `kernel` and itself. `up` or
  `down` must be 1.
  """
  taps = np.asarray(kernel, np.float64)
  taps = taps / taps.sum() * up
  for axis in range(1, x.ndim - 1):
    x = _fir_axis(x, taps, axis, up, down, pad)
  return x


def upsample(x: Array, kernel: tuple[int, ...] | None) -> Array:
  """Doubles the resolution of x (B, ..., C): by FIR filter, or by nearest neighbour if `kernel` is None."""
  if kernel is None:
    return functools.reduce(lambda x, axis: jnp.repeat(x, 2, axis=axis), range(1, x.ndim - 1), x)
  p = len(kernel) - 2
  return fir(x, kernel, up=2, pad=((p + 1) // 2 + 1, p // 2))


def downsample(x: Array, kernel: tuple[int, ...] | None) -> Array:
  """Halves the resolution of x (B, ..., C): by FIR filter, or by means of 2 pixels per axis if `kernel` is None."""
  if kernel is None:
    b, *pixels, channels = x.shape
    halves = [n for size in pixels for n in (size // 2, 2)]
    return x.reshape(b, *halves, channels).mean(axis=tuple(range(2, 2 * len(pixels) + 1, 2)))
  p = len(kernel) - 2
  return fir(x, kernel, down=2, pad=((p + 1) // 2, p // 2))


# {number of spatial dimensions: axes of input, kernel and output of a convolution}.
DIMENSION_NUMBERS = {1: ("NWC", "WIO", "NWC"), 2: ("NHWC", "HWIO", "NHWC"), 3: ("NDHWC", "DHWIO", "NDHWC")}


class Conv2d(nn.Module):
  """Convolution of size 3 fused with FIR up- or down-sampling (StyleGAN2), with parameters `weight` (HWIO) and `bias`.

  Series have weights (L, in, out), volumes (D, H, W, in, out).
  """

  features: int
  kernel: tuple[int, ...]
  up: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    dims = spatial(x)
    w = self.param("weight", default_init(), (*(3,) * dims, x.shape[-1], self.features)).astype(self.dtype)
    b = self.param("bias", nn.initializers.zeros, (self.features,)).astype(self.dtype)
    p = len(self.kernel)
    if self.up:
      # The filtered image is one pixel wider on each side, as in the fused kernel.
      x, stride = fir(x, self.kernel, up=2, pad=((p - 1) // 2 + 2, (p - 2) // 2 + 1)), 1
    else:
      x, stride = fir(x, self.kernel, pad=((p + 1) // 2, p // 2)), 2
    numbers = DIMENSION_NUMBERS[dims]
    x = x.astype(self.dtype)
    return jax.lax.conv_general_dilated(x, w, (stride,) * dims, "VALID", dimension_numbers=numbers) + b


class Upsample(nn.Module):
  """Layer that doubles the resolution, by FIR filter or nearest neighbour. `with_conv` adds a convolution of size 3."""

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
    return conv(features, 3, self.dtype, dims=spatial(x))(upsample(x, None))


class Downsample(nn.Module):
  """Layer that halves the resolution, by FIR filter or mean, or by a strided convolution of size 3 if `with_conv`.

  The convolution pads one entry at the end of each axis, or with `padding` that many at both ends.
  """

  features: int | None = None
  with_conv: bool = False
  kernel: tuple[int, ...] | None = None
  padding: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array) -> Array:
    features = self.features or x.shape[-1]
    if not self.with_conv:
      return downsample(x, self.kernel)
    if self.kernel is not None:
      return Conv2d(features, self.kernel, dtype=self.dtype)(x)
    return conv(features, 3, self.dtype, dims=spatial(x), strides=2, padding=self.padding or "SAME")(x)


class Combine(nn.Module):
  """Layer that joins a skip image, after a 1 x 1 convolution, to features by "sum" or "cat"."""

  method: str
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, y: Array) -> Array:
    h = conv(y.shape[-1], 1, self.dtype, dims=spatial(x))(x)
    return h + y if self.method == "sum" else jnp.concatenate([h, y], axis=-1)


class ResnetBlockDDPMpp(nn.Module):
  """Residual block of Ho et al.: GroupNorm, activation and convolution, twice. Adds the time embedding in between.

  The embedding `temb` comes activated: one activation serves all blocks.
  """

  features: int | None = None
  dropout: float = 0.0
  skip_rescale: bool = False
  init_scale: float = 0.0
  act: Callable = swish
  groups: int | None = None
  epsilon: float = 1e-6
  divisor: float = 1.0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, temb: Array | None, keys: Array | None) -> Array:
    features, dims = self.features or x.shape[-1], spatial(x)
    h = conv(features, 3, self.dtype, dims=dims)(self.act(group_norm(x.shape[-1], self.groups, self.epsilon)(x)))
    if temb is not None:
      h = h + to_pixels(dense(features, self.dtype)(temb), h)
    h = Dropout(self.dropout)(self.act(group_norm(features, self.groups, self.epsilon)(h)), keys)
    h = conv(features, 3, self.dtype, dims=dims, init_scale=self.init_scale)(h)
    if x.shape[-1] != features:
      x = NIN(features, dtype=self.dtype)(x)
    return divided(add(x, h, self.skip_rescale), self.divisor)


class ResnetBlockBigGANpp(nn.Module):
  """Residual block of BigGAN (Brock et al. 2019). With `up` or `down` it changes the resolution of both branches.

  The embedding `temb` comes activated: one activation serves all blocks.
  """

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
    channels, dims = x.shape[-1], spatial(x)
    features = self.features or channels
    h = self.act(group_norm(channels)(x))
    resample = lambda x: x
    if self.up or self.down:
      resample = functools.partial(upsample if self.up else downsample, kernel=self.kernel)
    h = conv(features, 3, self.dtype, dims=dims)(resample(h))
    if temb is not None:
      h = h + to_pixels(dense(features, self.dtype)(temb), h)
    h = Dropout(self.dropout)(self.act(group_norm(features)(h)), keys)
    h = conv(features, 3, self.dtype, dims=dims, init_scale=self.init_scale)(h)
    if channels != features or self.up or self.down:
      shortcut = Shortcut(features, self.dtype, name="Conv_2")
      x = shortcut(x, resample) if self.up else shortcut(resample(x))
    return add(x, h, self.skip_rescale)
