"""NCSN (Song & Ermon 2019) and NCSNv2 (Song & Ermon 2020): RefineNets that model the score at many noise levels.

There are four to six stages of residual blocks. All but the first halve the resolution or are dilated. As many
RefineNet blocks follow (Lin et al. 2017). Each joins a stage with the output of the previous RefineNet block. In NCSN,
the noise level is an input of every norm. In NCSNv2 it is not an input: the output is divided by sigma (Technique 3).
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, expand
from score_sde.models.layers import ACTIVATIONS, sigma_of_index
from score_sde.models.options import setting


def _conv_init(fan_in: int):
  """Returns the initializer of the published networks for kernels and biases, uniform in +-1 / sqrt(fan_in)."""

  def init(key, shape, dtype=jnp.float32):
    bound = 1 / np.sqrt(fan_in)
    return jax.random.uniform(key, shape, dtype, -bound, bound)

  return init


def _conv(x: Array, features: int, size: int, dtype: jnp.dtype, *, dilation: int = 1, bias: bool = True) -> Array:
  init = _conv_init(size * size * x.shape[-1])
  return nn.Conv(
    features,
    (size, size),
    kernel_dilation=dilation,
    use_bias=bias,
    dtype=dtype,
    kernel_init=init,
    bias_init=init,
  )(x)


def _near_one(key, shape, dtype=jnp.float32):
  return 1 + 0.02 * jax.random.normal(key, shape, dtype)


def _instance_norm_plus(x, alpha, gamma, beta, unbiased):
  """Returns gamma (norm(x) + alpha norm(mean of x over pixels, across channels)) + beta.

  Song & Ermon 2019, Appendix A.
  """
  x = x.astype(jnp.float32)
  means = jnp.mean(x, axis=(1, 2), keepdims=True)
  centre = jnp.mean(means, axis=-1, keepdims=True)
  shift = (means - centre) / jnp.sqrt(jnp.var(means, axis=-1, keepdims=True, ddof=int(unbiased)) + 1e-5)
  h = (x - means) / jnp.sqrt(jnp.var(x, axis=(1, 2), keepdims=True) + 1e-5)
  return gamma * (h + shift * alpha) + beta


class InstanceNorm2dPlus(nn.Module):
  """InstanceNorm++. Unlike an instance norm, it keeps the differences between the means of the channels."""

  unbiased: bool = False

  @nn.compact
  def __call__(self, x: Array) -> Array:
    shape = (1, 1, 1, x.shape[-1])
    alpha, gamma = self.param("alpha", _near_one, shape), self.param("gamma", _near_one, shape)
    return _instance_norm_plus(x, alpha, gamma, self.param("beta", nn.initializers.zeros, shape), self.unbiased)


class ConditionalInstanceNorm2dPlus(nn.Module):
  """InstanceNorm++ with a scale, mean scale and shift for every noise level: (B, H, W, C), (B,) -> (B, H, W, C)."""

  num_scales: int
  unbiased: bool = True

  @nn.compact
  def __call__(self, x: Array, labels: Array) -> Array:
    channels = x.shape[-1]

    def init(key, shape, dtype=jnp.float32):
      return _near_one(key, shape, dtype).at[:, 2 * channels :].set(0)

    table = self.param("embedding", init, (self.num_scales, 3 * channels))
    gamma, alpha, beta = jnp.split(table[labels.astype(jnp.int32)][:, None, None, :], 3, axis=-1)
    return _instance_norm_plus(x, alpha, gamma, beta, self.unbiased)


class _Block(nn.Module):
  """Base of the blocks of these networks.

  Attributes:
    act: name of the activation.
    num_scales: number of noise levels of the conditional norms (NCSN); None for unconditional norms (NCSNv2).
    pytorch: True for the PyTorch implementation, see RefineNet.reference.
    dtype: dtype of convolutions.
  """

  act: str
  num_scales: int | None
  pytorch: bool
  dtype: jnp.dtype

  def common(self):
    return {"act": self.act, "num_scales": self.num_scales, "pytorch": self.pytorch, "dtype": self.dtype}

  def activate(self, x):
    return ACTIVATIONS[self.act](x)

  def norm(self, x, labels):
    if self.num_scales is None:
      return InstanceNorm2dPlus(self.pytorch)(x)
    return ConditionalInstanceNorm2dPlus(self.num_scales, self.pytorch)(x, labels)

  def norm_where_conditional(self, x, labels):
    """Applies the norm in NCSN. The RefineNet blocks of NCSNv2 have no norms."""
    return x if self.num_scales is None else self.norm(x, labels)


class ConvMeanPool(nn.Module):
  """Convolution, followed by the mean of 2 x 2 pixels."""

  features: int
  size: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x: Array) -> Array:
    return nn.avg_pool(_conv(x, self.features, self.size, self.dtype), (2, 2), (2, 2))


class ResidualBlock(_Block):
  """Residual block: norm, activation and convolution, twice. `down` halves the resolution, unless `dilation` > 1."""

  features: int = 0
  down: bool = False
  dilation: int = 1

  @nn.compact
  def __call__(self, x: Array, labels: Array) -> Array:
    pool, within = self.down and self.dilation == 1, x.shape[-1] if self.down else self.features
    h = _conv(self.activate(self.norm(x, labels)), within, 3, self.dtype, dilation=self.dilation)
    h = self.activate(self.norm(h, labels))
    if pool:
      return ConvMeanPool(self.features, 3, self.dtype)(h) + ConvMeanPool(self.features, 1, self.dtype)(x)
    h = _conv(h, self.features, 3, self.dtype, dilation=self.dilation)
    if self.down or x.shape[-1] != self.features:
      x = _conv(x, self.features, 3, self.dtype, dilation=self.dilation)
    return x + h


class RCUBlock(_Block):
  """Residual convolution units: `blocks` times two activations and convolutions."""

  blocks: int = 2

  @nn.compact
  def __call__(self, x: Array, labels: Array) -> Array:
    for _ in range(self.blocks):
      h = x
      for _ in range(2):
        h = self.activate(self.norm_where_conditional(h, labels))
        h = _conv(h, x.shape[-1], 3, self.dtype, bias=False)
      x = x + h
    return x


class MSFBlock(_Block):
  """Multi-resolution fusion: convolves the inputs, resizes them to `shape` and sums them."""

  features: int = 0
  interpolation: str = "bilinear"

  @nn.compact
  def __call__(self, inputs: list[Array], shape: tuple[int, int], labels: Array) -> Array:
    total = 0.0
    for x in inputs:
      h = _conv(self.norm_where_conditional(x, labels), self.features, 3, self.dtype)
      total += self._resize(h, shape)
    return jnp.asarray(total)

  def _resize(self, x, shape):
    if x.shape[1:3] == shape:
      return x
    if self.pytorch:
      rows, columns = (jnp.asarray(_aligned_bilinear(n, m), x.dtype) for n, m in zip(shape, x.shape[1:3], strict=True))
      return jnp.einsum("ih,jw,bhwc->bijc", rows, columns, x)
    method = "nearest" if self.interpolation == "nearest_neighbor" else self.interpolation
    return jax.image.resize(x, (x.shape[0], *shape, x.shape[-1]), method)


def _aligned_bilinear(out: int, size: int) -> np.ndarray:
  """Returns the matrix (out, size) of linear interpolation with aligned corners: end pixels map to end pixels."""
  place = np.linspace(0, size - 1, out)
  return np.maximum(0, 1 - np.abs(place[:, None] - np.arange(size)[None, :]))


class CRPBlock(_Block):
  """Chained residual pooling: each stage pools and convolves the output of the previous one. All outputs are summed."""

  @nn.compact
  def __call__(self, x: Array, labels: Array) -> Array:
    x = path = self.activate(x)
    for _ in range(2):
      # NCSN uses average pooling (after a norm), NCSNv2 max pooling.
      pool = nn.max_pool if self.num_scales is None else nn.avg_pool
      path = pool(self.norm_where_conditional(path, labels), (5, 5), (1, 1), "SAME")
      path = _conv(path, x.shape[-1], 3, self.dtype, bias=False)
      x = x + path
    return x


class RefineBlock(_Block):
  """RefineNet block: joins `inputs` at the resolution `shape` by residual units, fusion, pooling and residual units."""

  features: int = 0
  last: bool = False
  interpolation: str = "bilinear"

  @nn.compact
  def __call__(self, inputs: list[Array], shape: tuple[int, int], labels: Array) -> Array:
    common = self.common()
    inputs = [RCUBlock(**common)(x, labels) for x in inputs]
    h = inputs[0]
    if len(inputs) > 1:
      h = MSFBlock(features=self.features, interpolation=self.interpolation, **common)(inputs, shape, labels)
    h = CRPBlock(**common)(h, labels)
    return RCUBlock(blocks=3 if self.last else 1, **common)(h, labels)


class RefineNet(nn.Module):
  """Base of NCSN and NCSNv2: (B, H, W, C), (B,) -> (B, H, W, C). `labels` (B,) is the index of the noise level.

  Attributes:
    nf: channels at full resolution.
    stages: (channels / nf, dilation) of each stage. A stage after the first with dilation 1 halves the resolution.
    refine: channels / nf of each RefineNet block, from the last stage to the first.
    noise_norms: True if the noise level is an input of the norms.
    reference: one of two published implementations of NCSNv2. "jax" resizes by `interpolation` ("bilinear" or
      "nearest_neighbor") and uses biased variances. "pytorch" aligns corners, uses unbiased variances, and differs in
      one width of ncsnv2_64.
    scale_by_sigma: divide the output by the noise level.
    sigma_min, sigma_max, num_scales: the noise levels, geometric, the largest first.
    centered: True for images in [-1, 1]. Otherwise the input is mapped from [0, 1] to [-1, 1].
    dtype: dtype of convolutions; parameters and norms are float32.
  """

  nf: int = setting("nf", 128)
  stages: tuple[tuple[int, int], ...] = ()
  refine: tuple[int, ...] = ()
  noise_norms: bool = False
  reference: str = setting("reference", "jax")
  nonlinearity: str = setting("nonlinearity", "elu")
  interpolation: str = setting("interpolation", "bilinear")
  scale_by_sigma: bool = setting("scale_by_sigma", True)
  sigma_min: float = 0.01
  sigma_max: float = 50.0
  num_scales: int = 232
  centered: bool = False
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x: Array, labels: Array, keys: Array | None = None, y: Array | None = None) -> Array:
    """Returns the output at noise level `labels`. `keys` and `y` are unused: there is no dropout and no class."""
    pytorch = self.noise_norms or self.reference == "pytorch"
    levels = self.num_scales if self.noise_norms else None
    common = {"act": self.nonlinearity, "num_scales": levels, "pytorch": pytorch, "dtype": self.dtype}
    h = x if self.centered else 2 * x - 1
    h = _conv(h, self.nf, 3, self.dtype)

    outputs = []
    for i, (width, dilation) in enumerate(self.stages):
      for first in (True, False):
        options = {"down": first and i > 0, "dilation": dilation, "features": width * self.nf}
        h = ResidualBlock(**options, **common)(h, labels)
      outputs.append(h)

    refine = self.refine
    if pytorch and not self.noise_norms and len(refine) == 4:
      refine = (2, 2, 1, 1)
    h: Any = None
    for i, width in zip(reversed(range(len(outputs))), refine, strict=True):
      inputs = [outputs[i]] if h is None else [outputs[i], h]
      block = RefineBlock(features=width * self.nf, last=i == 0, interpolation=self.interpolation, **common)
      h = block(inputs, outputs[i].shape[1:3], labels)

    if levels is not None:
      h = ConditionalInstanceNorm2dPlus(levels)(h, labels)
    else:
      h = InstanceNorm2dPlus(pytorch)(h)
    h = ACTIVATIONS[self.nonlinearity](h)
    h = _conv(h, x.shape[-1], 3, self.dtype).astype(jnp.float32)
    if not self.scale_by_sigma:
      return h
    return h / expand(sigma_of_index(labels, self.sigma_min, self.sigma_max, self.num_scales), h)


class NCSN(RefineNet):
  """NCSN: CondRefineNet with conditional InstanceNorm++. Song & Ermon 2019, Appendix A."""

  stages: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 2), (2, 4))
  refine: tuple[int, ...] = (2, 2, 1, 1)
  noise_norms: bool = True
  scale_by_sigma: bool = setting("scale_by_sigma", False)
  num_scales: int = 10


class NCSNv2_64(RefineNet):
  """NCSNv2 for images of 32 and 64 pixels."""

  stages: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 2), (2, 4))
  refine: tuple[int, ...] = (2, 2, 2, 1)


class NCSNv2_128(RefineNet):
  """NCSNv2 for images of 96 and 128 pixels."""

  stages: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 1), (4, 2), (4, 4))
  refine: tuple[int, ...] = (4, 2, 2, 1, 1)


class NCSNv2_256(RefineNet):
  """NCSNv2 for images of 256 pixels."""

  stages: tuple[tuple[int, int], ...] = ((1, 1), (2, 1), (2, 1), (2, 1), (4, 2), (4, 4))
  refine: tuple[int, ...] = (4, 2, 2, 2, 1, 1)
