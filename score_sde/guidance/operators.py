"""What is measured of an image: y = A x + noise, for linear A as A and its transpose, and a few that are not linear.

An operator is a pytree whose arrays have the batch as their first axis: each example can have a mask or a kernel of its
own. Where the singular values of A are known, A = U S Vᵀ, an operator also gives Vᵀ (`rotate`, unitary, to arrays like
x), V (`unrotate`) and S on that basis (`singular`, zero where nothing is measured). AᵀA = V S² Vᵀ is all that the
methods need: no U.
"""

import functools
from collections.abc import Callable
from typing import Any, cast

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, expand, normal, sum_over_dims
from score_sde.errors import InvalidArgument

# Directions whose singular value is below this share of the largest are taken as not measured.
SMALLEST_SINGULAR = 1e-3

# Relative error up to which an operator's transpose counts as its adjoint, in float32.
ADJOINT_TOLERANCE = 1e-3


def inner(a: Array, b: Array) -> Array:
  """Re <a, b> of the examples, (B,): complex numbers are pairs of real ones."""
  return sum_over_dims((jnp.conj(a) * b).real)


def conjugate_gradients(product: Callable[[Array], Array], b: Array, iterations: int) -> Array:
  """Solves M v = b for each example, M symmetric and positive, given as v -> M v. Exact after as many steps as M has
  different eigenvalues, up to rounding; an example that is solved stays as it is."""

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
  """y = A x. A subclass gives `apply` and `transpose`; with `rotate`, `unrotate` and `singular` it `has_svd`.

  What it measures is an array (B, ...), real or complex; `transpose` is the adjoint under `inner`.
  """

  has_svd = False
  iterations = 50  # of conjugate gradients, without an SVD

  def apply(self, x: Array) -> Array:
    """A x: (B, ...) -> (B, ...)."""
    raise TypeError(f"{type(self).__name__} must define apply(x).")

  def transpose(self, y: Array) -> Array:
    """Aᵀ y, like x."""
    raise TypeError(f"{type(self).__name__} must define transpose(y).")

  def rotate(self, x: Array) -> Array:
    """Vᵀ x."""
    raise TypeError(f"{type(self).__name__} has no SVD.")

  def unrotate(self, z: Array) -> Array:
    """V z."""
    raise TypeError(f"{type(self).__name__} has no SVD.")

  def singular(self, x: Array) -> Array:
    """S on the basis of `rotate(x)`: not negative, of a shape that broadcasts with it."""
    raise TypeError(f"{type(self).__name__} has no SVD.")

  def filtered(self, x: Array, f: Callable[[Array], Array]) -> Array:
    """V f(S) Vᵀ x."""
    return self.unrotate(f(self.singular(x)) * self.rotate(x))

  def noise(self, keys: Array, y: Array) -> Array:
    """Standard normal noise like the measurement `y`; complex entries get two numbers each."""
    if not jnp.iscomplexobj(y):
      return normal(keys, y)
    pair = normal(keys, jax.ShapeDtypeStruct((*y.shape, 2), y.real.dtype))
    return (pair[..., 0] + 1j * pair[..., 1]).astype(y.dtype)

  def solve(self, r: Array, prior: Array, noise: Array) -> Array:
    """Aᵀ (prior A Aᵀ + noise I)⁻¹ r, like x, for variances `prior` and `noise` (B,), the first positive."""
    if self.has_svd:
      x = self.transpose(r)
      # Where nothing is measured Aᵀ r is zero, and without noise the filter would be infinite.
      gain = lambda s: jnp.where(s > 0, 1 / jnp.where(s > 0, expand(prior, s) * s**2 + expand(noise, s), 1), 0)
      return self.filtered(x, gain)
    product = lambda v: expand(prior, v) * self.apply(self.transpose(v)) + expand(noise, v) * v
    return self.transpose(conjugate_gradients(product, r, self.iterations))

  def pinv(self, y: Array) -> Array:
    """A⁺ y, the smallest x that explains y best."""
    one = jnp.ones(y.shape[:1], y.real.dtype)
    return self.solve(y, one, 0 * one)

  def put_in(self, x: Array, y: Array) -> Array:
    """The x' nearest to `x` with A x' = y: what is known without noise."""
    return x + self.pinv(y - self.apply(x))


