"""The SDEs against the official numbers, their own closed forms, and the limits of float32."""

import dataclasses

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde import analytic
from score_sde.batch import example_keys, expand, normal
from score_sde.sampling import PredictorCorrector, sample
from score_sde.sde import (
  SDE,
  VE,
  VP,
  CosineVP,
  LinearSDE,
  RectifiedFlow,
  Reflected,
  Reverse,
  SubVP,
  covariance_divergence,
)

LINEAR = {"ve": VE(0.01, 50.0), "ve_celeba": VE(0.01, 90.0), "vp": VP(0.1, 20.0), "subvp": SubVP(0.1, 20.0)}
FAMILY = [VE(), VP(), SubVP(), CosineVP(), RectifiedFlow()]


def golden_score(x, t):
  return -jnp.tanh(x) * expand(1 + t, x)


@pytest.mark.parametrize("name", LINEAR)
def test_every_official_coefficient_agrees(name, x64):
  case, sde = golden_cases.load("sde"), LINEAR[name]
  x, t = jnp.asarray(case["x"]), jnp.asarray(case["t"])
  # The published tables: VE goes from entry i to i - 1 of N geometric sigmas, VP and sub-VP step by 1 / N.
  stop = (jnp.round(t * 999) - 1) / 999 if isinstance(sde, VE) else t - 1 / 1000
  forms = {
    "": sde,
    "reverse_sde_": Reverse(sde, golden_score),
    "reverse_ode_": Reverse(sde, golden_score, probability_flow=True),
  }
  got = {"mean": sde.marginal(x, t)[0], "std": sde.marginal(x, t)[1], "prior_logp": sde.prior_logp(x)}
  for prefix, form in forms.items():
    got |= {f"{prefix}drift": form.drift(x, t), f"{prefix}diffusion": form.diffusion(x, t)}
    got |= dict(zip((f"{prefix}discretize_f", f"{prefix}discretize_G"), form.discretize(x, t, t, stop), strict=True))
  if isinstance(sde, VE):
    got["discrete_sigmas"] = sde.levels(1000)[1][::-1]
  elif isinstance(sde, VP):
    got["alphas_cumprod"] = sde.levels(1000)[0] ** 2
    grid = jnp.arange(1000) / 999
    got["discrete_betas"] = sde.chain(grid, grid, grid - 1e-3)[1] ** 2
  expected = {k.removeprefix(f"{name}/"): v for k, v in case.items() if k.startswith(f"{name}/")}
  assert got.keys() == expected.keys()
  for key, value in expected.items():
    assert golden_cases.relative_error(got[key], value) < 1e-12, key


@pytest.mark.parametrize("sde", FAMILY, ids=lambda s: type(s).__name__)
def test_float32_coefficients_are_accurate_at_both_ends_of_time(sde, x64):
  T = sde.T
  t = np.concatenate([np.geomspace(1e-5, T, 5001), np.linspace(1e-5, T, 5001)]).astype(np.float32)
  for quantity in (sde.alpha, sde.sigma):
    exact = np.asarray(quantity(jnp.asarray(t, jnp.float64)))
    assert np.max(np.abs(np.asarray(quantity(jnp.asarray(t)), np.float64) / exact - 1)) < 1e-5


@pytest.mark.parametrize("sde", FAMILY, ids=lambda s: type(s).__name__)
def test_closed_forms_agree_with_what_follows_from_alpha_and_sigma(sde, x64):
  """Every method that an SDE overrides for speed or precision equals the base class's derivation."""
  t = jnp.linspace(1e-3, sde.T, 101)
  x = jnp.ones((101, 2))
  for name, arguments in {
    "log_snr": (t,),
    "dlog_alpha": (t,),
    "dlog_snr": (t,),
    "drift": (x, t),
    "diffusion": (x, t),
    "transition": (t[:-1], t[1:]),
    "time_of_log_snr": (sde.log_snr(t),),
  }.items():
    closed = jax.tree.leaves(getattr(sde, name)(*arguments))
    derived = jax.tree.leaves(getattr(LinearSDE, name)(sde, *arguments))
    for a, b in zip(closed, derived, strict=True):
      np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda s: type(s).__name__)
