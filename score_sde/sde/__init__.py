"""Stochastic differential equations that carry data (t = 0) to noise (t = T), and their reversal in time.

    dx = f(x, t) dt + G(x, t) dw                                      forward
    dx = [f - div(G Gᵀ) - G Gᵀ score] dt + G dw̄                       reverse-time SDE
    dx = [f - ½ div(G Gᵀ) - ½ G Gᵀ score] dt                          probability-flow ODE

Song et al. 2021, eq. (5), (6), (13), Appendix A for a diffusion that depends on the state, and Appendices B and C for
the three SDEs of the paper. `x` has shape (B, ...), `t` has shape (B,), and arithmetic follows their dtype.

To write another SDE whose x_t | x_0 is N(alpha(t) x_0, sigma(t)² I), subclass `LinearSDE` and define only `alpha` and
`sigma`: drift, diffusion, transitions and prior follow from them. For any other SDE, subclass `SDE` and define `drift`
and `diffusion`: training simulates paths, and sampling starts from their end points unless `prior_sample` is defined.
"""

from score_sde.sde.base import SDE, Score, apply_covariance, apply_diffusion, as_argument, bind
from score_sde.sde.linear import VE, VP, CosineVP, LinearSDE, RectifiedFlow, SubVP, check_kernel, linear
from score_sde.sde.reverse import Reverse, covariance_divergence, covariance_pull, denoiser
from score_sde.sde.simulate import Reflected, simulate

__all__ = [
  "SDE",
  "VE",
  "VP",
  "CosineVP",
  "LinearSDE",
  "RectifiedFlow",
  "Reflected",
  "Reverse",
  "Score",
  "SubVP",
  "apply_covariance",
  "apply_diffusion",
  "as_argument",
  "bind",
  "check_kernel",
  "covariance_divergence",
  "covariance_pull",
  "denoiser",
  "linear",
  "simulate",
]