def _rotate_colours(x, signs):
  return jnp.einsum("...c,dc->...d", x, jnp.asarray(COLOURS, x.dtype))


def _unrotate_colours(z, signs):
  return jnp.einsum("...d,dc->...c", z, jnp.asarray(COLOURS, z.dtype))


def _scramble(x, signs):
  return jax.scipy.fft.dct((signs * x).reshape(len(x), -1), norm="ortho").reshape(x.shape)


def _unscramble(z, signs):
  return signs * jax.scipy.fft.idct(z.reshape(len(z), -1), norm="ortho").reshape(z.shape)


# Orthonormal colours: gray, and two differences. Song et al. 2021, Appendix I.
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
  """Some coordinates of x on an orthonormal basis, zero elsewhere: y = mask Vᵀ x.

  Attributes:
    mask: 0 or 1, like x (B, ...) or of a shape that broadcasts with it, the batch spelled out.
    signs: -1 or 1, like x, for "random".
    basis: a name in BASES: "pixels" (inpainting), "colours" (colorization), "fourier" (of an image, complex: MRI),
      "random" (cosines of the pixels with random signs: projections on random directions).
  """

  mask: Array
  signs: Array | None = None
  basis: str = flax.struct.field(pytree_node=False, default="pixels")

  has_svd = True

  def apply(self, x: Array) -> Array:
    return self.mask * self.rotate(x)

  def transpose(self, y: Array) -> Array:
    return self.unrotate(self.mask * y)

  def rotate(self, x: Array) -> Array:
    return BASES[self.basis][0](x, self.signs)

  def unrotate(self, z: Array) -> Array:
    return BASES[self.basis][1](z, self.signs)

  def singular(self, x: Array) -> Array:
    if self.basis != "fourier":
      return self.mask
    # The coefficients of a real image come in conjugate pairs: who measures one of a pair knows half of both.
    turned = jnp.roll(jnp.flip(self.mask, (1, 2)), (1, 1), (1, 2))
    return jnp.sqrt((self.mask + turned) / 2)

  def noise(self, keys: Array, y: Array) -> Array:
    return self.mask * super().noise(keys, y)

  def put_in(self, x: Array, y: Array) -> Array:
    if self.basis == "pixels":  # to the last bit
      return jnp.where(self.mask > 0, y, x)
    return super().put_in(x, y)


@flax.struct.dataclass
class Separable(LinearOperator):
  """A matrix along the rows and one along the columns of each channel: y = R x Cᵀ. Pooling, resizing, Gaussian blur.

  Made by `separable`, which computes the singular vectors.

  Attributes:
    rows, columns: R (B, h, H) and C (B, w, W).
    v_rows, v_columns: right singular vectors (B, H, H) and (B, W, W), as columns.
    s_rows, s_columns: singular values (B, H) and (B, W), zeros filled in.
  """

  rows: Array
  columns: Array
  v_rows: Array
  v_columns: Array
  s_rows: Array
  s_columns: Array

  has_svd = True

  def apply(self, x: Array) -> Array:
    return jnp.einsum("bij,bjkc,blk->bilc", self.rows, x, self.columns)

  def transpose(self, y: Array) -> Array:
    return jnp.einsum("bij,bilc,blk->bjkc", self.rows, y, self.columns)

  def rotate(self, x: Array) -> Array:
    return jnp.einsum("bji,bjkc,bkl->bilc", self.v_rows, x, self.v_columns)

  def unrotate(self, z: Array) -> Array:
    return jnp.einsum("bji,bilc,bkl->bjkc", self.v_rows, z, self.v_columns)

  def singular(self, x: Array) -> Array:
    return _kept((self.s_rows[:, :, None] * self.s_columns[:, None, :])[..., None])