def test_transitions_compose(sde, x64):
  """From s to u directly, or through t: the same Gaussian. From s = 0, where VE's sigma is zero: the marginal."""
  s, t, u = jnp.array([0.05]), jnp.array([0.3]), jnp.array([0.9])
  (r1, v1), (r2, v2), (r, v) = sde.transition(s, t), sde.transition(t, u), sde.transition(s, u)
  np.testing.assert_allclose(r1 * r2, r, rtol=1e-12)
  np.testing.assert_allclose(jnp.sqrt((r2 * v1) ** 2 + v2**2), v, rtol=1e-12)
  r, v = sde.transition(jnp.zeros(1), u)
  np.testing.assert_allclose([r, v], [sde.alpha(u), sde.sigma(u)], rtol=1e-12)


@pytest.mark.parametrize("sde", FAMILY, ids=lambda s: type(s).__name__)
def test_prior_sample_has_the_prior_density(sde):
  keys = example_keys(jax.random.key(0), jnp.arange(4000))
  z = sde.prior_sample(keys, (4000, 3))
  assert float(jnp.std(z)) == pytest.approx(sde.prior_std, rel=0.03)
  # E[-log p] of a Gaussian is its entropy.
  entropy = 1.5 * np.log(2 * np.pi * np.e * sde.prior_std**2)
  assert float(-jnp.mean(sde.prior_logp(z))) == pytest.approx(entropy, abs=4 * np.sqrt(1.5 / 4000))


