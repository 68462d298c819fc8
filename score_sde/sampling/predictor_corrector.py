"""The predictor-corrector sampler: Song et al. 2021, Algorithm 1."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from score_sde.batch import Array, fold
from score_sde.run import devices
from score_sde.sampling.correctors import CORRECTORS
from score_sde.sampling.grids import TimeGrid
from score_sde.sampling.loop import CONSTRAINT, Constrain, Step, loop
from score_sde.sampling.predictors import PREDICTORS
from score_sde.sde import SDE, LinearSDE, Score


def predictor_corrector(
  sde: SDE,
  grid: TimeGrid,
  *,
  predictor: str = "reverse_diffusion",
  corrector: str = "langevin",
  snr: float = 0.16,
  n_steps: int = 1,
  num_scales: int = 1000,
  official: bool = False,
  probability_flow: bool = False,
  batch_norms: bool = False,
  posterior_variance: bool | None = None,
  paper_step: bool = False,
  denoise: bool = True,
  constrain: Callable[[Any], Constrain] | None = None,
  differentiated: bool = False,
) -> Callable[..., tuple[Array, dict[str, Any]]]:
  """Builds `sample(score, key, shape, ...) -> (x, info)`, see `sampler`.

  At every time of `grid` the corrector acts, then the predictor steps on.

  Args:
    sde: the forward SDE.
    grid: from `grids.make_grid`.
    predictor: a name in PREDICTORS.
    corrector: a name in CORRECTORS, with `snr`, `n_steps` (steps each time) and `num_scales` as described there.
    official: discretize by the published tables; belongs to the official grid.
    probability_flow: the predictor steps along the ODE, without noise.
    batch_norms: average Langevin's norms over the batch as the paper does. Samples then depend on their batch; without
      it each depends on its own key alone.
    posterior_variance: of ancestral sampling, see there; None is its default for the SDE.
    paper_step: annealed Langevin by half the step, see there.
    denoise: leave out the noise of the last step; without a predictor, end on E[x_0 | x] at the last noise level
      (NCSNv2's last denoising step), which takes one evaluation more.
    constrain: makes of the batch's condition what acts on the state after each corrector and each predictor
      (`guidance.constraints`); the score does not see the condition then.
    differentiated: see `loop`.

  Returns:
    `sample` as that of `sampler`.

  Raises:
    ValueError: for unknown names and pairs that cannot work.
  """
  for key, name, table in (("predictor", predictor, PREDICTORS), ("corrector", corrector, CORRECTORS)):
    if name not in table:
      raise ValueError(f"sampling.{key}={name!r} is unknown; choose one of {', '.join(table)}.")
  if predictor == corrector == "none":
    raise ValueError("sampling.predictor and sampling.corrector are both 'none': nothing would move the samples.")
  if corrector != "none" and isinstance(sde, LinearSDE):
    shrinkage = 1 + 2 * float(sde.dlog_alpha(jnp.asarray(sde.T))) / num_scales
    if shrinkage <= 0:
      raise ValueError(
        f"model.num_scales={num_scales} is too few for sampling.corrector={corrector!r} under {type(sde).__name__}: "
        f"at T its step would be {shrinkage:.2g} times that without drift. Use more levels, or no corrector."
      )
  if predictor == "ancestral_sampling":
    if not isinstance(sde, LinearSDE):
      raise ValueError(f"Ancestral sampling needs a linear SDE, not {type(sde).__name__}; use 'euler_maruyama'.")
    if official and type(sde).chain is LinearSDE.chain:
      raise ValueError(
        f"sampling.predictor='ancestral_sampling' has no official grid for {type(sde).__name__}: the published code "
        "has no table for it. Use --config.sampling.grid=uniform."
      )
    if probability_flow:
      raise ValueError("sampling.probability_flow has no ancestral form; use 'euler_maruyama' or 'reverse_diffusion'.")

  def make_step(score: Score, condition: Any) -> Step:
    options = {"official": official, "probability_flow": probability_flow, "posterior_variance": posterior_variance}
    predict = PREDICTORS[predictor](sde, score, **options)
    options = {"snr": snr, "n_steps": n_steps, "num_scales": num_scales, "paper": paper_step}
    average = devices.batch_mean if batch_norms else None
    correct = CORRECTORS[corrector](sde, score, batch_mean=average, **options)
    act = constrain(condition) if constrain else lambda keys, x, x_mean, t: (x, x_mean)

    def step(keys, i, carry, t, start, stop):
      x, x_mean = correct(fold(keys, 0), carry[0], t)
      if corrector != "none":
        x, x_mean = act(fold(fold(keys, CONSTRAINT), 0), x, x_mean, t)
      x, x_mean = predict(fold(keys, 1), sde.reflect(x), t, start, stop)
      x, x_mean = act(fold(fold(keys, CONSTRAINT), 1), x, x_mean, stop)
      return sde.reflect(x), sde.reflect(x_mean)

    return step

  evaluations = len(grid.t) * ((predictor != "none") + (corrector != "none") * n_steps)
  tweedie = denoise and predictor == "none" and isinstance(sde, LinearSDE)
  return loop(
    sde, grid, make_step, evaluations=evaluations, denoise=denoise, tweedie=tweedie,
    constrained=constrain is not None, differentiated=differentiated,
  )  # fmt: skip
