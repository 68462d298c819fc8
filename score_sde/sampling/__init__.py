"""Samplers: from noise to data along the reverse-time SDE or the probability-flow ODE.

`make_sampler` builds the one a config asks for. Every sampler is a function `sample(score, key, shape) -> (x, info)`.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict

from score_sde.batch import Array
from score_sde.run import devices
from score_sde.sampling.adaptive import adaptive_sde
from score_sde.sampling.correctors import CORRECTORS
from score_sde.sampling.few_step import FEW_STEP, few_step
from score_sde.sampling.grids import GRIDS, TimeGrid, make_grid
from score_sde.sampling.loop import Constrain
from score_sde.sampling.memory import split_to_fit
from score_sde.sampling.ode import SOLVERS, ode_sampler
from score_sde.sampling.predictor_corrector import predictor_corrector
from score_sde.sampling.predictors import PREDICTORS
from score_sde.sampling.presets import ddpm, ncsn
from score_sde.sde import SDE

__all__ = [
  "CORRECTORS",
  "FEW_STEP",
  "GRIDS",
  "METHODS",
  "PREDICTORS",
  "SOLVERS",
  "Constrain",
  "TimeGrid",
  "adaptive_sde",
  "ddpm",
  "few_step",
  "make_grid",
  "make_sampler",
  "ncsn",
  "ode_sampler",
  "predictor_corrector",
  "split_to_fit",
]

METHODS = ("pc", "ncsn", "ddpm", "ode", "adaptive_sde", *FEW_STEP)


def make_sampler(
  config: ConfigDict,
  sde: SDE,
  *,
  start: float | None = None,
  constrain: Callable[[Any], Constrain] | None = None,
  differentiated: bool = False,
) -> Callable[..., tuple[Array, dict[str, Any]]]:
  """The sampler of `config.sampling` for `sde`; batches that do not fit into memory are split.

  Args:
    config: of the run.
    sde: the forward SDE.
    start: the time it starts from, where that is not T.
    constrain: acts on the state after every update, see `few_step` and `predictor_corrector`.
    differentiated: the score holds derivatives of a network, see `loop`.

  Raises:
    ValueError: for names that are unknown and settings that cannot work.
  """
  return split_to_fit(_make(config, sde, start, constrain, differentiated), devices.device_count())


def _make(config, sde, begin, constrain, differentiated) -> Callable[..., tuple[Array, dict[str, Any]]]:
  s = config.sampling
  for key, name, known in (("norms", s.norms, ("sample", "batch")), ("ald_step", s.ald_step, ("code", "paper"))):
    if name not in known:
      raise ValueError(f"sampling.{key}={name!r} is unknown; choose one of {', '.join(known)}.")
  steps = {"posterior_variance": s.posterior_variance, "denoise": s.noise_removal}
  langevin = {"snr": s.snr, "n_steps": s.n_steps_each, "paper_step": s.ald_step == "paper"}
  if begin not in (None, sde.T) and s.method in ("ncsn", "ddpm"):
    raise ValueError(f"sampling.method={s.method!r} starts at T alone; use 'pc' to start from {begin}.")
  if constrain and s.method not in ("pc", *FEW_STEP):
    known = ", ".join(("pc", *FEW_STEP))
    raise ValueError(f"sampling.method={s.method!r} has no updates that a constraint could follow; use one of {known}.")
  updates = {"constrain": constrain, "differentiated": differentiated}
  if s.method == "ncsn":
    return ncsn(sde, num_scales=config.model.num_scales, eps=s.eps, denoise=s.noise_removal, **langevin)
  if s.method == "ddpm":
    return ddpm(sde, num_scales=config.model.num_scales, eps=s.eps, **steps)
  if s.method == "adaptive_sde":
    return adaptive_sde(
      sde, eps=s.eps, rtol=s.sde_rtol, atol=s.sde_atol, denoise=s.noise_removal, max_steps=s.max_steps,
      start=begin,
    )  # fmt: skip
  if s.method == "ode":
    return ode_sampler(
      sde, eps=s.eps, rtol=s.rtol, atol=s.atol, solver=s.solver, denoise=s.noise_removal, max_steps=s.max_steps,
      batch_norm=s.norms == "batch", temperature=s.temperature, start=begin,
    )  # fmt: skip
  if s.method in FEW_STEP:
    options = {"ddim": {"eta": s.eta}, "heun": {k: s[k] for k in ("churn", "churn_min", "churn_max", "churn_noise")}}
    grid = make_grid(s.grid, sde, s.num_steps, s.eps, start=begin)
    return few_step(sde, grid, s.method, denoise=s.noise_removal, **options.get(s.method, {}), **updates)
  if s.method != "pc":
    raise ValueError(f"sampling.method={s.method!r} is unknown; choose one of {', '.join(METHODS)}.")
  return predictor_corrector(
    sde,
    make_grid(s.grid, sde, s.num_steps, s.eps, s.predictor, begin),
    predictor=s.predictor,
    corrector=s.corrector,
    num_scales=config.model.num_scales,
    official=s.grid == "official",
    probability_flow=s.probability_flow,
    batch_norms=s.norms == "batch",
    **steps,
    **langevin,
    **updates,
  )
