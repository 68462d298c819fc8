"""The whole samplers of two papers, as settings of the predictor-corrector sampler."""

from collections.abc import Callable
from typing import Any

from score_sde.batch import Array
from score_sde.sampling.grids import make_grid
from score_sde.sampling.predictor_corrector import predictor_corrector
from score_sde.sde import SDE, VE, VP


def ncsn(
  sde: SDE,
  *,
  num_scales: int = 10,
  n_steps: int = 100,
  snr: float = 0.316,
  eps: float = 1e-5,
  paper_step: bool = False,
  denoise: bool = False,
) -> Callable[..., tuple[Array, dict[str, Any]]]:
  """Annealed Langevin dynamics: `n_steps` at each of `num_scales` noise levels. Song & Ermon 2019, Algorithm 1.

  Args:
    snr: sqrt(alpha_i / 2) / sigma_i; 0.316 is their step of 2e-5 at sigma = 0.01.
    paper_step: half the step, as in the paper's Algorithm 1; the published code takes the whole.
    denoise: end on E[x_0 | x] at the last level. Jolicoeur-Martineau et al. 2020; NCSNv2, Section 5.

  Raises:
    ValueError: for another SDE than VE.
  """
  if not isinstance(sde, VE):
    raise ValueError(f"sampling.method='ncsn' runs through the noise levels of VE, not {type(sde).__name__}: use 'pc'.")
  return predictor_corrector(
    sde, make_grid("official", sde, num_scales, eps), predictor="none", corrector="ald", snr=snr, n_steps=n_steps,
    num_scales=num_scales, official=True, paper_step=paper_step, denoise=denoise,
  )  # fmt: skip


def ddpm(
  sde: SDE,
  *,
  num_scales: int = 1000,
  eps: float = 1e-3,
  posterior_variance: bool | None = None,
  denoise: bool = True,
) -> Callable[..., tuple[Array, dict[str, Any]]]:
  """Ancestral sampling through the table of `num_scales` betas, no noise in the last step. Ho et al. 2020, Algorithm 2.

  Args:
    posterior_variance: the noise of a step: False (and None) is beta, True the posterior's variance, their two choices.

  Raises:
    ValueError: for another SDE than VP.
  """
  if not isinstance(sde, VP):
    raise ValueError(f"sampling.method='ddpm' runs through the betas of VP, not {type(sde).__name__}: use 'pc'.")
  return predictor_corrector(
    sde, make_grid("official", sde, num_scales, eps), predictor="ancestral_sampling", corrector="none", official=True,
    posterior_variance=posterior_variance, denoise=denoise,
  )  # fmt: skip
