"""Energy-based models: a network whose output is a gradient, and the density that it belongs to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from fitting import fit

from score_sde import analytic
from score_sde.batch import example_keys
from score_sde.likelihood import normalize
from score_sde.losses import OBJECTIVES
from score_sde.models import energy
from score_sde.parameterization import PREDICTIONS, ScoreModel
from score_sde.run import config
from score_sde.run.experiment import build
from score_sde.sde import VE, VP

MIXTURE = analytic.GaussianMixture(
  means=[[1.0, -0.5], [-0.8, 0.6]],
  covariances=[[[0.3, 0.1], [0.1, 0.2]], [[0.2, 0.0], [0.0, 0.4]]],
  weights=[0.4, 0.6],
)


def field(params, x, labels, keys, y=None):
  """No gradient of anything: its Jacobian is not symmetric."""
  return jnp.sin(x @ jnp.array([[1.0, 2.0], [-1.0, 0.5]])) * params + 0.1 * labels[:, None]


@pytest.mark.thorough
@pytest.mark.parametrize("head", energy.HEADS)
@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_the_score_is_the_gradient_of_the_density_in_every_parameterization(prediction, head, x64):
  scalar = energy.potential(field, head)
  model = ScoreModel(VP(), energy.gradient(scalar), prediction, "sigma", potential=scalar)
  x, t = jax.random.normal(jax.random.key(0), (5, 2)), jnp.linspace(0.05, 0.9, 5)
  score = model.score(1.3, x, t)
  gradient = jax.grad(lambda x: model.log_density(1.3, x, t).sum())(x)
  np.testing.assert_allclose(score, gradient, rtol=1e-9, atol=1e-12)
  jacobian = jax.vmap(jax.jacobian(lambda x, t: model.score(1.3, x[None], t[None])[0]))(x, t)
  np.testing.assert_allclose(jacobian, jnp.swapaxes(jacobian, 1, 2), atol=1e-9)
  plain = ScoreModel(VP(), field, prediction, "sigma")
  jacobian = jax.vmap(jax.jacobian(lambda x, t: plain.score(1.3, x[None], t[None])[0]))(x, t)
  assert jnp.abs(jacobian - jnp.swapaxes(jacobian, 1, 2)).max() > 0.1  # or the line above says nothing
  with pytest.raises(ValueError, match="gradient of no potential"):
    plain.log_density(1.3, x, t)


@pytest.mark.parametrize("dims", [1, 2])
def test_quadrature_normalizes_a_density(dims):
  """An exact log-density, shifted by a constant that quadrature has to find."""
  data = analytic.gaussian(np.full(dims, 0.3), 0.25 * np.eye(dims))
  log_p = lambda x: data.log_density(VE(), x, jnp.full(len(x), 1e-3))
  points, normalized, log_z = normalize(lambda x: log_p(x) + 7.0, np.full(dims, -4.0), np.full(dims, 4.0))
  assert float(log_z) == pytest.approx(7.0, abs=1e-3)
  np.testing.assert_allclose(normalized, log_p(points.reshape(-1, dims)).reshape(normalized.shape), atol=1e-3)
  assert points.shape == (200,) * dims + (dims,)


def test_quadrature_refuses_other_dimensions():
  with pytest.raises(ValueError, match="one or two dimensions"):
    normalize(lambda x: x.sum(axis=1), np.zeros(3), np.ones(3))
  with pytest.raises(ValueError, match="low < high"):
    normalize(lambda x: x.sum(axis=1), np.ones(2), np.zeros(2))


def _config(**options):
  from configs.toy import eight_gaussians

  c = eight_gaussians.get_config()
  c.model.nf = 16
  c.model.num_res_blocks = 1
  return runs.changed(c, **options)


@pytest.mark.thorough
@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("head", [pytest.param("none", marks=[pytest.mark.slow, pytest.mark.longest]), "inner"])
def test_networks_and_energies_have_a_gradient_under_every_objective(name, head):
  """A fresh network has zero output and still learns: no head starts where its gradient vanishes."""
  experiment = build(_config(model__energy=head, training__objective=name))
  params = experiment.init_params(jax.random.key(0))
  keys, index = example_keys(jax.random.key(1), jnp.arange(64)), jnp.arange(64)
  x = jax.random.normal(jax.random.key(2), (64, 2))
  loss = lambda p: experiment.loss(p, keys, x, index, 64).mean()
  value, gradient = jax.jit(jax.value_and_grad(loss))(params)
  norm = jnp.sqrt(sum(jnp.sum(g**2) for g in jax.tree.leaves(gradient)))
  assert jnp.isfinite(value)
  assert norm > 1e-4


def test_the_target_of_explicit_score_matching_is_the_score_of_the_data():
  experiment = build(_config(training__objective="esm"))
  from score_sde.run import data

  source = data.load(experiment.config, "train")
  x = jnp.asarray(source.gather(np.arange(4000))["image"])
  density = data.DENSITIES["eight_gaussians"]()
  t = jnp.full(4000, 0.1)
  # E[x s(x)] = -1 per dimension for the score of the law that x is drawn from, here noisy data.
  noisy = VP().alpha(t)[:, None] * x + VP().sigma(t)[:, None] * jax.random.normal(jax.random.key(0), x.shape)
  assert float(jnp.mean(noisy * density.score(VP())(noisy, t))) == pytest.approx(-1, abs=0.1)
  with pytest.raises(config.BadInput, match="density is known"):
    build(_config(data__dataset="two_moons", training__objective="esm"))


def test_implicit_score_matching_of_large_images_is_refused():
  from configs.vp import cifar10_ddpmpp_continuous

  c = cifar10_ddpmpp_continuous.get_config()
  c.training.objective = "ism"
  with pytest.raises(config.BadInput, match="each of the data's 3072 dimensions"):
    build(c)


@pytest.mark.slow
@pytest.mark.longest
def test_an_energy_trained_by_sliced_score_matching_has_the_density_of_the_data():
  """KL(p | model) by quadrature, of a mixture at one noise level, from an energy that nobody normalized."""
  from score_sde.losses import ScoreMatching
  from score_sde.models import MLP

  network = MLP(nf=64, num_res_blocks=2, nonlinearity="swish", fourier_scale=0.2)
  params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
  scalar = energy.potential(lambda p, x, *rest: network.apply({"params": p}, x, *rest), "inner")
  sde = VE()
  model = ScoreModel(sde, energy.gradient(scalar), "edm", "sigma", sigma_data=1.0, potential=scalar)
  loss = ScoreMatching(model, objective="ssm_vr", time_sampling="single", single_sigma=0.3)
  params = fit(loss, params, MIXTURE.sample, 1500)
  t = sde.time_of_log_snr(jnp.asarray(-2 * np.log(0.3)))
  at = lambda f: lambda x: f(x, jnp.full(len(x), t))
  _, exact, _ = normalize(at(lambda x, t: MIXTURE.log_density(sde, x, t)), np.full(2, -4.0), np.full(2, 4.0))
  _, learned, _ = normalize(at(lambda x, t: model.log_density(params, x, t)), np.full(2, -4.0), np.full(2, 4.0))
  divergence = jnp.sum(jnp.exp(exact) * (exact - learned)) * (8 / 200) ** 2
  assert 0 <= divergence < 0.02


LONGEST = [pytest.param(name, marks=pytest.mark.longest) for name in ("ncsnpp", "ddpm", "ncsnv2_64")]


@pytest.mark.slow
@pytest.mark.parametrize("name", [*LONGEST, "dit", "mlp"])
def test_every_network_learns_by_sliced_score_matching_as_an_energy(name):
  """Second derivatives through every layer there is: attention, FIR resampling, normalizations, pooling."""
  from configs import quickstart

  c = quickstart.get_config()
  c.model.name, c.model.energy, c.training.objective = name, "inner", "ssm_vr"
  c.model.nf = 24 if name == "dit" else 64
  c.model.num_res_blocks = 1
  if name in ("ncsnpp", "ddpm"):
    c.model.ch_mult, c.model.attn_resolutions = (1, 2), (4,)
  if name != "mlp":
    c.model.fourier_scale = 16.0  # the default, for networks that do not read it
  if name == "dit":
    c.model.num_heads = 2
  if name == "ncsnv2_64":
    c.training.sde, c.training.continuous, c.model.parameterization = "vesde", False, "score"
    c.training.weighting = c.training.time_sampling = None
    c.model.embedding_type, c.model.num_res_blocks, c.model.dropout = "positional", 4, 0.1
  if name == "ddpm":
    c.model.embedding_type = "positional"
    c.model.conditioning = "time"
  experiment = build(c)
  params = experiment.init_params(jax.random.key(0))
  keys, index = example_keys(jax.random.key(1), jnp.arange(2)), jnp.arange(2)
  x = jax.random.uniform(jax.random.key(2), (2, *experiment.shape))
  loss = lambda p: experiment.loss(p, keys, x, index, 2).mean()
  gradient = jax.jit(jax.grad(loss))(params)
  leaves = jax.tree.leaves(gradient)
  assert all(jnp.isfinite(g).all() for g in leaves)
  assert sum(jnp.sum(g**2) for g in leaves) > 0
