"""Likelihoods against exact densities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.batch import example_keys
from score_sde.likelihood import bits_per_dim, log_likelihood
from score_sde.sde import VE, VP, SubVP

SDES = [VE(sigma_max=20.0), VP(), SubVP()]
MIXTURE = analytic.GaussianMixture(
  means=[[0.5, -0.3, 0.0], [-0.6, 0.4, 0.2]],
  covariances=[
    [[0.05, 0.02, 0.0], [0.02, 0.04, 0.01], [0.0, 0.01, 0.03]],
    [[0.02, 0.0, 0.0], [0.0, 0.06, 0.0], [0.0, 0.0, 0.05]],
  ],
  weights=[0.3, 0.7],
)


@pytest.mark.parametrize("sde", SDES, ids=lambda s: type(s).__name__)
def test_the_exact_trace_gives_the_exact_density(sde):
  """log p_eps of the ODE plus what the normal prior gets wrong at T: log prior(x_T) - log p_T(x_T)."""
  x = MIXTURE.sample(jax.random.key(0), 16).astype(jnp.float32)
  keys = example_keys(jax.random.key(1), jnp.arange(16))
  score = jax.tree_util.Partial(MIXTURE.score(sde))
  log_p, z, _, success = log_likelihood(sde, eps=1e-3, probe="exact")(score, keys, x)
  end, eps = jnp.full(16, sde.T), jnp.full(16, 1e-3)
  mismatch = sde.prior_logp(z) - MIXTURE.log_density(sde, z, end)
  exact = MIXTURE.log_density(sde, x, eps)
  bits = np.abs(np.asarray(log_p - mismatch - exact)) / (3 * math.log(2))
  assert success.all()
  assert bits.max() < 1e-3


@pytest.mark.parametrize("probe", ["rademacher", "gaussian"])
def test_estimated_traces_are_unbiased(probe):
  sde, n = VP(), 512
  x = jnp.broadcast_to(jnp.array([0.3, 0.1, -0.1]), (n, 3))
  keys = example_keys(jax.random.key(1), jnp.arange(n))
  score = jax.tree_util.Partial(MIXTURE.score(sde))
  options = {"eps": 1e-3, "rtol": 1e-4, "atol": 1e-4}
  exact = log_likelihood(sde, probe="exact", **options)(score, keys[:1], x[:1])[0]
  one = np.asarray(log_likelihood(sde, probe=probe, **options)(score, keys, x)[0])
  four = np.asarray(log_likelihood(sde, probe=probe, num_probes=4, **options)(score, keys, x)[0])
  for values in (one, four):
    assert abs(values.mean() - exact[0]) < 4 * values.std() / math.sqrt(n) + 1e-3
  assert four.var() < 0.5 * one.var()


@pytest.mark.parametrize(("levels", "scale", "offset"), [(256, 1, 8), (256, 0.5, 7), (17, 0.5, math.log2(17) - 1)])
def test_the_offset_of_bits_per_dim(levels, scale, offset):
  """A uniform density on the unit cube (or on [-1, 1]^D) codes every level equally: log2(levels) bits a dimension."""
  log_p = 6 * math.log(scale)
  assert float(bits_per_dim(jnp.array(log_p), 6, levels, scale)) == pytest.approx(math.log2(levels))
  assert float(bits_per_dim(jnp.array(0.0), 6, levels, scale)) == pytest.approx(offset)


def test_unknown_probes_are_refused():
  with pytest.raises(ValueError, match="rademacher, gaussian, exact"):
    log_likelihood(VP(), probe="cauchy")
