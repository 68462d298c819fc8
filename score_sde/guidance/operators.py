"""Linear operators A of measurements y = A x + noise, defined by A and its transpose, and the measurements.

An operator is a pytree. The first axis of its arrays is the batch, so each example can have its own mask or kernel. If
the SVD A = U S Vᵀ is known, an operator also has Vᵀ (`rotate`, unitary, from x to arrays like x), V (`unrotate`) and S
on that basis (`singular`, zero in unmeasured directions). The methods need only AᵀA = V S² Vᵀ, not U.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, Batch, Measured, expand, normal, sum_over_dims
from score_sde.errors import InvalidArgument

# Directions with a singular value below this share of the largest count as not measured.
SMALLEST_SINGULAR = 1e-3

# Largest relative error, in float32, with which a transpose is accepted as the adjoint.
ADJOINT_TOLERANCE = 1e-3


def inner(a: Array, b: Array) -> Array:
  """Returns Re <a, b> per example, (B,). Complex numbers count as pairs of real numbers."""
  return sum_over_dims((jnp.conj(a) * b).real)


def conjugate_gradients(product: Callable[[Array], Array], b: Array, iterations: int) -> Array:
  """Solves M v = b for each example, with `product` the map v -> M v of a symmetric positive M. Returns v like b.

  Up to rounding, it is exact after as many iterations as M has different eigenvalues. A solved example does not change.
  """

  def step(_, carry):
    v, rest, direction, size = carry
    moved = product(direction)
    length = inner(direction, moved)
    going = (length > 0) & (size > 1e-12 * first)
    a = expand(jnp.where(going, size / jnp.where(going, length, 1), 0), b)
    v, rest = v + a * direction, rest - a * moved
    new = inner(rest, rest)
    return v, rest, rest + expand(jnp.where(going, new / jnp.where(size > 0, size, 1), 0), b) * direction, new

  first = inner(b, b)
  return jax.lax.fori_loop(0, iterations, step, (jnp.zeros_like(b), b, b, first))[0]


class LinearOperator:
  """Linear operator y = A x. A subclass defines `apply` and `transpose`.

  A subclass that also defines `rotate`, `unrotate` and `singular` sets `has_svd`. y is an array (B, ...), real or
  complex. `transpose` is the adjoint under `inner`.
  """

  has_svd = False
  iterations = 50  # of conjugate gradients, used without an SVD

  def apply(self, x: Batch) -> Measured:
    """Returns A x: (B, ...) -> (B, ...)."""
    raise TypeError(f"{type(self).__name__} must define apply(x).")

  def transpose(self, y: Measured) -> Batch:
    """Returns Aᵀ y, like x."""
    raise TypeError(f"{type(self).__name__} must define transpose(y).")

  def rotate(self, x: Array) -> Array:
    """Returns Vᵀ x."""
    raise TypeError(f"{type(self).__name__} has no SVD.")

  def unrotate(self, z: Array) -> Array:
    """Returns V z."""
    raise TypeError(f"{type(self).__name__} has no SVD.")

  def singular(self, x: Array) -> Array:
    """Returns S on the basis of `rotate(x)`: nonnegative, of a shape that broadcasts with `rotate(x)`."""
    raise TypeError(f"{type(self).__name__} has no SVD.")

  def filtered(self, x: Array, f: Callable[[Array], Array]) -> Array:
    """Returns V f(S) Vᵀ x."""
    return self.unrotate(f(self.singular(x)) * self.rotate(x))

  def noise(self, keys: Array, y: Array) -> Array:
    """Draws standard normal noise like the measurement `y`. A complex entry gets two numbers."""
    if not jnp.iscomplexobj(y):
      return normal(keys, y)
    pair = normal(keys, jax.ShapeDtypeStruct((*y.shape, 2), y.real.dtype))
    return (pair[..., 0] + 1j * pair[..., 1]).astype(y.dtype)

  def solve(self, r: Array, prior: Array, noise: Array) -> Array:
    """Returns Aᵀ (prior A Aᵀ + noise I)⁻¹ r, like x, for variances `prior` > 0 and `noise` >= 0, (B,)."""
    if self.has_svd:
      x = self.transpose(r)
      # In unmeasured directions Aᵀ r is zero. Without noise, the filter would be infinite there.
      gain = lambda s: jnp.where(s > 0, 1 / jnp.where(s > 0, expand(prior, s) * s**2 + expand(noise, s), 1), 0)
      return self.filtered(x, gain)
    product = lambda v: expand(prior, v) * self.apply(self.transpose(v)) + expand(noise, v) * v
    return self.transpose(conjugate_gradients(product, r, self.iterations))

  def pinv(self, y: Array) -> Array:
    """Returns A⁺ y, the x of smallest norm among those with the smallest ‖y - A x‖."""
    one = jnp.ones(y.shape[:1], y.real.dtype)
    return self.solve(y, one, 0 * one)

  def put_in(self, x: Array, y: Array) -> Array:
    """Returns the x' nearest to `x` with A x' = y, for a noiseless measurement `y`."""
    return x + self.pinv(y - self.apply(x))


def _rotate_colours(x, signs):
  return jnp.einsum("...c,dc->...d", x, jnp.asarray(COLOURS, x.dtype))


def _unrotate_colours(z, signs):
  return jnp.einsum("...d,dc->...c", z, jnp.asarray(COLOURS, z.dtype))


def _scramble(x, signs):
  return jax.scipy.fft.dct((signs * x).reshape(len(x), -1), norm="ortho").reshape(x.shape)


def _unscramble(z, signs):
  return signs * jax.scipy.fft.idct(z.reshape(len(z), -1), norm="ortho").reshape(z.shape)


# Orthonormal basis of colours: gray, and two differences. Song et al. 2021, Appendix I.
COLOURS = np.array([[1, 1, 1], [1, -1, 0], [1, 1, -2]]) / np.sqrt([[3], [2], [6]])

# name: (Vᵀ x, V z), orthogonal or unitary.
BASES = {
  "pixels": (lambda x, signs: x, lambda z, signs: z),
  "colours": (_rotate_colours, _unrotate_colours),
  "fourier": (
    lambda x, signs: jnp.fft.fft2(x, axes=(1, 2), norm="ortho"),
    lambda z, signs: jnp.fft.ifft2(z, axes=(1, 2), norm="ortho").real,
  ),
  "random": (_scramble, _unscramble),
}


@flax.struct.dataclass
class Subsampled(LinearOperator):
  """Operator y = mask Vᵀ x: keeps some coordinates of x on an orthonormal basis and sets the others to zero.

  Attributes:
    mask: 0 or 1, (B, ...), of a shape that broadcasts with x; the batch axis is not broadcast.
    signs: -1 or 1, like x, for "random".
    basis: a name in BASES: "pixels" (inpainting), "colours" (colorization), "fourier" (complex, for MRI), "random"
      (cosine transform of the pixels with random signs, a projection on random directions).
  """

  mask: Array
  signs: Array | None = None
  basis: str = flax.struct.field(pytree_node=False, default="pixels")

  has_svd = True

  def apply(self, x: Batch) -> Measured:
    return self.mask * self.rotate(x)

  def transpose(self, y: Measured) -> Batch:
    return self.unrotate(self.mask * y)

  def rotate(self, x: Array) -> Array:
    return BASES[self.basis][0](x, self.signs)

  def unrotate(self, z: Array) -> Array:
    return BASES[self.basis][1](z, self.signs)

  def singular(self, x: Array) -> Array:
    if self.basis != "fourier":
      return self.mask
    # The coefficients of a real image come in conjugate pairs. If one of a pair is measured, S² is ½ for both.
    turned = jnp.roll(jnp.flip(self.mask, (1, 2)), (1, 1), (1, 2))
    return jnp.sqrt((self.mask + turned) / 2)

  def noise(self, keys: Array, y: Array) -> Array:
    return self.mask * super().noise(keys, y)

  def put_in(self, x: Array, y: Array) -> Array:
    if self.basis == "pixels":  # exact, without rounding errors
      return jnp.where(self.mask > 0, y, x)
    return super().put_in(x, y)


@flax.struct.dataclass
class Separable(LinearOperator):
  """Operator y = R x Cᵀ for each channel, such as pooling, resizing and Gaussian blur.

  `separable` makes it and computes the singular vectors.

  Attributes:
    rows, columns: R (B, h, H) and C (B, w, W).
    v_rows, v_columns: right singular vectors (B, H, H) and (B, W, W), as columns.
    s_rows, s_columns: singular values (B, H) and (B, W), padded with zeros.
  """

  rows: Array
  columns: Array
  v_rows: Array
  v_columns: Array
  s_rows: Array
  s_columns: Array

  has_svd = True

  def apply(self, x: Batch) -> Measured:
    return jnp.einsum("bij,bjkc,blk->bilc", self.rows, x, self.columns)

  def transpose(self, y: Measured) -> Batch:
    return jnp.einsum("bij,bilc,blk->bjkc", self.rows, y, self.columns)

  def rotate(self, x: Array) -> Array:
    return jnp.einsum("bji,bjkc,bkl->bilc", self.v_rows, x, self.v_columns)

  def unrotate(self, z: Array) -> Array:
    return jnp.einsum("bji,bilc,bkl->bjkc", self.v_rows, z, self.v_columns)

  def singular(self, x: Array) -> Array:
    return _kept((self.s_rows[:, :, None] * self.s_columns[:, None, :])[..., None])


@flax.struct.dataclass
class Convolved(LinearOperator):
  """Operator of circular convolution with a kernel, for any blur. `convolved` makes it.

  Attributes:
    transfer: the Fourier transform of the kernel, (B, H, W, 1), complex.
  """

  transfer: Array

  has_svd = True

  def apply(self, x: Batch) -> Measured:
    return self.unrotate(self.transfer * self.rotate(x))

  def transpose(self, y: Measured) -> Batch:
    return self.unrotate(jnp.conj(self.transfer) * self.rotate(y))

  def rotate(self, x: Array) -> Array:
    return BASES["fourier"][0](x, None)

  def unrotate(self, z: Array) -> Array:
    return BASES["fourier"][1](z, None)

  def singular(self, x: Array) -> Array:
    return _kept(jnp.abs(self.transfer))


@flax.struct.dataclass
class Matrix(LinearOperator):
  """Operator y = a x for vectors x (B, N), `a` (B, M, N). It has an SVD if `v` (B, N, N) and `s` (B, N) are given.

  `matrix` makes it with its SVD.
  """

  a: Array
  v: Array | None = None
  s: Array | None = None

  @property
  def has_svd(self) -> bool:
    return self.v is not None

  def apply(self, x: Batch) -> Measured:
    return jnp.einsum("bmn,bn->bm", self.a, x)

  def transpose(self, y: Measured) -> Batch:
    return jnp.einsum("bmn,bm->bn", self.a, y)

  def rotate(self, x: Array) -> Array:
    return jnp.einsum("bnk,bn->bk", self.v, x)

  def unrotate(self, z: Array) -> Array:
    return jnp.einsum("bnk,bk->bn", self.v, z)

  def singular(self, x: Array) -> Array:
    return cast(Array, self.s)


def _kept(s: Array) -> Array:
  largest = jnp.max(s.reshape(len(s), -1), axis=1)
  return jnp.where(s > SMALLEST_SINGULAR * expand(largest, s), s, 0.0)


# --- functions that make operators ----------------------------------------------------------------------------------


def mask(known: np.ndarray) -> Subsampled:
  """Returns the operator of inpainting. It measures the pixels where `known` (B, H, W, 1 or C) is 1.

  Raises:
    InvalidArgument: for values other than 0 and 1, or fewer than two axes.
  """
  known = np.asarray(known)
  if known.ndim < 2 or not np.isin(known, (0, 1)).all():
    raise InvalidArgument(f"A mask is 0 (unknown) or 1 (known) for each (B, H, W, C); got {_range(known)}.")
  return Subsampled(jnp.asarray(known, jnp.float32))


_masked = mask  # for functions with an argument named `mask`


def _range(a: np.ndarray) -> str:
  return f"shape {a.shape} with values from {a.min():.3g} to {a.max():.3g}"


def grayscale(batch: int) -> Subsampled:
  """Returns the operator of colorization. It measures the gray part (r + g + b) / sqrt(3) of pixels (B, H, W, 3)."""
  return Subsampled(jnp.tile(jnp.asarray([1.0, 0.0, 0.0]), (batch, 1, 1, 1)), basis="colours")


def fourier_lines(rng: np.random.Generator, shape: tuple[int, ...], fraction: float, centre: float = 0.08):
  """Returns the operator of MRI. It measures a random `fraction` of the lines of Fourier space.

  The lines in the lowest share `centre` of the frequencies are always measured. `shape` is (B, H, W, C), and each
  example has its own lines. Raises InvalidArgument for a fraction outside (0, 1].
  """
  _check_fraction(fraction)
  batch, height, width, _ = shape
  frequency = np.abs(np.fft.fftfreq(width))
  always = frequency <= centre / 2
  masks = np.zeros((batch, height, width, 1), np.float32)
  for i in range(batch):
    extra = max(0, round(fraction * width) - always.sum())
    others = rng.choice(np.flatnonzero(~always), min(extra, (~always).sum()), replace=False)
    masks[i, :, always | np.isin(np.arange(width), others)] = 1
  return Subsampled(jnp.asarray(masks), basis="fourier")


def random_projections(rng: np.random.Generator, shape: tuple[int, ...], fraction: float) -> Subsampled:
  """Returns the operator of compressed sensing. It projects x, of `shape` (B, ...), on random orthonormal directions.

  Their number is `fraction` times the dimensions of x. Raises InvalidArgument for a fraction outside (0, 1].
  """
  _check_fraction(fraction)
  dims = int(np.prod(shape[1:]))
  rank = rng.random((shape[0], dims)).argsort(axis=1).argsort(axis=1)
  chosen = (rank < max(1, round(fraction * dims))).astype(np.float32).reshape(shape)
  return Subsampled(jnp.asarray(chosen), jnp.asarray(rng.choice([-1.0, 1.0], shape), jnp.float32), basis="random")


def _check_fraction(fraction: float) -> None:
  if not 0 < fraction <= 1:
    raise InvalidArgument(f"fraction={fraction} must lie in (0, 1].", "fraction")


@functools.lru_cache(maxsize=64)
def _right_singular(content: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  a = np.frombuffer(content).reshape(shape)
  _, s, vt = np.linalg.svd(a)
  return vt.T, np.pad(s, (0, shape[1] - len(s)))


def _svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the right singular vectors (B, N, N) and the singular values (B, N) of `a` (B, M, N)."""
  parts = [_right_singular(np.ascontiguousarray(m, np.float64).tobytes(), m.shape) for m in a]
  vectors, values = zip(*parts, strict=True)
  return np.stack(vectors).astype(np.float32), np.stack(values).astype(np.float32)