@flax.struct.dataclass
class Convolved(LinearOperator):
  """Convolution with a kernel on the torus: what leaves on one side comes in on the other. Any blur.

  Attributes:
    transfer: the Fourier transform of the kernel, (B, H, W, 1), complex; made by `convolved`.
  """

  transfer: Array

  has_svd = True

  def apply(self, x: Array) -> Array:
    return self.unrotate(self.transfer * self.rotate(x))

  def transpose(self, y: Array) -> Array:
    return self.unrotate(jnp.conj(self.transfer) * self.rotate(y))

  def rotate(self, x: Array) -> Array:
    return BASES["fourier"][0](x, None)

  def unrotate(self, z: Array) -> Array:
    return BASES["fourier"][1](z, None)

  def singular(self, x: Array) -> Array:
    return _kept(jnp.abs(self.transfer))


@flax.struct.dataclass
class Matrix(LinearOperator):
  """y = a x for vectors x (B, N), `a` (B, M, N). With `v` (B, N, N) and `s` (B, N), as `matrix` makes them, an SVD."""

  a: Array
  v: Array | None = None
  s: Array | None = None

  @property
  def has_svd(self) -> bool:
    return self.v is not None

  def apply(self, x: Array) -> Array:
    return jnp.einsum("bmn,bn->bm", self.a, x)

  def transpose(self, y: Array) -> Array:
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


# --- makers -------------------------------------------------------------------------------------------------------


def mask(known: np.ndarray) -> Subsampled:
  """Inpainting: the pixels where `known` (B, H, W, 1 or C) is 1 are measured.

  Raises:
    InvalidArgument: for other values than 0 and 1, or another number of axes.
  """
  known = np.asarray(known)
  if known.ndim < 2 or not np.isin(known, (0, 1)).all():
    raise InvalidArgument(f"A mask is 0 (unknown) or 1 (known) for each (B, H, W, C); got {_range(known)}.")
  return Subsampled(jnp.asarray(known, jnp.float32))


_masked = mask  # for functions that have an argument of this name


def _range(a: np.ndarray) -> str:
  return f"shape {a.shape} with values from {a.min():.3g} to {a.max():.3g}"


def grayscale(batch: int) -> Subsampled:
  """Colorization: of each pixel (B, H, W, 3) the gray part (r + g + b) / sqrt(3) is measured."""
  return Subsampled(jnp.tile(jnp.asarray([1.0, 0.0, 0.0]), (batch, 1, 1, 1)), basis="colours")


def fourier_lines(rng: np.random.Generator, shape: tuple[int, ...], fraction: float, centre: float = 0.08):
  """MRI: a random `fraction` of the lines of Fourier space, those of the lowest `centre` of frequencies always.

  Args:
    shape: (B, H, W, C); every example gets lines of its own.
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
  """Compressed sensing: x (B, ...) on a `fraction` as many random orthonormal directions as it has entries."""
  _check_fraction(fraction)
  dims = int(np.prod(shape[1:]))
  rank = rng.random((shape[0], dims)).argsort(axis=1).argsort(axis=1)
  chosen = (rank < max(1, round(fraction * dims))).astype(np.float32).reshape(shape)
  return Subsampled(jnp.asarray(chosen), jnp.asarray(rng.choice([-1.0, 1.0], shape), jnp.float32), basis="random")


def _check_fraction(fraction: float) -> None:
  if not 0 < fraction <= 1:
    raise InvalidArgument(f"The measured fraction must lie in (0, 1], got {fraction}.")


@functools.lru_cache(maxsize=64)
def _right_singular(content: bytes, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
  a = np.frombuffer(content).reshape(shape)
  _, s, vt = np.linalg.svd(a)
  return vt.T, np.pad(s, (0, shape[1] - len(s)))


def _svd(a: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Right singular vectors (B, N, N) and values (B, N) of `a` (B, M, N)."""
  parts = [_right_singular(np.ascontiguousarray(m, np.float64).tobytes(), m.shape) for m in a]
  vectors, values = zip(*parts, strict=True)
  return np.stack(vectors).astype(np.float32), np.stack(values).astype(np.float32)


