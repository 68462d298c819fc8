"""Networks on rectangles, series and volumes, and with conditions beside the class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from score_sde.conditions import nothing_like
from score_sde.guidance import ClassifierFree
from score_sde.models import DDPM, MLP, DiT, NCSNpp, NCSNv2_64, WideResnet, dit
from score_sde.sde import VP

NCSNPP = NCSNpp(
  nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0, fir=False, resblock_type="ddpm",
  progressive_input="residual", scale_by_sigma=False, init_scale=1.0,
)  # fmt: skip
DDPM_ = DDPM(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), dropout=0.0, init_scale=1.0)
SMALL = {
  "ncsnpp": NCSNPP,
  "ncsnpp, biggan and fir": NCSNPP.clone(fir=True, resblock_type="biggan", progressive="output_skip"),
  "ddpm": DDPM_,
  "dit": DiT(nf=32, num_res_blocks=1, num_heads=2),
}


def params_of(network, x, y=None):
  """Random parameters, none of which is zero; by NumPy, because JAX would compile a program for each shape."""
  shapes = jax.eval_shape(lambda: network.init(jax.random.key(0), x, jnp.ones(len(x)), None, y)["params"])
  rng = np.random.default_rng(1)
  draw = lambda a: (0.3 * rng.standard_normal(a.shape) / np.sqrt(max(1, np.prod(a.shape[:-1]) / 4))).astype(np.float32)
  scale = lambda path, a: draw(a) + (1.0 if path[-1].key == "scale" else 0.0)
  return jax.tree_util.tree_map_with_path(scale, shapes)


def run(network, params, x, labels, keys=None, y=None):
  return jax.jit(network.apply)({"params": params}, x, labels, keys, y)


def without_neighbours(params, axis):
  """The parameters with kernels that see no neighbours along a spatial axis."""

  def cut(a):
    if a.ndim != 4 or a.shape[axis] != 3:
      return a
    keep = np.zeros(3).reshape([3 if i == axis else 1 for i in range(4)])
    keep.flat[1] = 1
    return a * keep

  return jax.tree.map(cut, params)


@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("name", ["ncsnpp", "ddpm"])
def test_a_rectangle_of_two_equal_squares_gives_the_squares_output_twice(name, axis):
  """Norms and attention see the same statistics; kernels that do not look across the seam see the same pixels.

  Only convolutions of stride 2 differ at borders, so they are left out.
  """
  network = SMALL[name].clone(**({"resamp_with_conv": False, "progressive_input": "none"} if name == "ncsnpp" else
                                 {"resamp_with_conv": False}))  # fmt: skip
  square = jax.random.normal(jax.random.key(2), (2, 16, 16, 3))
  params = without_neighbours(params_of(network, square), axis - 1)
  labels = jnp.array([0.5, 3.0])
  expected = run(network, params, square, labels)
  twice = jnp.concatenate([square, square], axis=axis)
  # Attention is chosen by the height of a level.
  tall = network.clone(attn_resolutions=(16,)) if axis == 1 else network
  found = run(tall, params, twice, labels)
  np.testing.assert_allclose(found, jnp.concatenate([expected, expected], axis=axis), atol=3e-4)


def test_a_transformer_sees_a_rectangle_as_its_patches(monkeypatch):
  """With the positions of the square for both halves, attention to two equal halves is attention to one."""
  network, square = SMALL["dit"], jax.random.normal(jax.random.key(2), (2, 8, 8, 3))
  params, labels = params_of(network, square), jnp.array([5.0, 300.0])
  expected = run(network, params, square, labels)
  positions = dit._sincos((4, 4), 32).reshape(4, 4, 32)
  monkeypatch.setattr(dit, "_sincos", lambda sizes, dim: np.concatenate([positions, positions], axis=1).reshape(-1, 32))
  found = run(network, params, jnp.concatenate([square, square], axis=2), labels)
  np.testing.assert_allclose(found, jnp.concatenate([expected, expected], axis=2), atol=1e-4)


@pytest.mark.parametrize("network", [NCSNv2_64(nf=8), WideResnet(num_classes=3)], ids=["ncsnv2", "wideresnet"])
def test_other_networks_take_rectangles(network):
  x, labels = jnp.ones((2, 32, 64, 3)), jnp.ones(2) if isinstance(network, WideResnet) else jnp.ones(2, jnp.int32)
  out = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), x, labels)[0])
  assert out.shape == ((2, 3) if isinstance(network, WideResnet) else x.shape)


@pytest.mark.parametrize("name", ["ncsnpp", "ddpm"])
def test_a_series_is_an_image_of_equal_rows(name):
  """An image whose rows are all equal, with kernels that do not look at other rows, is a series."""
  network, series = SMALL[name].clone(resamp_with_conv=False), jax.random.normal(jax.random.key(3), (2, 16, 2))
  network = network.clone(progressive_input="none") if name == "ncsnpp" else network
  params, labels = params_of(network, series), jnp.array([0.5, 3.0])
  out = run(network, params, series, labels)
  image = jnp.broadcast_to(series[:, None], (2, 16, 16, 2))
  as_2d = jax.tree.map(lambda a: np.stack([0 * a, a, 0 * a]) if a.ndim == 3 and a.shape[0] == 3 else a, params)
  as_2d = jax.tree.map(lambda a: a[None] if a.ndim == 3 and a.shape[0] == 1 else a, as_2d)
  found = run(network, as_2d, image, labels)
  np.testing.assert_allclose(found, jnp.broadcast_to(out[:, None], image.shape), atol=3e-4)


@pytest.mark.parametrize("shape", [(16, 2), (8, 4, 4, 2)], ids=["series", "volume"])
@pytest.mark.parametrize("name", SMALL)
def test_series_and_volumes_have_kernels_of_as_many_dimensions(name, shape):
  network, x = SMALL[name], jnp.ones((1, *shape))
  out, variables = jax.eval_shape(lambda: network.init_with_output(jax.random.key(0), x, jnp.ones(1)))
  assert out.shape == x.shape
  if name != "dit":
    spatial = len(shape) - 1
    assert any(a.shape[:-2] == (3,) * spatial for a in jax.tree.leaves(variables))


# --- conditions -------------------------------------------------------------------------------------------------------

ONE_LEVEL = NCSNPP.clone(ch_mult=(1,), attn_resolutions=())
CONDITIONAL = [
  (MLP(nf=16, num_res_blocks=1), (5,), (3,)),
  (MLP(nf=16, num_res_blocks=1), (4, 2), (4, 3)),
  (ONE_LEVEL, (8, 8, 1), (4,)),
  (ONE_LEVEL, (8, 8, 1), (8, 8, 2)),
  (ONE_LEVEL, (16, 2), (16, 1)),
  (DDPM_.clone(ch_mult=(1,), attn_resolutions=(), norm_groups=8), (8, 8, 1), (8, 8, 1)),
  (SMALL["dit"], (8, 8, 1), (8, 8, 1)),
  (SMALL["dit"], (8, 8, 1), (3,)),
]


@pytest.mark.parametrize(("network", "shape", "condition"), CONDITIONAL, ids=lambda v: str(getattr(v, "name", v))[:20])
def test_a_condition_changes_the_output_and_none_is_not_zero(network, shape, condition):
  network = network.clone(condition_shape=condition, num_classes=2)
  x, labels = jax.random.normal(jax.random.key(0), (2, *shape)), jnp.ones(2)
  c = jax.random.normal(jax.random.key(1), (2, *condition))
  params = params_of(network, x, {"label": jnp.zeros(2, jnp.int32), "condition": c})
  out = lambda y: run(network, params, x, labels, None, y)
  given = {"label": jnp.array([0, 1]), "condition": c}
  assert out(given).shape == x.shape
  assert not np.allclose(out(given), out(given | {"condition": c + 1}), atol=1e-4)
  assert not np.allclose(out(given), out(given | {"label": jnp.array([1, 1])}), atol=1e-4)
  assert not np.allclose(out(given | {"condition": 0 * c}), out(given | {"condition": np.nan * c}), atol=1e-4)
  if not isinstance(network, NCSNpp | DDPM):  # a second program
    np.testing.assert_allclose(out(nothing_like(given)), out(None), atol=1e-6)


def test_conditions_are_dropped_for_a_share_of_the_examples_and_by_their_own_keys():
  network = MLP(nf=16, num_res_blocks=1, condition_shape=(3,), condition_dropout=0.3)
  x, labels, c = jnp.ones((400, 2)), jnp.ones(400), jnp.ones((400, 3))
  params = params_of(network, x, {"condition": c})
  keys = jax.random.split(jax.random.key(0), 400)
  out = lambda y, keys: run(network, params, x, labels, keys, y)
  dropped = np.isclose(out({"condition": c}, keys), out(None, None)[0]).all(axis=1)
  assert dropped.mean() == pytest.approx(0.3, abs=0.07)
  alone = run(network, params, x[:7], labels[:7], keys[:7], {"condition": c[:7]})
  np.testing.assert_allclose(alone, out({"condition": c}, keys)[:7], atol=1e-6)


def test_classifier_free_guidance_takes_labels_conditions_and_both():
  """score + scale (score of y - score): of scale 2 it goes as far beyond the conditional score again."""

  def score(x, t, y):
    c, label = y["condition"], y["label"]
    given = ~jnp.isnan(c).any(axis=1)
    return x + jnp.where(given, jnp.nan_to_num(c).sum(axis=1) + label, 0)[:, None]

  x, t = jnp.zeros((3, 2)), jnp.full(3, 0.5)
  y = {"label": jnp.array([1, 2, 3]), "condition": jnp.ones((3, 4))}
  found = ClassifierFree(VP(), scale=2.0)(score, x, t, y)
  np.testing.assert_allclose(found, 2 * score(x, t, y), rtol=1e-6)


# --- a posterior that is known ----------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.longest
def test_the_learned_posterior_of_a_linear_gaussian_model_is_the_closed_form():
  """x ~ N(0, S), c = A x + noise: x | c is Gaussian with known mean and covariance; ranks of the truth are uniform."""
  from fitting import fit
  from scipy import stats

  import score_sde as ss

  rng = np.random.default_rng(0)
  s = np.array([[1.0, 0.6], [0.6, 0.8]])
  a, noise = np.array([[1.0, -0.5]]), 0.5
  gain = s @ a.T @ np.linalg.inv(a @ s @ a.T + noise**2 * np.eye(1))
  covariance = s - gain @ a @ s

  def pairs(rng, n):
    x = rng.multivariate_normal(np.zeros(2), s, n)
    return x.astype(np.float32), (x @ a.T + noise * rng.standard_normal((n, 1))).astype(np.float32)

  network = MLP(nf=64, num_res_blocks=2, condition_shape=(1,), condition_dropout=0.1)
  apply = lambda params, x, labels, keys=None, *y: network.apply({"params": params}, x, labels, keys, *y)
  model = ss.ScoreModel(ss.VP(), apply, parameterization="edm", conditioning="sigma", sigma_data=1.0)
  loss = ss.ScoreMatching(model, weighting="edm", time_sampling="lognormal", stratified=True)
  params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
  root, gain_ = jnp.asarray(np.linalg.cholesky(s), jnp.float32), jnp.asarray(a.T, jnp.float32)

  def draw(key, n):
    key, other = jax.random.split(key)
    x = jax.random.normal(key, (n, 2)) @ root.T
    return jnp.concatenate([x, x @ gain_ + noise * jax.random.normal(other, (n, 1))], axis=1)

  conditional = lambda params, keys, both, index, size: loss(
    params, keys, both[:, :2], index, size, y={"condition": both[:, 2:]}
  )
  params = fit(conditional, params, draw, 3000)
  score = jax.tree_util.Partial(model.score, params)
  sample = lambda key, c: ss.sample(
    jax.random.key(key),
    ss.VP(),
    score,
    (len(c), 2),
    condition={"condition": jnp.asarray(c)},
    solver=ss.UniPC(),
    steps=20,
  )
  for value in (-1.5, 0.0, 1.0):
    x = np.asarray(sample(0, np.full((20_000, 1), value, np.float32)))
    np.testing.assert_allclose(x.mean(0), gain[:, 0] * value, atol=0.05)
    np.testing.assert_allclose(np.cov(x.T), covariance, rtol=0.05, atol=0.02)
  without = np.asarray(sample(1, np.full((20_000, 1), np.nan, np.float32)))  # "not given": the prior
  np.testing.assert_allclose(np.cov(without.T), s, rtol=0.08, atol=0.03)

  truth, c = pairs(rng, 2000)
  drawn = np.asarray(sample(2, np.repeat(c, 19, axis=0))).reshape(2000, 19, 2)
  for direction in ([1, 0], [0, 1], [1, 1]):
    ranks = np.sum(drawn @ direction < (truth @ direction)[:, None], axis=1)  # 0 to 19
    assert stats.chisquare(np.bincount(ranks, minlength=20)).pvalue > 0.01, direction
