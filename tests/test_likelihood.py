"""Likelihoods against exact densities."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import changed

import score_sde as ss
from configs import quickstart
from score_sde import analytic
from score_sde.batch import example_keys, expand
from score_sde.likelihood import (
  ExactLikelihood,
  bits_per_dim,
  decode,
  dequantize_by_truncated_normal,
  encode,
  interpolate,
  log_likelihood,
)
from score_sde.run import data
from score_sde.run.config import BadInput, default_config, resolve
from score_sde.run.evaluate.likelihoods import mean_bits_per_dim
from score_sde.run.experiment import build
from score_sde.sampling import AdaptiveODE
from score_sde.sde import VE, VP, Reverse, SubVP, as_argument

SDES = [VE(sigma_max=20.0), VP(), SubVP()]
VP_FAST = [pytest.param(s, id=type(s).__name__, marks=[] if isinstance(s, VP) else pytest.mark.slow) for s in SDES]
MIXTURE = analytic.GaussianMixture(
  means=[[0.5, -0.3, 0.0], [-0.6, 0.4, 0.2]],
  covariances=[
    [[0.05, 0.02, 0.0], [0.02, 0.04, 0.01], [0.0, 0.01, 0.03]],
    [[0.02, 0.0, 0.0], [0.0, 0.06, 0.0], [0.0, 0.0, 0.05]],
  ],
  weights=[0.3, 0.7],
)


@pytest.mark.parametrize(
  "sde",
  [
    pytest.param(SDES[0], marks=pytest.mark.thorough),
    *(pytest.param(s, marks=[pytest.mark.slow, pytest.mark.longest]) for s in SDES[1:]),
  ],
  ids=lambda s: type(s).__name__,
)
def test_the_exact_trace_gives_the_exact_density(sde):
  """log p_eps of the ODE plus what the normal prior gets wrong at T: log prior(x_T) - log p_T(x_T)."""
  x = MIXTURE.sample(jax.random.key(0), 16).astype(jnp.float32)
  keys = example_keys(jax.random.key(1), jnp.arange(16))
  score = jax.tree_util.Partial(MIXTURE.score(sde))
  log_p, z, _, t = ExactLikelihood(eps=1e-3, probe="exact")(sde, score, keys, x)
  end, eps = jnp.full(16, sde.T), jnp.full(16, 1e-3)
  mismatch = sde.prior_logp(z) - MIXTURE.log_density(sde, z, end)
  exact = MIXTURE.log_density(sde, x, eps)
  bits = np.abs(np.asarray(log_p - mismatch - exact)) / (3 * math.log(2))
  assert (t == sde.T).all()
  assert bits.max() < 1e-3
  prior_logp = lambda z: MIXTURE.log_density(sde, z, jnp.full(len(z), sde.T))
  with_exact_prior = ExactLikelihood(eps=1e-3, probe="exact")(sde, score, keys, x, prior_logp=prior_logp)
  np.testing.assert_allclose(with_exact_prior.log_p, exact, atol=1e-3 * 3 * math.log(2))


@pytest.mark.slow
@pytest.mark.parametrize("probe", ["rademacher", pytest.param("gaussian", marks=pytest.mark.slow)])
def test_estimated_traces_are_unbiased(probe):
  sde, n = VP(), 512
  x = jnp.broadcast_to(jnp.array([0.3, 0.1, -0.1]), (n, 3))
  keys = example_keys(jax.random.key(1), jnp.arange(n))
  score = jax.tree_util.Partial(MIXTURE.score(sde))
  options = {"eps": 1e-3, "rtol": 1e-4, "atol": 1e-4}
  log_p = lambda keys, x, **more: np.asarray(ExactLikelihood(**options, **more)(sde, score, keys, x).log_p)
  exact = log_p(keys[:1], x[:1], probe="exact")
  one, four = log_p(keys, x, probe=probe), log_p(keys, x, probe=probe, num_probes=4)
  for values in (one, four):
    assert abs(values.mean() - exact[0]) < 3 * values.std() / math.sqrt(n) + 1e-3
  assert four.var() < 0.5 * one.var()


@pytest.mark.parametrize(("levels", "scale", "offset"), [(256, 1, 8), (256, 0.5, 7), (17, 0.5, math.log2(17) - 1)])
def test_the_offset_of_bits_per_dim(levels, scale, offset):
  """A uniform density on the unit cube (or on [-1, 1]^D) codes every level equally: log2(levels) bits a dimension."""
  log_p = 6 * math.log(scale)
  assert float(bits_per_dim(jnp.array(log_p), 6, levels, scale)) == pytest.approx(math.log2(levels))
  assert float(bits_per_dim(jnp.array(0.0), 6, levels, scale)) == pytest.approx(offset)


@pytest.mark.slow
@pytest.mark.parametrize("sde", VP_FAST)
def test_encoding_is_undone_by_decoding(sde):
  """Below 1e-3 in float32; latents of data are those of the prior, and so are what lies between two of them."""
  x = MIXTURE.sample(jax.random.key(0), 1000).astype(jnp.float32)
  score = MIXTURE.score(sde)
  z, info = encode(sde, score, x, eps=1e-3)
  back, _ = decode(sde, score, z, eps=1e-3)
  off = np.abs(back - x).max(axis=1)
  assert np.median(off) < 1e-5
  assert np.quantile(off, 0.995) < 1e-3  # float32 cannot do better on the ridge between two modes
  assert (info["t"] == sde.T).all()
  np.testing.assert_allclose(np.cov(np.asarray(z).T) / sde.prior_std**2, np.eye(3), atol=0.15)
  between = interpolate(z[:500], z[500:], jnp.linspace(0, 1, 5))
  np.testing.assert_allclose(between[0], z[:500], atol=1e-3 * sde.prior_std)
  np.testing.assert_allclose(between[-1], z[500:], atol=1e-3 * sde.prior_std)
  norms = np.linalg.norm(between, axis=2) / sde.prior_std
  assert norms.mean(axis=1).std() < 0.1
  cold, _ = decode(sde, score, 0.1 * z, eps=1e-3)
  assert np.std(cold) < np.std(x)


@pytest.mark.slow
def test_a_solve_out_of_steps_tells_where_it_stood():
  x = MIXTURE.sample(jax.random.key(0), 4).astype(jnp.float32)
  score = jax.tree_util.Partial(MIXTURE.score(VP()))
  keys = example_keys(jax.random.key(1), jnp.arange(4))
  _, _, nfe, t = ExactLikelihood(max_steps=5)(VP(), score, keys, x)
  assert (nfe == 31).all()
  assert ((t > 0) & (t < 0.5)).all()
  assert np.isnan(log_likelihood(jax.random.key(1), VP(), score, x, max_steps=5)).all()
  _, info = encode(VP(), score, x, ode=AdaptiveODE(max_steps=5))
  assert (info["t"] < 0.5).all()


@pytest.mark.slow
def test_drift_and_divergence_cost_two_forward_passes():
  """By XLA's count of FLOPs: one jvp with one probe at most 2.1, against 3 for two separate calls."""
  config = default_config()
  config.data.image_size, config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 16, 64, (1, 2), 1
  config.training.sde = "vpsde"
  experiment = build(config)
  params = jax.jit(experiment.init_params)(jax.random.key(0))
  x, t = jnp.zeros((4, 16, 16, 3)), jnp.full(4, 0.5)
  drift = lambda params, x: Reverse(experiment.sde, experiment.score(params), probability_flow=True).drift(x, t)

  def both(params, x, probe):
    value, along = jax.jvp(lambda x: drift(params, x), (x,), (probe,))
    return value, jnp.sum(along * probe, axis=(1, 2, 3))

  flops = [
    jax.jit(f).lower(*args).compile().cost_analysis()["flops"]
    for f, args in ((drift, (params, x)), (both, (params, x, x)))
  ]
  assert flops[1] < 2.1 * flops[0]


