"""The predictor-corrector sampler (Song et al. 2021, Algorithm 1). The samplers of NCSN and DDPM are special cases."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, Time, fold
from score_sde.errors import InvalidArgument
from score_sde.options import option
from score_sde.sampling.correctors import CORRECTORS
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.predictors import PREDICTORS
from score_sde.sampling.solver import UPDATE, Solver, Update
from score_sde.sde import SDE, VE, VP, Score, denoiser, linear

_CORRECTS = ("langevin", "ald")


class PCState(NamedTuple):
  """State of `PredictorCorrector`: x and its mean, (B, ...), and the time `t` (B,) of the last score."""

  x: Array
  mean: Array
  t: Array


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Solver):
  """Predictor-corrector sampler: at each time of the grid, the corrector acts, then the predictor makes a step.

  Song et al. 2021, Algorithm 1. Works under every SDE, but `ancestral_sampling` and `ald` need a linear SDE. The paper
  uses reverse_diffusion with langevin (snr 0.16) for VE, and euler_maruyama without a corrector for VP and sub-VP.

  Example:
    >>> import jax, score_sde as ss
    >>> solver = ss.PredictorCorrector(predictor="euler_maruyama", corrector="none")
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=solver, steps=50).shape
    (4, 2)
  """

  default_steps: ClassVar[int] = 1000

  predictor: str = option("reverse_diffusion", "the predictor, a step of the SDE", choices=tuple(PREDICTORS))
  corrector: str = option("langevin", "the corrector, Langevin steps at one time", choices=tuple(CORRECTORS))
  snr: float = option(0.16, "ratio of noise to score in a Langevin step", "(0, inf)", needs={"corrector": _CORRECTS})
  n_steps_each: int = option(1, "Langevin steps at each time", "[1, inf)", needs={"corrector": _CORRECTS})
  norms: str = option(
    "sample",
    "measure of Langevin's step and of the adaptive ODE's error. sample: each sample alone (Langevin: from sigma(t)); "
    "batch: norms averaged over the batch, as in the paper",
    choices=("sample", "batch"),
    needs={"corrector": _CORRECTS},
  )
  ald_step: str = option(
    "code", "step of ald: paper takes half of it, as NCSN's Algorithm 1", choices=("code", "paper"),
    needs={"corrector": ("ald",)},
  )  # fmt: skip
  probability_flow: bool = option(
    False, "the predictor steps along the ODE, without noise",
    needs={"predictor": ("euler_maruyama", "reverse_diffusion")},
  )  # fmt: skip
  posterior_variance: bool | None = option(
    None, "noise of ancestral sampling: True the posterior's variance, False the chain's (beta); unset: False for VP, "
    "else True", needs={"predictor": ("ancestral_sampling",)},
  )  # fmt: skip
  # Set by the caller that runs the solver. num_scales: noise levels of the model, for a(t) of a corrector. tabulated:
  # True if the grid's tables, of `table_size` entries, are used (`on` sets both). axis_name: mapped axis (for example
  # of pmap) of a spread batch. real: (B,) False for copies that only fill up a spread batch; None if there are none.
  num_scales: int = 1000
  tabulated: bool = False
  table_size: int = 0
  axis_name: str | None = None
  real: Array | None = None

  def __post_init__(self) -> None:
    super().__post_init__()
    if self.predictor == self.corrector == "none":
      raise InvalidArgument(
        "predictor='none' and corrector='none': nothing would move the samples. Choose a predictor or a corrector.",
        "predictor", "corrector",
      )  # fmt: skip
    if self.probability_flow and self.predictor == "ancestral_sampling":
      raise InvalidArgument(
        "probability_flow=True does not work with predictor='ancestral_sampling': use 'euler_maruyama' or "
        "'reverse_diffusion'.",
        "probability_flow", "predictor",
      )  # fmt: skip

  def on(self, sde: SDE, grid: TimeGrid) -> "PredictorCorrector":
    name = type(sde).__name__
    if self.corrector != "none":
      with jax.ensure_compile_time_eval():
        shrinkage = 1 + 2 * float(sde.dlog_alpha(jnp.asarray(sde.T))) / self.num_scales
      if shrinkage <= 0:
        raise InvalidArgument(
          f"num_scales={self.num_scales} is too small for corrector={self.corrector!r} under {name}: at T, the drift "
          f"would multiply its step by {shrinkage:.2g}. Use more levels, or no corrector.",
          "num_scales", "corrector",
        )  # fmt: skip
    if self.corrector == "ald":
      linear(sde, "corrector='ald'")
    if self.corrector == "langevin" and self.norms == "sample" and not sde.is_linear:
      raise InvalidArgument(
        f"norms='sample' takes the step of corrector='langevin' from sigma(t), which {name} does not have. Use "
        "norms='batch'.", "norms", "corrector",
      )  # fmt: skip
    if self._denoises:
      linear(sde, "predictor='none' with noise_removal=True")
    if self.predictor == "ancestral_sampling":
      linear(sde, "predictor='ancestral_sampling'")
      if grid.official and not sde.has_table:
        raise InvalidArgument(
          f"predictor='ancestral_sampling' has no grid='official' under {name}, because the published code has no "
          "table for it. Use grid='uniform'.", "predictor", "grid",
        )  # fmt: skip
    if grid.official and sde.has_table and self.predictor in ("reverse_diffusion", "ancestral_sampling"):
      with jax.ensure_compile_time_eval():
        ratio, std = linear(sde, "A table").chain(*(jnp.asarray(column) for column in grid.rows.T))
        sound = bool(((ratio > 0) & jnp.isfinite(std)).all())
      if not sound:
        raise InvalidArgument(
          f"steps={len(grid)} is too small for grid='official' under {name}: the table's sqrt(1 - beta / steps) is not "
          "a number. Use more steps (more than beta_max), or grid='uniform'.", "steps", "grid",
        )  # fmt: skip
    return dataclasses.replace(self, tabulated=grid.official, table_size=len(grid) if grid.official else 0)

  def averaged(self, norms: Array) -> Array:
    """Returns the mean of norms (B,) over the whole batch."""
    return batch_mean(norms, self.axis_name, self.real)

  def init(self, sde: SDE, x: Batch, t: Time) -> PCState:
    return PCState(x, x, t)

  def step(self, sde: SDE, score: Score, keys: Keys, state: PCState, t: Time, start: Time, stop: Time) -> PCState:
    return self._step(sde, score, keys, state, t, start, stop, lambda sde, keys, x, mean, t: (x, mean))

  def _step(
    self, sde: SDE, score: Score, keys: Array, state: PCState, t: Array, start: Array, stop: Array, update: Update
  ) -> PCState:
    """Makes a step of corrector and predictor, and applies `update` after each of the two."""
    correct, predict = CORRECTORS[self.corrector](self, sde, score), PREDICTORS[self.predictor](self, sde, score)
    x, mean = correct(fold(keys, 0), state.x, t)
    if self.corrector != "none":
      x, mean = update(sde, fold(fold(keys, UPDATE), 0), x, mean, t)
    x, mean = predict(fold(keys, 1), sde.reflect(x), t, start, stop)
    x, mean = update(sde, fold(fold(keys, UPDATE), 1), x, mean, stop)
    return PCState(sde.reflect(x), sde.reflect(mean), t)

  @property
  def _denoises(self) -> bool:
    return self.noise_removal and self.predictor == "none"

  def finish(self, sde: SDE, score: Score, state: PCState, t: Time) -> Batch:
    if self._denoises:  # the last denoising step of NCSNv2, at the noise level of the last corrector
      return denoiser(sde, score)(state.x, state.t)
    return super().finish(sde, score, state, t)

  def evaluations(self, steps: int) -> int:
    corrections = self.n_steps_each if self.corrector != "none" else 0
    return steps * ((self.predictor != "none") + corrections) + self._denoises

  def followed_by(self, update: Update) -> "Solver":
    return UpdatedPC(**{f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.init}, update=update)


@dataclasses.dataclass(frozen=True)
class UpdatedPC(PredictorCorrector):
  """Predictor-corrector sampler that applies `update` after each corrector and after each predictor."""

  update: Update = dataclasses.field(default=lambda sde, keys, x, mean, t: (x, mean))

  def step(self, sde: SDE, score: Score, keys: Keys, state: PCState, t: Time, start: Time, stop: Time) -> PCState:
    return self._step(sde, score, keys, state, t, start, stop, self.update)


def batch_mean(values: Array, axis_name: str | None, real: Array | None = None) -> Array:
  """Returns the mean of numbers (B,) over the batch, which may be spread over the mapped axis `axis_name`.

  Examples whose `real` (B,) is False are left out.
  """
  if real is None:
    mean = jnp.mean(values)
    return mean if axis_name is None else jax.lax.pmean(mean, axis_name)
  total, count = jnp.sum(jnp.where(real, values, 0)), jnp.sum(real, dtype=values.dtype)
  return total / count if axis_name is None else jax.lax.psum(total, axis_name) / jax.lax.psum(count, axis_name)


@dataclasses.dataclass(frozen=True)
class NCSN(PredictorCorrector):
  """NCSN's sampler: annealed Langevin dynamics at the noise levels of VE. Song & Ermon 2019, Algorithm 1.

  Makes `n_steps_each` steps at each of `num_scales` levels. snr is sqrt(alpha_i / 2) / sigma_i. The paper's step of
  2e-5 at sigma = 0.01 gives 0.316. With `noise_removal` it ends on E[x_0 | x] at the last level (Jolicoeur-Martineau et
  al. 2020; NCSNv2, Section 5).

  Example:
    >>> import jax, score_sde as ss
    >>> solver = ss.NCSN(num_scales=10, n_steps_each=5)
    >>> ss.sample(jax.random.key(0), ss.VE(), lambda x, t: -x, (4, 2), solver=solver).shape
    (4, 2)
  """

  default_grid: ClassVar[str] = "official"

  _: dataclasses.KW_ONLY
  predictor: str = dataclasses.field(default="none", init=False)
  corrector: str = dataclasses.field(default="ald", init=False)
  probability_flow: bool = dataclasses.field(default=False, init=False)
  posterior_variance: bool | None = dataclasses.field(default=None, init=False)
  norms: str = dataclasses.field(default="sample", init=False)
  snr: float = option(0.316, "ratio of noise to score in a Langevin step", "(0, inf)")
  n_steps_each: int = option(100, "Langevin steps at each noise level", "[1, inf)")
  noise_removal: bool = option(False, "end on E[x_0 | x] at the last level, one evaluation")
  ald_step: str = option("code", "step: paper takes half of it, as Algorithm 1", choices=("code", "paper"))
  num_scales: int = 10

  def on(self, sde: SDE, grid: TimeGrid) -> "PredictorCorrector":
    _need(sde, VE, "NCSN's sampler needs the noise levels of VE")
    return super().on(sde, grid)

  def followed_by(self, update: Update) -> Solver:
    return _no_constraint(self)


@dataclasses.dataclass(frozen=True)
class DDPM(PredictorCorrector):
  """DDPM's sampler: ancestral sampling with VP's table of `num_scales` betas. Ho et al. 2020, Algorithm 2.

  `posterior_variance` is the variance of a step: False (and None) is beta, True is the posterior's. The paper has both.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.DDPM(num_scales=50)).shape
    (4, 2)
  """

  default_grid: ClassVar[str] = "official"

  _: dataclasses.KW_ONLY
  predictor: str = dataclasses.field(default="ancestral_sampling", init=False)
  corrector: str = dataclasses.field(default="none", init=False)
  probability_flow: bool = dataclasses.field(default=False, init=False)
  norms: str = dataclasses.field(default="sample", init=False)
  snr: float = dataclasses.field(default=0.16, init=False)
  n_steps_each: int = dataclasses.field(default=1, init=False)
  ald_step: str = dataclasses.field(default="code", init=False)
  posterior_variance: bool | None = option(None, "noise of a step: True the posterior's variance, False beta")

  def on(self, sde: SDE, grid: TimeGrid) -> "PredictorCorrector":
    _need(sde, VP, "DDPM's sampler needs the betas of VP")
    return super().on(sde, grid)

  def followed_by(self, update: Update) -> Solver:
    return _no_constraint(self)


def _need(sde: SDE, kind: type[SDE], what: str) -> None:
  if not isinstance(sde, kind):
    raise InvalidArgument(f"{what}, not {type(sde).__name__}: use PredictorCorrector.")


def _no_constraint(solver: Solver) -> Solver:
  raise InvalidArgument(
    f"{type(solver).__name__} is the published sampler and takes no constraint: use PredictorCorrector."
  )
