"""Bounds on likelihoods and divergences, where the laws they bound are known in closed form."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.analytic import GaussianMixture, gaussian, points
from score_sde.batch import example_keys
from score_sde.bounds import ChainBound, EvidenceBound, kl_bound
from score_sde.sde import VE, VP, SubVP

SDES = {"ve": VE(0.01, 20.0), "vp": VP(), "subvp": SubVP()}
VP_FAST = [pytest.param(name, marks=[] if name == "vp" else pytest.mark.slow) for name in SDES]
MIXTURE = GaussianMixture(
  means=[[0.5, -0.3], [-0.6, 0.4]],
  covariances=[[[0.05, 0.02], [0.02, 0.04]], [[0.02, 0.0], [0.0, 0.06]]],
  weights=[0.3, 0.7],
)


@pytest.mark.thorough
@pytest.mark.parametrize("name", VP_FAST)
def test_the_evidence_bound_is_tight_for_the_exact_score_and_a_bound_for_others(name):
  sde, n = SDES[name], 20_000
  x = MIXTURE.sample(jax.random.key(0), n).astype(jnp.float32)
  keys = example_keys(jax.random.key(1), jnp.arange(n))
  bound = jax.jit(EvidenceBound(eps=1e-3, num_times=64), static_argnums=0)
  exact = MIXTURE.score(sde)
  truth = np.asarray(MIXTURE.log_density(sde, x, jnp.full(n, 1e-6 if name != "ve" else 0.0)))
  gap = truth - np.asarray(bound(sde, jax.tree_util.Partial(exact), keys, x))
  error = 3 * gap.std() / math.sqrt(n)
  assert abs(gap.mean()) < error + 0.01
  worse = jax.tree_util.Partial(lambda x, t: 0.7 * exact(x, t))
  assert (truth - np.asarray(bound(sde, worse, keys, x))).mean() > 3 * error


@pytest.mark.parametrize(
  ("name", "posterior_variance"),
  [("vp", True), ("ve", True), pytest.param("vp", False, marks=pytest.mark.slow)],
)
def test_the_chains_bound_is_tight_for_the_exact_score_of_discrete_images(name, posterior_variance):
  """Of four equally likely images of two pixels with 5 gray levels: log P = -log 4, less what 1,000 steps lose."""
  low, sde = (-1.0, VP()) if name == "vp" else (0.0, VE(0.02, 20.0))
  values = low + (1 - low) * np.array([[0, 0], [1, 4], [4, 2], [3, 3]]) / 4
  n, scales = 512, 1000
  alpha, sigma = (jnp.asarray(a, jnp.float32) for a in sde.levels(scales))
  if name == "ve":
    alpha, sigma = alpha[::-1], sigma[::-1]

  def score(x, t):
    """Exact at the chain's own noise levels, which are not quite those of the SDE."""
    i = jnp.floor(t * (scales - 1) + 1e-5).astype(jnp.int32)
    a, s = alpha[i][:, None], sigma[i][:, None]
    off = (x[:, None] - a[:, None] * jnp.asarray(values, jnp.float32)) / s[:, None] ** 2
    weights = jax.nn.softmax(-jnp.sum(off**2, axis=2) * s**2 / 2, axis=1)
    return -jnp.sum(weights[..., None] * off, axis=1)

  x = jnp.asarray(values[np.arange(n) % 4], jnp.float32)
  keys = example_keys(jax.random.key(1), jnp.arange(n))
  options = {"num_scales": scales, "low": low, "high": 1.0, "levels": 5, "posterior_variance": posterior_variance}
  bound = jax.jit(ChainBound(**options), static_argnums=0)
  found = np.asarray(bound(sde, jax.tree_util.Partial(score), keys, x))
  error = 3 * found.std() / math.sqrt(n)
  assert found.mean() < -math.log(4) + error
  assert found.mean() > -math.log(4) - error - (
    0.05 if posterior_variance else 0.8
  )  # beta is far from the posterior in the first steps
  worse = jax.tree_util.Partial(lambda x, t: 0.8 * score(x, t))
  assert np.asarray(bound(sde, worse, keys, x)).mean() < found.mean() - error


def moments(sde, eps, variance, slope, shift, *, flow):
  """Mean and variance at eps of the reverse SDE, or the ODE, in one dimension with score slope(t) x + shift(t)."""
  times = np.linspace(sde.T, eps, 40_001)
  mean, spread = 0.0, sde.prior_std**2
  share = 0.5 if flow else 1.0
  rate = lambda f: np.asarray(jax.vmap(f)(jnp.asarray((times[1:] + times[:-1]) / 2)))
  rates = rate(sde.dlog_alpha), rate(lambda t: sde.diffusion(jnp.zeros(1), t)) ** 2, rate(slope), rate(shift)
  for h, f, g2, s, c in zip(-np.diff(times), *rates, strict=True):
    pull = -(f - share * g2 * s)  # backward in time: dx = pull x + share g² c
    grown = math.exp(pull * h)
    mean = grown * mean + share * g2 * c * h
    spread = grown**2 * spread + (0.0 if flow else g2 * h)
  return mean, spread


def divergence(variance, mean, spread):
  """KL(N(0, variance) ‖ N(mean, spread))."""
  return (variance / spread - 1 - math.log(variance / spread) + mean**2 / spread) / 2


@pytest.mark.slow
@pytest.mark.parametrize("name", VP_FAST)
def test_theorem_1_bounds_the_sde_and_not_the_ode(name, x64):
  """KL(p ‖ p_SDE) obeys the bound and both vanish for the exact score; a score error exists that KL(p ‖ p_ODE) exceeds.

  Data N(0, 0.5²), the score off by a ripple in its slope: moments of the SDE and the ODE follow from linear ODEs.
  """
  sde, eps, c = SDES[name], 1e-3, 0.5
  data = gaussian([0.0], [[c**2]])
  at = lambda t: (sde.alpha(t) * c) ** 2 + sde.sigma(t) ** 2
  seen = float(at(jnp.array(eps)))
  exceeded = []
  for size in (0.0, 0.1, 0.5):
    for times in ("late", "early"):
      where = (lambda t: t > 0.5) if times == "late" else (lambda t: t <= 0.5)
      slope = lambda t, size=size, where=where: (-1 + size * where(t)) / at(t)
      score = lambda x, t, slope=slope: slope(t)[:, None] * x
      bound = kl_bound(sde, data, score, jax.random.key(0), eps=eps, n=8000, num_times=200)
      sde_law, ode_law = (moments(sde, eps, c**2, slope, jnp.zeros_like, flow=flow) for flow in (False, True))
      to_sde, to_ode = divergence(seen, *sde_law), divergence(seen, *ode_law)
      assert to_sde <= float(bound["bound"]) + 2e-3
      exceeded.append(to_ode > float(bound["bound"]) + 2e-3)
      if size == 0:
        assert abs(float(bound["bound"])) < 5e-3
        assert to_sde < 1e-3
  assert any(exceeded)


def test_what_cannot_work_is_refused():
  with pytest.raises(ValueError, match=r"eps=2.0 must lie in"):
    EvidenceBound(eps=2.0)(VP(), lambda x, t: -x, jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 2)))
  with pytest.raises(ValueError, match="at least 1"):
    EvidenceBound(num_times=0)
  with pytest.raises(ValueError, match="no discrete noise levels"):
    ChainBound(num_scales=10)(SubVP(), lambda x, t: -x, jax.random.split(jax.random.key(0), 2), jnp.zeros((2, 2)))
  assert points(np.zeros((2, 3))).weights.sum() == 1