def test_the_cosine_schedule_is_that_of_nichol_and_dhariwal():
  """Their tables: alpha-bar of eq. (17) at 1,000 levels, with steps clipped at 0.999 near the end."""
  f = np.cos((np.arange(1001) / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2
  alpha, sigma = CosineVP().levels(1000)
  np.testing.assert_allclose(alpha[:-1] ** 2, (f / f[0])[1:-1], rtol=1e-10)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, rtol=1e-12)
  assert alpha[-1] ** 2 == pytest.approx(0.001 * alpha[-2] ** 2, rel=1e-12)
  t = jnp.arange(1, 1000) / 1000
  np.testing.assert_allclose(CosineVP().alpha(t), alpha[:-1], rtol=1e-4)


def test_the_probability_flow_of_the_linear_path_is_the_velocity_of_rectified_flow(x64):
  """f - ½ g² score = E[z - x_0 | x_t], with the exact score of a mixture."""
  data = analytic.points([[1.0, 0.0], [-0.5, 0.7], [0.2, -1.0]])
  sde = RectifiedFlow()
  x, t = jax.random.normal(jax.random.key(0), (20, 2)), jnp.linspace(0.05, 0.95, 20)
  posterior = data.posterior_mean(sde, x, t)
  noise = (x - (1 - t)[:, None] * posterior) / t[:, None]
  flow = Reverse(sde, data.score(sde), probability_flow=True).drift(x, t)
  np.testing.assert_allclose(flow, noise - posterior, rtol=1e-8, atol=1e-8)


@dataclasses.dataclass(frozen=True)
class Stationary(SDE):
  """dx = ½ ((G²)' - x G²) dt + G dw with G² = 1 + ½ tanh² x: N(0, 1) stays N(0, 1), and the score is -x."""

  def drift(self, x, t):
    square = 1 + 0.5 * jnp.tanh(x) ** 2
    return 0.5 * (jnp.tanh(x) / jnp.cosh(x) ** 2 - x * square)

  def diffusion(self, x, t):
    return jnp.sqrt(1 + 0.5 * jnp.tanh(x) ** 2)

  @property
  def has_prior(self):
    return True

  def prior_sample(self, keys, shape, dtype=jnp.float32):
    return normal(keys, jnp.zeros(shape, dtype))


@pytest.mark.parametrize("predictor", ["euler_maruyama", "reverse_diffusion"])
@pytest.mark.parametrize("probability_flow", [False, True])
def test_a_diffusion_that_depends_on_the_state_keeps_a_stationary_law(predictor, probability_flow):
  """Without the divergence of G Gᵀ, the standard deviation would be 0.89 (Song et al. 2021, Appendix A)."""
  solver = PredictorCorrector(predictor=predictor, corrector="none", probability_flow=probability_flow)
  x = sample(jax.random.key(0), Stationary(), lambda x, t: -x, (8000, 1), solver=solver, steps=200)
  assert float(x.std()) == pytest.approx(1.0, abs=0.03)  # three standard errors, and the step's


@dataclasses.dataclass(frozen=True)
class StateDependent(SDE):
  """G = diag(x²): G Gᵀ has the divergence 4 x³."""

  def drift(self, x, t):
    return -x

  def diffusion(self, x, t):
    return x**2


@dataclasses.dataclass(frozen=True)
class Rotation:
  """The operator [[0, -x₀], [x₁, 0]]: G Gᵀ = diag(x₀², x₁²), whose divergence is 2 x."""

  x: jax.Array

  def matvec(self, v):
    return jnp.stack([-self.x[:, 0] * v[:, 1], self.x[:, 1] * v[:, 0]], axis=1)

  def rmatvec(self, v):
    return jnp.stack([self.x[:, 1] * v[:, 1], -self.x[:, 0] * v[:, 0]], axis=1)


@dataclasses.dataclass(frozen=True)
class Operator(StateDependent):
  def diffusion(self, x, t):
    return Rotation(x)


jax.tree_util.register_dataclass(Rotation, ["x"], [])


def test_reverse_drift_carries_the_divergence_of_a_state_dependent_diffusion(x64):
  x, t = jnp.array([[1.0, -2.0], [0.5, 3.0]]), jnp.array([0.1, 0.2])
  np.testing.assert_allclose(covariance_divergence(StateDependent(), x, t), 4 * x**3)
  np.testing.assert_allclose(covariance_divergence(Operator(), x, t), 2 * x)
  drift = Reverse(StateDependent(), golden_score).drift(x, t)
  np.testing.assert_allclose(drift, -x - 4 * x**3 - x**4 * golden_score(x, t))
  assert covariance_divergence(VP(), x, t) == 0.0


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda: VE(0.0, 50.0), "sigma_min"),
    (lambda: VE(2.0, 1.0), "sigma_max"),
    (lambda: VP(-0.1, 20.0), "beta_min"),
    (lambda: SubVP(1.0, 0.5), "beta_max"),
    (lambda: VP().levels(10), "num_scales"),
    (lambda: CosineVP(s=-1.0), r"s=-?[0-9.]+ must not be negative"),
    (lambda: CosineVP(delta=0.0), r"delta=[0-9.]+ must lie in \(0, 1\)"),
    (lambda: RectifiedFlow(delta=1.0), r"delta=[0-9.]+ must lie in \(0, 1\)"),
    (lambda: Reflected(VE(), 1.0, 0.0), "low < high"),
  ],
)
def test_impossible_parameters_are_refused(make, message):
  with pytest.raises(ValueError, match=message):
    make()


@pytest.mark.parametrize("num_scales", [10, 100, 1000, 2000])
def test_times_of_a_grid_find_their_own_level_in_float32(num_scales):
  """The label of a float32 time can be a little below its whole number: 50/99 * 99 by 2.4e-6."""
  index = np.arange(num_scales)
  times = jnp.asarray(index / (num_scales - 1), jnp.float32)
  np.testing.assert_array_equal(VP().level(times, num_scales)[1], index)
