"""A trained model: a network's parameters with all that is needed to use them, in the space of the data."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp

from score_sde import guidance
from score_sde.batch import Array, as_key, example_keys, fold
from score_sde.errors import InvalidArgument, unknown
from score_sde.guidance import Measurement, condition_on, put_in
from score_sde.likelihood import ExactLikelihood, bits_per_dim, decode, encode
from score_sde.parameterization import ScoreModel
from score_sde.sampling import AnySolver, DPMSolverSDE, UniPC, sample
from score_sde.scaling import Scaling
from score_sde.sde import SDE

# Streams of a call's key.
DEQUANTIZE, PROBE = range(2)


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """A trained score model. `score_sde.load` makes it.

  Its methods take and return data as people have it: images in [0, 1], or points. Each compiles once per shape.

  Attributes:
    model: the network as a model of the score.
    params: its parameters; other ones of the same shapes do not compile anew.
    scaling: how the network sees examples.
    shape: shape of one example.
    classes: number of classes of a class-conditional network, else 0.
    eps: the time at which sampling ends.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> network = lambda params, x, labels, keys: params * x  # the exact score of N(0, I)
    >>> points = ss.Model(ss.ScoreModel(ss.VP(), network), -1.0, ss.Scaling(levels=None), (2,))
    >>> x = points.sample(jax.random.key(0), 16)
    >>> points.log_likelihood(jax.random.key(1), x).shape
    (16,)
  """

  model: ScoreModel
  params: Any
  scaling: Scaling
  shape: tuple[int, ...]
  classes: int = 0
  eps: float | None = None

  @property
  def sde(self) -> SDE:
    """The SDE that the data is diffused by."""
    return self.model.sde

  @property
  def score(self) -> jax.tree_util.Partial:
    """The score(x, t) on the network's scale, for `score_sde.sample` and others; of classes it is score(x, t, y)."""
    return jax.tree_util.Partial(self.model.score, self.params)

  # --- samples --------------------------------------------------------------------------------------------------------

  def sample(
    self,
    key: Array,
    n: int,
    *,
    label: int | Array | None = None,
    measurement: Measurement | None = None,
    method: str = "pigdm",
    solver: AnySolver | None = None,
    steps: int | None = None,
    **options: Any,
  ) -> Array:
    """Returns `n` samples, (n, ...), images clipped to [0, 1].

    Args:
      key: one random key.
      n: how many.
      label: the class of all, or of each (n,); by default the classes in turn.
      measurement: what is known of the samples, in the space of the data, such as `guidance.inpaint(mask, y)`: one for
        all, or `n` of them.
      method: how a measurement guides: "pigdm", "tmpd", "dps", "replacement", "projection" or "ddrm".
      solver: UniPC by default, and where a measurement is given DPMSolverSDE.
      steps: of the solver; 20 by default, and 100 with a measurement.
      **options: of `score_sde.sample`: grid, eps, t_start, x_T, first.

    Raises:
      InvalidArgument: for what cannot work.
    """
    if measurement is not None:
      return self._restored(key, n, measurement, method, solver, steps, label, options)
    condition = self._labels(label, n)
    solver = UniPC() if solver is None else solver
    return self._drawn(
      key, n, self.score, condition, solver, 20 if steps is None and solver == UniPC() else steps, options
    )

  def _drawn(self, key, n, score, condition, solver, steps, options) -> Array:
    options = {"eps": self.eps} | options
    x_T = options.pop("x_T", None)
    static = tuple(sorted(options.items()))
    x = _sample(as_key(key), self.sde, score, (n, *self.shape), condition, x_T, solver, steps, static)
    return self._out(x)

  def _restored(self, key, n, measurement, method, solver, steps, label, options) -> Array:
    methods = (*guidance.METHODS, "replacement", "projection", "ddrm")
    if method not in methods:
      raise unknown("method", method, methods)
    if self.classes or label is not None:
      raise InvalidArgument(
        "measurement: a class-conditional network takes none; use an unconditional one.", "measurement"
      )
    given = self._measured(measurement, n)
    steps = 100 if steps is None else steps
    if method in guidance.METHODS:
      prior = 1.0 if self.scaling.centered or not self.scaling.is_image else 0.25
      fields = {f.name for f in dataclasses.fields(guidance.METHODS[method])}
      how = guidance.METHODS[method](sde=self.sde, **({"prior_variance": prior} if "prior_variance" in fields else {}))
      x = self._drawn(key, n, condition_on(self.score, how), given, solver or DPMSolverSDE(), steps, options)
    else:
      x = self._constrained(key, n, given, method, solver, steps, options)
    known = put_in(given, self.scaling.forward(x)) if hasattr(given.operator, "put_in") else self.scaling.forward(x)
    return self._out(known)

  def _constrained(self, key, n, given, method, solver, steps, options) -> Array:
    options = {"eps": self.eps} | options
    static = tuple(sorted(options.items()))
    x = _constrained(as_key(key), self.sde, self.score, (n, *self.shape), given, method, solver, steps, static)
    return self._out(x)

  # --- likelihoods and latents ----------------------------------------------------------------------------------------

  def log_likelihood(self, key: Array, x: Array, *, label: Any = None, **options: Any) -> Array:
    """Returns log p(x) in nats, (n,), of data x (n, ...) as it is given. NaN stands for a solve that failed.

    `options` are those of `ExactLikelihood`. The density is that of the data's own scale: [0, 1] for images.

    Raises:
      InvalidArgument: for data of another shape, options out of range.
    """
    x = self._in(x)
    keys = example_keys(as_key(key), jnp.arange(len(x)))
    found = _log_likelihood(ExactLikelihood(**options), self.sde, self.score, keys, x, self._labels(label, len(x)))
    dims = x[0].size
    jacobian = -dims * jnp.log(self.scaling.slope)  # of the scaling: d(model's data) / d(data)
    return jnp.where(found.t >= jnp.asarray(self.sde.T, found.t.dtype), found.log_p + jacobian, jnp.nan)

  def bits_per_dim(self, key: Array, images: Array, *, label: Any = None, **options: Any) -> Array:
    """Returns bits/dim, (n,), of images (n, H, W, C) in [0, 1] whose gray levels are dequantized uniformly.

    NaN stands for a solve that failed. `options` are those of `ExactLikelihood`.

    Raises:
      InvalidArgument: for data that is no image.
    """
    if self.scaling.levels is None:
      raise InvalidArgument("bits/dim are of images, whose gray levels are discrete; use log_likelihood for points.")
    levels, keys = self.scaling.levels, example_keys(as_key(key), jnp.arange(len(images)))
    raw = jnp.round(self._checked(images) * (levels - 1))
    x = dataclasses.replace(self.scaling, uniform_dequantization=True).prepare(fold(keys, DEQUANTIZE), raw)
    labels = self._labels(label, len(x))
    found = _log_likelihood(ExactLikelihood(**options), self.sde, self.score, fold(keys, PROBE), x, labels)
    log_p = jnp.where(found.t >= jnp.asarray(self.sde.T, found.t.dtype), found.log_p, jnp.nan)
    return bits_per_dim(log_p, x[0].size, levels, self.scaling.slope)

  def encode(self, x: Array, *, label: Any = None) -> Array:
    """Returns the latents of data x (n, ...), like x, by the probability-flow ODE; standard normal under VP."""
    x = self._in(x)
    return _encode(self.sde, self.score, x, self._labels(label, len(x)))

  def decode(self, latent: Array, *, label: Any = None) -> Array:
    """Returns the data (n, ...) of latents like it: the inverse of `encode`."""
    return self._out(_decode(self.sde, self.score, jnp.asarray(latent), self._labels(label, len(latent))), clip=False)

  def denoise(self, x: Array, t: float | Array, *, label: Any = None) -> Array:
    """Returns E[x_0 | x_t = x], in the space of the data, of noisy x (n, ...) on the network's scale at time `t`."""
    x = jnp.asarray(x)
    times = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return self._out(_denoise(self.model, self.params, x, times, self._labels(label, len(x))), clip=False)

  # --- between the data's space and the network's ---------------------------------------------------------------------

  def _checked(self, x: Array) -> Array:
    x = jnp.asarray(x)
    if x.shape[1:] != self.shape or x.ndim != len(self.shape) + 1:
      raise InvalidArgument(f"x of {list(x.shape)} must be (n, {', '.join(map(str, self.shape))}).", "x")
    if jnp.issubdtype(x.dtype, jnp.integer):
      raise InvalidArgument(
        f"x={x.dtype}{list(x.shape)} must be floats: divide images by {(self.scaling.levels or 256) - 1}.", "x"
      )
    return x

  def _in(self, x: Array) -> Array:
    return self.scaling.forward(self._checked(x))

  def _out(self, x: Array, clip: bool = True) -> Array:
    x = self.scaling.inverse(x)
    return jnp.clip(x, 0, 1) if clip and self.scaling.is_image else x

  def _labels(self, label: Any, n: int) -> Array | None:
    if not self.classes:
      if label is not None:
        raise InvalidArgument(f"label={label!r}, but the network knows no classes.", "label")
      return None
    labels = jnp.arange(n) % self.classes if label is None else jnp.broadcast_to(jnp.asarray(label, jnp.int32), (n,))
    if not bool(((labels >= 0) & (labels < self.classes)).all()):
      raise InvalidArgument(f"label={label!r} must lie in 0 to {self.classes - 1}.", "label")
    return labels

  def _measured(self, measurement: Measurement, n: int) -> Measurement:
    """The measurement of `n` samples on the network's scale: y = A x becomes A (x / slope + low)."""
    if len(measurement.y) not in (1, n):
      raise InvalidArgument(f"measurement: of {len(measurement.y)} images; give one, or one for each of n={n}.", "n")
    if len(measurement.y) != n:
      measurement = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), measurement)
    slope, low = self.scaling.slope, self.scaling.forward(0.0)
    offset = measurement.operator.apply(jnp.full((n, *self.shape), low))
    return dataclasses.replace(measurement, y=measurement.y / slope + offset, noise=measurement.noise / slope)


@functools.partial(jax.jit, static_argnums=(1, 3, 6, 7, 8))
def _sample(key, sde, score, shape, condition, x_T, solver, steps, options):
  return sample(key, sde, score, shape, condition=condition, x_T=x_T, solver=solver, steps=steps, **dict(options))


@functools.partial(jax.jit, static_argnums=(1, 3, 5, 6, 7, 8))
def _constrained(key, sde, score, shape, given, method, solver, steps, options):
  if method == "ddrm":  # which takes the place of any solver
    solver = guidance.DDRM().given(given)
  else:
    solver = guidance.Projection()(given)(solver or DPMSolverSDE())
  return sample(key, sde, score, shape, solver=solver, steps=steps, **dict(options))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood(likelihood, sde, score, keys, x, condition):
  return likelihood(sde, score, keys, x, condition)


@functools.partial(jax.jit, static_argnums=0)
def _encode(sde, score, x, condition):
  return encode(sde, score, x, condition=condition)[0]


@functools.partial(jax.jit, static_argnums=0)
def _decode(sde, score, latent, condition):
  return decode(sde, score, latent, condition=condition)[0]


@functools.partial(jax.jit, static_argnums=0)
def _denoise(model, params, x, t, y):
  return model.data(params, x, t, y)