def test_unknown_probes_are_refused():
  with pytest.raises(ValueError, match="rademacher, gaussian, exact"):
    ExactLikelihood(probe="cauchy")


@pytest.mark.thorough
@pytest.mark.parametrize("tau", [2.0, 3.0])
def test_truncated_normal_dequantization_bounds_the_probability_of_discrete_data(tau):
  """A lattice of points with known probabilities, whose noisy score is exact. The bound is close for a large tau."""
  sde, gap = ss.VP(), 0.5
  points = gap * np.stack(np.meshgrid(np.arange(4), np.arange(4)), axis=-1).reshape(-1, 2)
  probabilities = np.random.default_rng(0).dirichlet(np.ones(16))
  exact = analytic.GaussianMixture(points, np.zeros((16, 2, 2)), probabilities)
  eps = float(sde.time_of_log_snr(jnp.asarray(2 * np.log(2 * tau / gap))))
  chosen = np.repeat(np.arange(16), 16)
  keys = jax.random.split(jax.random.key(0), len(chosen))
  x, log_q = dequantize_by_truncated_normal(sde, keys, jnp.asarray(points[chosen], jnp.float32), gap, eps)
  found = ss.ExactLikelihood(eps=eps, probe="exact")(sde, exact.score(sde), keys, x)
  bound = np.asarray(found.log_p - log_q).reshape(16, 16).mean(axis=1)
  # On average over the data it is a bound. Its gap is at most that of the truncated mass, here of two coordinates.
  truth, found = (float(probabilities @ values) for values in (np.log(probabilities), bound))
  gap = -2 * np.log(math.erf(tau / 2**0.5))
  assert truth - gap - 0.05 < found < truth + 0.02