def matrix(a: np.ndarray) -> Matrix:
  """A dense operator on vectors, `a` (B, M, N), with its SVD."""
  v, s = _svd(np.asarray(a))
  return Matrix(jnp.asarray(a, jnp.float32), jnp.asarray(v), _kept(jnp.asarray(s)))


def separable(rows: np.ndarray, columns: np.ndarray) -> Separable:
  """R x Cᵀ, `rows` (B, h, H) and `columns` (B, w, W), with their SVDs."""
  (v_rows, s_rows), (v_columns, s_columns) = _svd(rows), _svd(columns)
  return Separable(*(jnp.asarray(a, jnp.float32) for a in (rows, columns, v_rows, v_columns, s_rows, s_columns)))


def _same_both_ways(one: np.ndarray, batch: int) -> Separable:
  rows = np.tile(one, (batch, 1, 1))
  return separable(rows, rows)


def average_pool(batch: int, size: int, factor: int) -> Separable:
  """Super-resolution: the mean of each `factor` x `factor` block of square images.

  Raises:
    InvalidArgument: where the blocks do not fit.
  """
  _check_factor(size, factor)
  return _same_both_ways(np.kron(np.eye(size // factor), np.full((1, factor), 1 / factor)), batch)


def _check_factor(size: int, factor: int) -> None:
  if factor < 2 or size % factor:
    raise InvalidArgument(
      f"A factor of {factor} does not divide images of {size} x {size}; it must, and be at least 2."
    )


def bicubic(batch: int, size: int, factor: int) -> Separable:
  """Super-resolution: resized by the cubic kernel (a = -1/2) widened `factor` times, edges repeated. Keys 1981."""
  _check_factor(size, factor)
  centre = (np.arange(size // factor) + 0.5) * factor - 0.5
  taps = np.arange(-2 * factor, size + 2 * factor)
  u = np.abs(taps - centre[:, None]) / factor
  near, far = 1.5 * u**3 - 2.5 * u**2 + 1, -0.5 * u**3 + 2.5 * u**2 - 4 * u + 2
  weights = np.where(u <= 1, near, np.where(u < 2, far, 0))
  return _same_both_ways(_onto(weights / weights.sum(1, keepdims=True), taps, size), batch)


def _onto(weights: np.ndarray, taps: np.ndarray, size: int) -> np.ndarray:
  """Weights of places `taps` (K,) as a matrix (M, size): what lies outside is the nearest pixel of the edge."""
  out = np.zeros((len(weights), size))
  np.add.at(out.T, np.clip(taps, 0, size - 1), weights.T)
  return out


def gaussian_blur(batch: int, size: int, std: float) -> Separable:
  """Deblurring: a Gaussian of standard deviation `std` pixels, edges repeated."""
  if not std > 0:
    raise InvalidArgument(f"The blur's standard deviation must be positive, got {std}.")
  reach = int(np.ceil(4 * std))
  taps = np.arange(-reach, size + reach)
  weights = np.exp(-0.5 * ((taps - np.arange(size)[:, None]) / std) ** 2)
  return _same_both_ways(_onto(weights / weights.sum(1, keepdims=True), taps, size), batch)


def convolved(kernels: np.ndarray, size: int) -> Convolved:
  """Circular convolution of images of `size` x `size` with `kernels` (B, k, k), centred, k odd and at most `size`."""
  kernels = np.asarray(kernels, np.float64)
  batch, k, _ = kernels.shape
  if k % 2 == 0 or k > size:
    raise InvalidArgument(f"A kernel must be of odd size, at most {size}; got {k}.")
  padded = np.zeros((batch, size, size))
  padded[:, :k, :k] = kernels
  padded = np.roll(padded, (-(k // 2), -(k // 2)), (1, 2))
  return Convolved(jnp.asarray(np.fft.fft2(padded)[..., None], jnp.complex64))


def motion_blur(angles: np.ndarray, size: int, length: int) -> Convolved:
  """Deblurring: the camera moved by `length` pixels at `angles` (B,), in radians from the horizontal."""
  if not 2 <= length <= size:
    raise InvalidArgument(f"The motion's length must lie between 2 and {size} pixels, got {length}.")
  k, place = length // 2 * 2 + 1, (np.arange(32 * length) + 0.5) / 32 - length / 2
  kernels = np.zeros((len(angles), k, k))
  for kernel, angle in zip(kernels, angles, strict=True):
    row, column = k // 2 - place * np.sin(angle), k // 2 + place * np.cos(angle)
    np.add.at(kernel, (np.round(row).astype(int), np.round(column).astype(int)), 1 / len(place))
  return convolved(kernels, size)


# --- measurements -------------------------------------------------------------------------------------------------


@flax.struct.dataclass
class Measurement:
  """What is known of a batch: y = A x + noise z. A pytree, the `condition` that samplers hand to a conditional score.

  Attributes:
    operator: linear, or anything with `apply`.
    y: what was measured, (B, ...).
    noise: standard deviation of its noise, (B,).
  """

  operator: Any
  y: Array
  noise: Array


def measure(keys: Array, operator: Any, x: Array, noise: float) -> Measurement:
  """Measures x (B, ...) with noise of standard deviation `noise`, one key an example.

  Raises:
    InvalidArgument: for a negative noise, or an operator of another shape than `x`.
  """
  if not noise >= 0:
    raise InvalidArgument(f"The noise of a measurement must not be negative, got {noise}.")
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
  """Returns the measurement of images `y` (H, W, C) or (B, H, W, C) of which the pixels are known where `mask` is 1.

  Args:
    mask: 0 or 1, (H, W, C) or (B, H, W, C), or with one channel for all; points (D,) or (B, D) have a mask, too.
    y: what is known; its other pixels do not matter. Known pixels are exact.

  Raises:
    InvalidArgument: for other values than 0 and 1, or shapes that do not fit.

  Example:
    >>> import jax.numpy as jnp, score_sde as ss
    >>> left = jnp.ones((8, 8, 1)).at[:, 4:].set(0)
    >>> ss.guidance.inpaint(left, jnp.full((8, 8, 1), 0.5)).y.shape
    (1, 8, 8, 1)
  """
  y, known = jnp.asarray(y), np.asarray(mask)
  if y.ndim in (1, 3):
    y = y[None]
  if known.ndim < y.ndim:
    known = np.broadcast_to(known, (len(y), *known.shape))
  operator = _masked(known)
  try:
    return Measurement(operator, operator.mask * y, jnp.zeros(len(y), y.dtype))
  except (TypeError, ValueError) as error:
    raise InvalidArgument(f"mask={list(np.shape(mask))} does not fit y of {list(y.shape)}.", "mask") from error


def check_operator(operator: LinearOperator, shape: tuple[int, ...], key: Array) -> None:
  """Tests <A x, y> = <x, Aᵀ y> for random x of `shape` (B, ...) and y, and AᵀA = V S² Vᵀ where there is an SVD.

  Raises:
    InvalidArgument: where they differ by more than rounding, with by how much.
  """
  name = type(operator).__name__
  x_key, y_key = jax.random.split(key)
  x = jax.random.normal(x_key, shape)
  ax = operator.apply(x)
  y = operator.noise(jax.random.split(y_key, shape[0]), ax)
  aty = operator.transpose(y)
  if aty.shape != x.shape:
    raise InvalidArgument(f"{name}.transpose gives {aty.shape} where x has {x.shape}.")
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
