"""A trained model: a network, its parameters and the scaling of the data, with methods that use them."""

import dataclasses
import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from score_sde import guidance
from score_sde.batch import Array, as_key, example_keys, expand, fold
from score_sde.errors import InvalidArgument, unknown
from score_sde.guidance import DDRM, LinearOperator, Measurement, Projection, condition_on, put_in
from score_sde.guidance.posterior import Posterior
from score_sde.likelihood import ExactLikelihood, bits_per_dim, decode, encode
from score_sde.parameterization import ConsistencyModel, ScoreModel
from score_sde.sampling import (
  DDPM,
  NCSN,
  AnySolver,
  Consistency,
  DPMSolverSDE,
  FewStep,
  Solver,
  TimeGrid,
  UniPC,
  make_grid,
  sample,
)
from score_sde.sampling.sample import check_parts
from score_sde.scaling import Scaling
from score_sde.sde import SDE

# Streams of a call's key.
DEQUANTIZE, PROBE = range(2)

# Default number of steps with a measurement.
MEASURED_STEPS = 100


@dataclasses.dataclass(frozen=True, eq=False)
class Model:
  """Trained score model. `score_sde.load` makes it.

  Its methods take and return images in [0, 1], or points, and scale them for the network. Each compiles once per shape.

  Attributes:
    model: the network as a model of the score.
    params: parameters of the network. New values of the same shapes do not recompile.
    scaling: the scaling of the data for the network.
    shape: shape of one example.
    classes: number of classes of a class-conditional network, else 0.
    eps: the time at which sampling ends.
    condition_shape: shape of the condition of an example, for a network with conditions, else ().
    condition_scaling: the scaling of conditions for the network.
    optional: which of "label" and "condition" may be left out, because the network was also trained without them.
    solver, steps, grid: the sampler of a model that was trained for certain noise levels only; None for the defaults
      of `sample`.
    likelihood: the likelihood, with the default options of `log_likelihood` and `bits_per_dim`.
    jumps: whether the network was distilled progressively. Then its D is the end of a step of its own sampler, and not
      E[x_0 | x_t]: it has no likelihood and no latents, and measurements use "replacement" or "projection".

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> network = lambda params, x, labels, keys: params * x  # the exact score of N(0, I)
    >>> points = ss.Model(ss.ScoreModel(ss.VP(), network), -1.0, ss.Scaling(levels=None), (2,))
    >>> x = points.sample(jax.random.key(0), 16)
    >>> points.log_likelihood(jax.random.key(1), x).shape
    (16,)
  """

  model: ScoreModel
  params: Any = dataclasses.field(repr=False)  # a notebook would print millions of numbers
  scaling: Scaling
  shape: tuple[int, ...]
  classes: int = 0
  eps: float | None = None
  condition_shape: tuple[int, ...] = ()
  condition_scaling: Scaling = Scaling(levels=None)
  optional: tuple[str, ...] = ()
  solver: AnySolver | None = None
  steps: int | None = None
  grid: str | None = None
  likelihood: ExactLikelihood = ExactLikelihood()
  jumps: bool = False

  @property
  def sde(self) -> SDE:
    """Returns the SDE that diffuses the data."""
    return self.model.sde

  @property
  def score(self) -> jax.tree_util.Partial:
    """Returns score(x, t) on the network's scale, for functions such as `score_sde.sample`; also takes classes y."""
    return jax.tree_util.Partial(self.model.score, self.params)

  # --- samples --------------------------------------------------------------------------------------------------------

  def sample(
    self,
    key: Array,
    n: int,
    *,
    label: int | Array | None = None,
    condition: Any = None,
    measurement: Measurement | None = None,
    method: str | Posterior | Projection | DDRM | None = None,
    solver: AnySolver | None = None,
    steps: int | None = None,
    **options: Any,
  ) -> Array:
    """Draws `n` samples, (n, ...). Images are clipped to [0, 1].

    Args:
      key: one random key.
      n: number of samples.
      label: one class for all samples, or one per sample, (n,). By default sample i has class i modulo `classes`.
      condition: one condition for all samples, or one per sample, (n, ...), in the units of the data's conditions (0 to
        255 for uint8); None for samples without, if the network may go without.
      measurement: a measurement of the samples, on the scale of the data, such as `guidance.inpaint(mask, y)`: one for
        all samples, or `n` of them.
      method: the method that uses the measurement: "pigdm" (the default), "tmpd", "dps", "replacement" (the default of
        a model without a score), "projection" or "ddrm"; or one with options, such as
        `guidance.Projection(strength=0.5)`.
      solver: by default that of the model, if it has one, or UniPC, or DPMSolverSDE with a measurement; always
        Consistency for a consistency model.
      steps: steps of the solver; by default those of the model, if it has its own sampler, or those of the solver; 100
        with a measurement and a solver for few steps.
      **options: options of `score_sde.sample`: grid, eps, t_start, x_T, first.

    Raises:
      InvalidArgument: for an unknown method, a label that does not exist, a condition that the network needs and does
        not get, a measurement for a network that needs a class or condition, or a solver that cannot run with the other
        arguments.
    """
    check_parts(self.sde, solver)
    if method is not None and measurement is None:
      raise InvalidArgument(f"method={method!r} uses a measurement, and there is none: give one.", "method")
    if measurement is not None:
      return self._restored(key, n, measurement, method, solver, steps, label, condition, options)
    solver, steps, options = self._chosen(solver, steps, options)
    y = self._given(label, condition, n, in_turn=True)
    return self._out(self._drawn(key, n, self.score, y, solver, steps, options))

  def _chosen(self, solver, steps, options, measured=False):
    """Returns (solver, steps, options) of a call, with those of the model for those that it leaves open."""
    if self._is_consistency:
      return self._chosen_consistency(solver, steps, options, measured)
    own = self.solver
    if own is not None and solver in (None, own):
      options = ({} if self.grid is None else {"grid": self.grid}) | options
      return own, self.steps if steps is None else steps, options
    if solver is None:
      solver = DPMSolverSDE() if measured else UniPC()
    if steps is None and measured and isinstance(solver, FewStep):
      steps = MEASURED_STEPS
    return solver, steps, options

  def _chosen_consistency(self, solver, steps, options, measured):
    if not isinstance(solver, Consistency | None):
      raise InvalidArgument(
        f"solver={type(solver).__name__} needs a score, and this is a consistency model: use Consistency.", "solver"
      )
    own = self._consistency
    if options.get("t_start") is not None or isinstance(options.get("grid"), TimeGrid):
      own = Consistency()  # the call has a start of its own
    if steps is None and measured and not (solver and solver.sigmas):
      steps = MEASURED_STEPS
    if solver is None:
      solver = own if steps in (None, len(own.sigmas) + 1) else dataclasses.replace(own, sigmas=())
    elif solver.start_sigma is None:
      solver = dataclasses.replace(solver, start_sigma=own.start_sigma)
    return solver, len(solver.sigmas) + 1 if steps is None else steps, options

  def _drawn(self, key, n, score, condition, solver, steps, options, constraint=None) -> Array:
    options = {"eps": self.eps} | options
    x_T = options.pop("x_T", None)
    static = solver, steps, tuple(sorted(options.items()))
    arguments = as_key(key), self.sde, score, (n, *self.shape), condition, x_T
    return _sample(*arguments, *static) if constraint is None else _constrained(*arguments, constraint, *static)

  def _restored(self, key, n, measurement, method, solver, steps, label, condition, options) -> Array:
    method = self._method(method)
    if label is not None or condition is not None or not self._goes_without:
      raise InvalidArgument(
        "measurement: it cannot be combined with a label or condition, and the network must have neither, or be "
        "trained with model.label_dropout and model.condition_dropout.", "measurement",
      )  # fmt: skip
    on_data, given = self._measured(measurement, n)
    if isinstance(method, DDRM):
      if solver is not None:
        raise InvalidArgument("method='ddrm' is a solver itself: leave solver unset.", "method", "solver")
      steps = MEASURED_STEPS if steps is None else steps
    else:
      if isinstance(method, Projection) and not self._takes_constraints:
        solver = solver or DPMSolverSDE()
      solver, steps, options = self._chosen(solver, steps, options, measured=True)
    if isinstance(method, Projection | DDRM):
      x = self._drawn(key, n, self.score, given, solver, steps, options, constraint=method)
    else:
      x = self._drawn(key, n, condition_on(self.score, method), given, solver, steps, options)
    x = self.scaling.inverse(x)
    return self._clipped(put_in(on_data, x) if hasattr(on_data.operator, "put_in") else x)

  def _method(self, method: Any) -> Any:
    """Returns the method of measurements that is called `method`."""
    method = method or ("pigdm" if self._has_score else "replacement")
    if isinstance(method, str):
      constraints = {"replacement": Projection(), "projection": Projection(), "ddrm": DDRM()}
      names = (*guidance.METHODS, *constraints)
      if method not in names:
        raise unknown("method", method, names)
      if method in constraints:
        method = constraints[method]
      else:
        make = guidance.METHODS[method]
        prior = 1.0 if self.scaling.centered or not self.scaling.has_levels else 0.25
        takes = "prior_variance" in {f.name for f in dataclasses.fields(make)}
        method = make(sde=self.sde, **({"prior_variance": prior} if takes else {}))
    if not isinstance(method, Posterior | Projection | DDRM):
      raise InvalidArgument(f"method={method!r} is no method of measurements.", "method")
    if not (self._has_score or isinstance(method, Projection)):
      raise InvalidArgument(
        f"method={type(method).__name__} needs a score, and this is {self._name}: use 'replacement'.", "method"
      )
    return method

  # --- likelihoods and latents ----------------------------------------------------------------------------------------

  def log_likelihood(self, key: Array, x: Array, *, label: Any = None, condition: Any = None, **options: Any) -> Array:
    """Returns log p(x) in nats, (n,), of data x (n, ...). The value is NaN if the solve failed.

    `options` are those of `ExactLikelihood`, by default those of the config. The density is on the scale of x: [0, 1]
    for images.

    Raises:
      InvalidArgument: for data of another shape, or options out of range.
    """
    self._need_score("log_likelihood")
    x = self._in(x)
    keys = example_keys(as_key(key), jnp.arange(len(x)))
    y = self._given(label, condition, len(x))
    likelihood = dataclasses.replace(self.likelihood, **options)
    found = _log_likelihood(likelihood, self.sde, self.score, keys, x, y)
    log_p = found.log_p - self.scaling.log_slope(self.shape)
    return jnp.where(found.t >= jnp.asarray(self.sde.T, found.t.dtype), log_p, jnp.nan)

  def bits_per_dim(
    self, key: Array, images: Array, *, label: Any = None, condition: Any = None, **options: Any
  ) -> Array:
    """Returns bits/dim, (n,), of images (n, H, W, C) in [0, 1], after uniform dequantization of their gray levels.

    The value is NaN if the solve failed. `options` are those of `ExactLikelihood`, by default those of the config.

    Raises:
      InvalidArgument: for a model of points.
    """
    if self.scaling.levels is None:
      raise InvalidArgument("bits/dim is defined for images with discrete gray levels; use log_likelihood for points.")
    self._need_score("bits_per_dim")
    levels, keys = self.scaling.levels, example_keys(as_key(key), jnp.arange(len(images)))
    raw = jnp.round(self._checked(images) * (levels - 1))
    x = dataclasses.replace(self.scaling, uniform_dequantization=True).prepare(fold(keys, DEQUANTIZE), raw)
    y = self._given(label, condition, len(x))
    likelihood = dataclasses.replace(self.likelihood, **options)
    found = _log_likelihood(likelihood, self.sde, self.score, fold(keys, PROBE), x, y)
    log_p = jnp.where(found.t >= jnp.asarray(self.sde.T, found.t.dtype), found.log_p, jnp.nan)
    return bits_per_dim(log_p, x[0].size, levels, self.scaling.slope)

  def encode(self, x: Array, *, label: Any = None, condition: Any = None) -> Array:
    """Returns latents like x of data x (n, ...), by the probability-flow ODE. They are standard normal under VP.

    A latent is NaN if its solve failed.
    """
    self._need_score("encode")
    x = self._in(x)
    return _encode(self.sde, self.score, x, self._given(label, condition, len(x)))

  def decode(self, latent: Array, *, label: Any = None, condition: Any = None) -> Array:
    """Returns the data (n, ...) of latents (n, ...): the inverse of `encode`. They are NaN if the solve failed.

    A consistency model takes one evaluation of its network, at the noise level where its sampling starts.
    """
    if self.jumps:
      self._need_score("decode")
    latent = jnp.asarray(latent)
    y = self._given(label, condition, len(latent))
    if self._is_consistency:
      solver = dataclasses.replace(self._consistency, sigmas=())
      grid = solver.schedule(
        self.sde, make_grid("log_snr", self.sde, 1, self.sde.eps if self.eps is None else self.eps)
      )
      times = jnp.full(len(latent), grid.begin, latent.dtype)
      x = solver.init(self.sde, latent, times).x
      return self._out(_denoise(self.model, self.params, x, times, y), clip=False)
    return self._out(_decode(self.sde, self.score, latent, y), clip=False)

  def denoise(self, x: Array, t: float | Array, *, label: Any = None, condition: Any = None) -> Array:
    """Returns E[x_0 | x_t = x] on the scale of the data. The noisy x (n, ...) at time `t` is on the network's scale.

    A consistency model gives f(x, t), the end of the path of the probability-flow ODE.
    """
    x = jnp.asarray(x)
    times = jnp.broadcast_to(jnp.asarray(t, x.dtype), x.shape[:1])
    return self._out(_denoise(self.model, self.params, x, times, self._given(label, condition, len(x))), clip=False)

  @property
  def _is_consistency(self) -> bool:
    return isinstance(self.model, ConsistencyModel)

  @property
  def _has_score(self) -> bool:
    return not (self._is_consistency or self.jumps)

  @property
  def _name(self) -> str:
    return "a consistency model" if self._is_consistency else "a student of progressive distillation"

  @property
  def _consistency(self) -> Consistency:
    return self.solver if isinstance(self.solver, Consistency) else Consistency()

  @property
  def _takes_constraints(self) -> bool:
    """Tells whether the model's own solver, if it has one, can be followed by a constraint."""
    return self.solver is None or (isinstance(self.solver, Solver) and not isinstance(self.solver, NCSN | DDPM))

  @property
  def _goes_without(self) -> bool:
    """Tells whether the network needs neither a class nor a condition."""
    needs = {"label": self.classes > 0, "condition": bool(self.condition_shape)}
    return all(name in self.optional for name, needed in needs.items() if needed)

  def _need_score(self, what: str) -> None:
    if not self._has_score:
      raise InvalidArgument(f"{what} needs a score, and this is {self._name}: use its teacher.")

  # --- conversion between the scale of the data and that of the network -----------------------------------------------

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
    return self._clipped(x) if clip else x

  def _clipped(self, x: Array) -> Array:
    return jnp.clip(x, 0, 1) if self.scaling.has_levels else x

  def _given(self, label: Any, condition: Any, n: int, in_turn: bool = False) -> Any:
    """Returns the y of `n` examples, see `conditions`. Without a label they have the classes `in_turn`, or none."""
    labels = self._labels(label, n, in_turn)
    if not self.condition_shape:
      if condition is not None:
        raise InvalidArgument("condition was given, but the network takes none.", "condition")
      return labels
    given = {} if labels is None else {"label": labels}
    if condition is not None:
      condition = jnp.asarray(condition, jnp.float32)
      if condition.shape not in (self.condition_shape, (n, *self.condition_shape)):
        raise InvalidArgument(
          f"condition of {list(condition.shape)} must be {list(self.condition_shape)}, or one for each of n={n}.",
          "condition",
        )
      condition = jnp.broadcast_to(condition, (n, *self.condition_shape))
      given["condition"] = self.condition_scaling.prepare(None, condition)
    elif "condition" not in self.optional:
      raise InvalidArgument(
        f"condition=None, but the network was never trained without: give one of {list(self.condition_shape)}, or "
        f"{n}. (model.condition_dropout trains a network that needs none.)", "condition",
      )  # fmt: skip
    return given or None

  def _labels(self, label: Any, n: int, in_turn: bool) -> Array | None:
    if not self.classes:
      if label is not None:
        raise InvalidArgument(f"label={label!r}, but the network knows no classes.", "label")
      return None
    if label is None and not in_turn:
      if "label" in self.optional:
        return None
      raise InvalidArgument(
        f"label=None, but the network was never trained without a class: give one for all, or {n}, 0 to "
        f"{self.classes - 1}. (model.label_dropout trains a network that needs none.)", "label",
      )  # fmt: skip
    try:
      asked = jnp.arange(n) % self.classes if label is None else jnp.asarray(label, jnp.int32)
    except (TypeError, ValueError) as error:  # a name
      raise InvalidArgument(f"label={label!r} must be one or {n} numbers, 0 to {self.classes - 1}.", "label") from error
    labels = jnp.broadcast_to(asked, (n,))
    if not bool(((labels >= 0) & (labels < self.classes)).all()):
      raise InvalidArgument(f"label={label!r} must lie in 0 to {self.classes - 1}.", "label")
    return labels

  def _measured(self, measurement: Measurement, n: int) -> tuple[Measurement, Measurement]:
    """Returns the measurement of `n` samples on the scale of the data, and on that of the network.

    For a linear A, y / slope + A low measures the network's x by A. For any other A, y / slope measures it by
    x -> A(data of x) / slope.
    """
    if len(measurement.y) not in (1, n):
      raise InvalidArgument(
        f"measurement has {len(measurement.y)} entries: give one for all samples, or one for each of n={n}.", "n"
      )
    if len(measurement.y) != n:
      measurement = jax.tree.map(lambda a: jnp.repeat(a, n, axis=0), measurement)
    slopes = set(self.scaling.std) or {self.scaling.slope}
    if len(slopes) > 1:
      raise InvalidArgument(
        "measurement: the channels of these data have several scales, and a measurement mixes them; train with one "
        "scale (data.standardize=False).", "measurement",
      )  # fmt: skip
    slope, operator = slopes.pop(), measurement.operator
    y, noise = measurement.y / slope, measurement.noise / slope
    if not isinstance(operator, LinearOperator):
      return measurement, Measurement(_OfData(operator, self.scaling, slope), y, noise)
    low = jnp.broadcast_to(jnp.asarray(self.scaling.forward(jnp.zeros(self.shape))), (n, *self.shape))
    return measurement, Measurement(operator, y + operator.apply(low), noise)