@pytest.mark.thorough
@pytest.mark.parametrize("centered", [False, True])
def test_a_run_measures_the_probability_of_discrete_images_by_truncated_normal_dequantization(centered):
  """Data of two images of digits, with probabilities 1/4 and 3/4 and the exact score: 2 and 0.415 bits in 64 pixels."""
  config = changed(
    quickstart.get_config(), data__uniform_dequantization=False, data__centered=centered, eval__probe="exact",
    eval__likelihood="ode", eval__dequantization="truncated_normal", eval__eps=1e-4, eval__batch_size=32,
    eval__num_examples=32,
  )  # fmt: skip
  experiment = build(config)
  source = data.load(config, "test")
  two = source.gather(np.arange(2))["image"]
  values = experiment.scaling.forward(jnp.asarray(two / 16, jnp.float32))

  def exact(x, t):
    alpha, sigma = (expand(f(t), x) for f in (experiment.sde.alpha, experiment.sde.sigma))
    away = jnp.stack([alpha * v - x for v in values])
    square = jnp.sum(away**2, axis=(2, 3, 4)) / (2 * sigma[:, 0, 0, 0] ** 2)
    share = jax.nn.softmax(jnp.log(jnp.array([[0.25], [0.75]])) - square, axis=0)
    return jnp.sum(share[..., None, None, None] * away, axis=0) / sigma**2

  images = data.Arrays(two[np.arange(32) % 2], np.zeros(32, np.int32))
  exactly = dataclasses.replace(experiment, guide=lambda score: as_argument(exact))
  row, bits = mean_bits_per_dim(exactly, experiment.abstract_params(), images, jax.random.key(0))
  assert row["likelihood_failed"] == 0
  np.testing.assert_allclose(bits[::2].mean(), 2 / 64, atol=2e-3)
  np.testing.assert_allclose(bits[1::2].mean(), np.log2(4 / 3) / 64, atol=2e-3)


def test_what_truncated_normal_dequantization_needs_is_checked():
  config = changed(
    quickstart.get_config(), data__uniform_dequantization=False, eval__dequantization="truncated_normal",
    eval__enable_bpd=True,
  )  # fmt: skip
  for values, message in (
    ({"eval__eps": 0.1}, "half the distance of two gray levels is only"),
    ({"data__uniform_dequantization": True}, "is for models of discrete images"),
    ({"eval__likelihood": "elbo"}, r"needs images with gray levels and eval.likelihood='ode'"),
  ):
    with pytest.raises(BadInput, match=message):
      resolve(changed(config, **values))


def test_noise_of_truncated_normal_dequantization_stays_within_half_a_gap():
  keys = jax.random.split(jax.random.key(0), 64)
  x, log_q = dequantize_by_truncated_normal(ss.VP(), keys, jnp.zeros((64, 50)), gap=0.01, eps=1e-3)
  assert float(jnp.max(jnp.abs(x))) <= 0.005 * (1 + 1e-5)
  # Far narrower than the noise it is uniform, with density 1 / gap.
  np.testing.assert_allclose(log_q, 50 * np.log(1 / 0.01), rtol=0.02)


def test_points_of_numpy_have_a_density_and_integers_are_named():
  score = lambda x, t: -x
  density = ss.log_likelihood(jax.random.key(0), ss.VP(), score, np.zeros((4, 2)), probe="exact")
  np.testing.assert_allclose(density, -np.log(2 * np.pi), rtol=1e-3)
  with pytest.raises(ss.InvalidArgument, match=r"^x of int32\[4, 2\] must be an array"):
    ss.log_likelihood(jax.random.key(0), ss.VP(), score, jnp.zeros((4, 2), jnp.int32))