def matrix(a: np.ndarray) -> Matrix:
  """Returns the dense operator `a` (B, M, N) on vectors (B, N), with its SVD."""
  v, s = _svd(np.asarray(a))
  return Matrix(jnp.asarray(a, jnp.float32), jnp.asarray(v), _kept(jnp.asarray(s)))


def separable(rows: np.ndarray, columns: np.ndarray) -> Separable:
  """Returns the operator R x Cᵀ for R = `rows` (B, h, H) and C = `columns` (B, w, W), with its SVD."""
  (v_rows, s_rows), (v_columns, s_columns) = _svd(rows), _svd(columns)
  return Separable(*(jnp.asarray(a, jnp.float32) for a in (rows, columns, v_rows, v_columns, s_rows, s_columns)))


Size = int | tuple[int, int]  # of images: the pixels of a side of squares, or (height, width)


def _sides(size: Size) -> tuple[int, int]:
  return (size, size) if isinstance(size, int) else size


def _per_axis(along: Callable[[int], np.ndarray], batch: int, size: Size) -> Separable:
  """Returns the operator that applies the matrix `along(n)` to rows and columns of n pixels."""
  rows, columns = (np.tile(along(n), (batch, 1, 1)) for n in _sides(size))
  return separable(rows, columns)


def average_pool(batch: int, size: Size, factor: int) -> Separable:
  """Returns the operator of super-resolution by means over `factor` x `factor` blocks of images of `size`.

  Raises:
    InvalidArgument: for a factor that is below 2 or does not divide `size`.
  """
  _check_factor(size, factor)
  return _per_axis(lambda n: np.kron(np.eye(n // factor), np.full((1, factor), 1 / factor)), batch, size)


def _check_factor(size: Size, factor: int) -> None:
  height, width = _sides(size)
  if factor < 2 or height % factor or width % factor:
    raise InvalidArgument(
      f"A factor of {factor} does not divide images of {height} x {width}; it must, and be at least 2."
    )


def bicubic(batch: int, size: Size, factor: int) -> Separable:
  """Returns the operator of super-resolution by bicubic resizing: cubic kernel (a = -1/2) scaled by `factor`.

  Pixels at the edges are repeated. Keys 1981. Raises InvalidArgument as `average_pool` does.
  """
  _check_factor(size, factor)

  def along(n: int) -> np.ndarray:
    centre = (np.arange(n // factor) + 0.5) * factor - 0.5
    taps = np.arange(-2 * factor, n + 2 * factor)
    u = np.abs(taps - centre[:, None]) / factor
    near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
    weights = np.where(u <= 1, near, np.where(u < 2, far, 0))
    return _edges_repeated(weights / weights.sum(1, keepdims=True), taps, n)

  return _per_axis(along, batch, size)


def _edges_repeated(weights: np.ndarray, taps: np.ndarray, size: int) -> np.ndarray:
  """Returns (M, size) from `weights` (M, K) at pixels `taps` (K,). Weights outside the image go to the edge pixels."""
  out = np.zeros((len(weights), size))
  np.add.at(out.T, np.clip(taps, 0, size - 1), weights.T)
  return out


def gaussian_blur(batch: int, size: Size, std: float) -> Separable:
  """Returns the operator of Gaussian blur with standard deviation `std` pixels. Pixels at the edges are repeated."""
  if not std > 0:
    raise InvalidArgument(f"std={std} must be positive.", "std")
  reach = int(np.ceil(4 * std))

  def along(n: int) -> np.ndarray:
    taps = np.arange(-reach, n + reach)
    weights = np.exp(-0.5 * ((taps - np.arange(n)[:, None]) / std) ** 2)
    return _edges_repeated(weights / weights.sum(1, keepdims=True), taps, n)

  return _per_axis(along, batch, size)


def convolved(kernels: np.ndarray, size: Size) -> Convolved:
  """Returns the operator of circular convolution of images of `size` with centred `kernels` (B, k, k).

  Raises:
    InvalidArgument: for an even k, or k > `size`.
  """
  kernels = np.asarray(kernels, np.float64)
  batch, k, _ = kernels.shape
  smallest = min(_sides(size))
  if k % 2 == 0 or k > smallest:
    raise InvalidArgument(f"A kernel must be of odd size, at most {smallest}; got {k}.")
  padded = np.zeros((batch, *_sides(size)))
  padded[:, :k, :k] = kernels
  padded = np.roll(padded, (-(k // 2), -(k // 2)), (1, 2))
  return Convolved(jnp.asarray(np.fft.fft2(padded)[..., None], jnp.complex64))


def motion_blur(angles: np.ndarray, size: Size, length: int) -> Convolved:
  """Returns the operator of motion blur over `length` pixels at `angles` (B,), in radians from the horizontal.

  Raises:
    InvalidArgument: for a length of less than 2 pixels, or more than the largest odd number that an image has.
  """
  largest = (min(_sides(size)) - 1) // 2 * 2 + 1  # a kernel has an odd size
  if not 2 <= length <= largest:
    raise InvalidArgument(f"length={length} must lie in [2, {largest}] pixels.", "length")
  k, place = length // 2 * 2 + 1, (np.arange(32 * length) + 0.5) / 32 - length / 2
  kernels = np.zeros((len(angles), k, k))
  for kernel, angle in zip(kernels, angles, strict=True):
    row, column = k // 2 - place * np.sin(angle), k // 2 + place * np.cos(angle)
    np.add.at(kernel, (np.round(row).astype(int), np.round(column).astype(int)), 1 / len(place))
  return convolved(kernels, size)


# --- measurements -------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Measurement:
  """Measurement y = A x + noise z of a batch. A pytree: samplers pass it as `condition` to a conditional score.

  Attributes:
    operator: a `LinearOperator`, or another object with `apply`.
    y: the measured values, (B, ...).
    noise: standard deviation of their noise, (B,).
  """

  operator: Any
  y: Array
  noise: Array


def measure(keys: Array, operator: Any, x: Array, noise: float) -> Measurement:
  """Measures x (B, ...) with noise of standard deviation `noise`. There is one key per example.

  Raises:
    InvalidArgument: for a negative noise, or an operator of another shape than `x`.
  """
  if not noise >= 0:
    raise InvalidArgument(f"noise={noise} must not be negative.", "noise")
  try:
    y = operator.apply(x)
  except (TypeError, ValueError) as error:
    shapes = [a.shape for a in jax.tree.leaves(operator)]
    raise InvalidArgument(
      f"{type(operator).__name__} with arrays {shapes} does not apply to x of {x.shape}."
    ) from error
  z = operator.noise(keys, y) if isinstance(operator, LinearOperator) else normal(keys, y)
  return Measurement(operator, y + noise * z, jnp.full(len(x), noise, x.dtype))


def inpaint(mask: Array, y: Array) -> Measurement:
  """Returns the measurement of images `y` (H, W, C) or (B, H, W, C) whose pixels are known where `mask` is 1.

  Args:
    mask: 0 or 1, (H, W, C) or (B, H, W, C), or with one channel for all channels; (D,) or (B, D) for points.
    y: the images or points. Known pixels have no noise. The values of unknown pixels are not used.

  Raises:
    InvalidArgument: for values other than 0 and 1, or shapes that do not fit.

  Example:
    >>> import jax.numpy as jnp, score_sde as ss
    >>> left = jnp.ones((8, 8, 1)).at[:, 4:].set(0)
    >>> ss.guidance.inpaint(left, jnp.full((8, 8, 1), 0.5)).y.shape
    (1, 8, 8, 1)
  """
  y, known = jnp.asarray(y), np.asarray(mask)
  if y.ndim in (1, 3):
    y = y[None]
  if known.ndim == y.ndim - 1:
    known = known[None]
  try:
    shape = np.broadcast_shapes(known.shape, y.shape)
  except ValueError:
    shape = None
  if shape is None or known.ndim != y.ndim or shape[1:] != y.shape[1:]:
    raise InvalidArgument(
      f"mask={list(np.shape(mask))} does not fit y of {list(y.shape)}: it needs as many dimensions (or one less, for "
      "one mask), with the sizes of y, or one channel.", "mask",
    )  # fmt: skip
  operator = _masked(np.broadcast_to(known, (shape[0], *known.shape[1:])))
  y = jnp.where(operator.mask > 0, y, 0)  # unknown pixels may be NaN
  return Measurement(operator, y, jnp.zeros(len(y), y.dtype))


def check_operator(operator: LinearOperator, shape: tuple[int, ...], key: Array) -> None:
  """Checks <A x, y> = <x, Aᵀ y> for random x of `shape` (B, ...) and y, and AᵀA = V S² Vᵀ if there is an SVD.

  Raises:
    InvalidArgument: if they differ by more than rounding. The message has the difference.
  """
  name = type(operator).__name__
  x_key, y_key = jax.random.split(key)
  x = jax.random.normal(x_key, shape)
  ax = operator.apply(x)
  y = operator.noise(jax.random.split(y_key, shape[0]), ax)
  aty = operator.transpose(y)
  if aty.shape != x.shape:
    raise InvalidArgument(f"{name}.transpose returns shape {aty.shape}, but x has shape {x.shape}.")
  size = jnp.sqrt(inner(ax, ax) * inner(y, y)) + jnp.sqrt(inner(x, x) * inner(aty, aty))
  error = float(jnp.max(jnp.abs(inner(ax, y) - inner(x, aty)) / size))
  if not error <= ADJOINT_TOLERANCE:
    raise InvalidArgument(
      f"{name}.transpose is not the adjoint of apply: <A x, y> and <x, Aᵀ y> differ by {error:.2g} of their size "
      f"(at most {ADJOINT_TOLERANCE} is rounding)."
    )
  if operator.has_svd:
    normal_x = operator.transpose(ax)
    gap = operator.filtered(x, jnp.square) - normal_x
    error = float(jnp.max(jnp.sqrt(inner(gap, gap) / jnp.maximum(inner(normal_x, normal_x), 1e-12))))
    if not error <= ADJOINT_TOLERANCE:
      raise InvalidArgument(f"{name}'s SVD is not that of apply: V S² Vᵀ x and AᵀA x differ by {error:.2g}.")