@flax.struct.dataclass
class _OfData:
  """Operator x -> A(data of x) / slope, for the model's x and an A of the data that is not linear."""

  operator: Any
  scaling: Scaling = flax.struct.field(pytree_node=False)
  slope: float = flax.struct.field(pytree_node=False)

  def apply(self, x: Array) -> Array:
    return self.operator.apply(self.scaling.inverse(x)) / self.slope


@functools.partial(jax.jit, static_argnums=(1, 3, 6, 7, 8))
def _sample(key, sde, score, shape, condition, x_T, solver, steps, options):
  return sample(key, sde, score, shape, condition=condition, x_T=x_T, solver=solver, steps=steps, **dict(options))


@functools.partial(jax.jit, static_argnums=(1, 3, 6, 7, 8, 9))
def _constrained(key, sde, score, shape, given, x_T, constraint, solver, steps, options):
  solver = constraint.given(given) if isinstance(constraint, DDRM) else constraint(given)(solver)
  return sample(key, sde, score, shape, x_T=x_T, solver=solver, steps=steps, **dict(options))


@functools.partial(jax.jit, static_argnums=(0, 1))
def _log_likelihood(likelihood, sde, score, keys, x, condition):
  return likelihood(sde, score, keys, x, condition)


@functools.partial(jax.jit, static_argnums=0)
def _encode(sde, score, x, condition):
  return _solved(*encode(sde, score, x, condition=condition))


@functools.partial(jax.jit, static_argnums=0)
def _decode(sde, score, latent, condition):
  return _solved(*decode(sde, score, latent, condition=condition))


def _solved(x, info):
  return jnp.where(expand(info["finite"], x), x, jnp.nan)


@functools.partial(jax.jit, static_argnums=0)
def _denoise(model, params, x, t, y):
  return model.data(params, x, t, y)
