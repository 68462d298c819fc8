"""Consistency models: losses that the exact function makes zero, schedules of the papers, sampling, and a whole run."""

import dataclasses

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import score_sde as ss
from score_sde.analytic import GaussianMixture
from score_sde.batch import example_keys
from score_sde.losses import CONSISTENCY, ConsistencyLoss

SDES = {"ve": ss.VE(0.002, 80.0), "vp": ss.VP(), "flow": ss.RectifiedFlow(1e-2)}
WIDTH = 0.5  # sigma_data
MEAN, VARIANCE = jnp.array([0.5, -1.0, 2.0]), jnp.array([0.04, 0.25, 1.0])
EPS = 1e-3
B = 512


class Tiny(nn.Module):
  """A network of two dimensions and the noise level."""

  @nn.compact
  def __call__(self, x, ratio):
    phase = jnp.log(ratio)[:, None] / 4 * jnp.arange(1, 9)
    h = jnp.concatenate([x, jnp.sin(phase), jnp.cos(phase)], axis=1)
    for _ in range(4):
      h = nn.silu(nn.Dense(128)(h))
    return nn.Dense(2)(h)


def level(sde: ss.LinearSDE, t: float) -> float:
  return float(jnp.exp(-sde.log_snr(jnp.asarray(t)) / 2))


def network_of(estimate, end: float = 0.0):
  """The network for which the preconditioned model is `estimate(x / alpha, s)`, plus its parameter."""

  def network(params, x, label, keys, y=None):
    s = label.reshape(-1, *[1] * (x.ndim - 1))
    gap = jnp.maximum(s - end, 1e-6)
    whole = x * jnp.sqrt(s**2 + WIDTH**2)
    skipped = WIDTH**2 / ((s - end) ** 2 + WIDTH**2) * whole
    return (estimate(whole, s) - skipped) * jnp.sqrt(s**2 + WIDTH**2) / (gap * WIDTH) + params

  return network


def models(sde: ss.LinearSDE, end: float = 0.0, variance=VARIANCE):
  """The exact consistency function of N(MEAN, diag(variance)), and its exact score as a teacher."""
  last = level(sde, end) if end else 0.0
  path = lambda x, s: MEAN + (x - MEAN) * jnp.sqrt((variance + last**2) / (variance + s**2))
  denoiser = lambda x, s: MEAN + (x - MEAN) * variance / (variance + s**2)
  make = {"parameterization": "edm", "conditioning": "sigma", "sigma_data": WIDTH}
  exact = ss.ConsistencyModel(sde, network_of(path, last), **make, end=end)
  return exact, ss.ScoreModel(sde, network_of(denoiser), **make)


def data(variance=VARIANCE):
  return MEAN + jnp.sqrt(variance) * jax.random.normal(jax.random.key(1), (B, 3))


def mean_loss(loss: ConsistencyLoss, params: float, x0, **options) -> float:
  keys = example_keys(jax.random.key(0), jnp.arange(B))
  call = jax.jit(lambda p, options: loss(p, keys, x0, jnp.arange(B), B, train=False, **options))
  return float(jnp.mean(call(params, options)))


# --- the function -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
def test_at_the_end_of_the_path_f_is_x_whatever_the_network_gives(sde):
  model = ss.ConsistencyModel(sde, lambda params, x, labels, keys: 7 * jnp.cos(x), "edm", end=EPS)
  x, t = data(), jnp.full(B, EPS)
  np.testing.assert_allclose(model.data(None, x, t), x / sde.alpha(t)[:, None], rtol=1e-4, atol=1e-5)


def test_without_noise_at_the_end_f_is_the_denoiser_of_a_score_model():
  network = lambda params, x, labels, keys: jnp.sin(x) * labels[:, None]
  x, t = data(), jnp.linspace(0.1, 1, B)
  tuned, trained = (make(ss.VP(), network, "edm") for make in (ss.ConsistencyModel, ss.ScoreModel))
  np.testing.assert_allclose(tuned.data(None, x, t), trained.data(None, x, t), rtol=1e-5, atol=1e-5)


def test_a_consistency_model_needs_preconditioning_and_continuous_time():
  network = lambda params, x, labels, keys: x
  with pytest.raises(ss.InvalidArgument, match="needs 'edm'"):
    ss.ConsistencyModel(ss.VP(), network, "noise")
  with pytest.raises(ss.InvalidArgument, match="continuous"):
    ss.ConsistencyModel(ss.VP(), network, "edm", num_scales=10)
  with pytest.raises(ss.InvalidArgument, match="must lie in"):
    ss.ConsistencyModel(ss.VP(), network, "edm", end=1.0)


# --- losses -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("options", [
  {"objective": "cd", "last_scales": 800, "distance": "l2"},
  {"objective": "cd", "last_scales": 800, "distance": "l2", "ode_step": "euler"},
  {"objective": "scm", "tangent_warmup": 1},
], ids=lambda o: "-".join(map(str, o.values())))  # fmt: skip
def test_the_exact_function_makes_distillation_zero_and_a_wrong_one_does_not(sde, options):
  exact, teacher = models(sde, end=0.0 if options["objective"] == "scm" else EPS)
  loss = ConsistencyLoss(exact, teacher, eps=EPS, total=10, **options)
  given = {"teacher": 0.0, "step": 10}
  assert mean_loss(loss, 0.0, data(), **given) < 1e-6
  wrong = dataclasses.replace(exact, network=lambda *args: 1.2 * exact.network(*args))
  wrong = dataclasses.replace(loss, model=wrong, last_scales=18)
  assert mean_loss(wrong, 0.0, data(), **given) > 1e-4


@pytest.mark.thorough
@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("objective", ["ct", "ict", "ect", "scm", "progressive"])
def test_the_exact_function_of_a_single_point_makes_training_zero_and_a_wrong_one_does_not(sde, objective):
  """Pairs of data and noise lie on one path of the ODE only if there is one data point."""
  end = EPS if objective in ("ct", "ict") else 0.0
  exact, teacher = models(sde, end, variance=jnp.zeros(3))
  if objective == "progressive":
    exact = teacher
  else:
    last = level(sde, end) if end else 0.0
    exact = dataclasses.replace(exact, network=network_of(lambda x, s: MEAN + (x - MEAN) * last / s, last))
  own = {
    "progressive": {"first_scales": 4, "last_scales": 16}, "ct": {"first_scales": 2, "last_scales": 150},
    "scm": {"tangent_warmup": 1},
  }  # fmt: skip
  loss = ConsistencyLoss(
    exact, teacher if objective == "progressive" else None, objective=objective, eps=EPS, total=10,
    **own.get(objective, {}),
  )  # fmt: skip
  x0 = jnp.broadcast_to(MEAN, (B, 3))
  assert mean_loss(loss, 0.0, x0, step=3) < 2e-6
  wrong = dataclasses.replace(exact, network=lambda *args: 1.2 * exact.network(*args))
  wrong = dataclasses.replace(loss, model=wrong)
  assert mean_loss(wrong, 0.0, x0, step=3) > 1e-3


@pytest.mark.thorough
def test_the_gradient_of_distillation_has_the_papers_limit():
  """(N - 1) times it tends to 2 E[(∂f/∂θ)ᵀ df/ds · ds/du], u the place on the grid. Song et al. 2023, Theorem 5."""
  sde = SDES["ve"]
  exact, teacher = models(sde, EPS)
  model = dataclasses.replace(exact, network=lambda p, x, *args: p * exact.network(0.0, x, *args))
  keys, x0, params = example_keys(jax.random.key(0), jnp.arange(B)), data(), 1.3
  low, high = (level(sde, t) ** (1 / 7) for t in (EPS, sde.T))

  def gradient(n):
    loss = ConsistencyLoss(model, teacher, objective="cd", eps=EPS, last_scales=n, distance="l2")
    return jax.grad(lambda p: jnp.mean(loss(p, keys, x0, jnp.arange(B), B, train=False, teacher=0.0)))(params)

  def limit():
    from score_sde.batch import fold, normal, uniform
    from score_sde.losses.score_matching import NOISE, TIME

    u, z = uniform(fold(keys, TIME), jnp.zeros(B)), normal(fold(keys, NOISE), x0)
    s = (low + u * (high - low)) ** 7
    per_place = 7 * (high - low) * (low + u * (high - low)) ** 6  # ds/du
    f = lambda p, x, s: model.data(p, x, sde.time_of_log_snr(-2 * jnp.log(s)))
    x = x0 + s[:, None] * z
    slope = (x - teacher.data(0.0, x, sde.time_of_log_snr(-2 * jnp.log(s)))) / s[:, None]
    along = jax.jvp(lambda x, s: f(params, x, s), (x, s), (slope, jnp.ones_like(s)))[1]
    by_parameter = jax.jvp(lambda p: f(p, x, s), (params,), (1.0,))[1]
    return jnp.mean(2 * by_parameter * along * per_place[:, None])

  coarse, fine = (abs((n - 1) * gradient(n) / limit() - 1) for n in (200, 800))
  assert fine < 0.02
  assert fine < coarse / 2


def test_the_tangent_of_scm_is_the_derivative_of_f_along_the_path():
  """Its norm, read off the loss, against differences of f along a path of the teacher's ODE."""
  sde = SDES["ve"]
  exact, teacher = models(sde)
  model = dataclasses.replace(exact, network=lambda p, x, label, *_: jnp.sin(3 * x + jnp.log(label)[:, None]))
  loss = ConsistencyLoss(model, teacher, objective="scm", eps=EPS, total=1, tangent_warmup=1)
  keys, x0 = example_keys(jax.random.key(0), jnp.arange(B)), data()
  value = loss(None, keys, x0, jnp.arange(B), B, train=False, teacher=0.0)
  norm = 0.1 * jnp.sqrt(value) / (1 - jnp.sqrt(value))

  from score_sde.batch import fold, normal, uniform
  from score_sde.losses.score_matching import NOISE, TIME

  z = normal(fold(keys, NOISE), x0)
  s = loss._lognormal(uniform(fold(keys, TIME), jnp.zeros(B)))
  phi = jnp.arctan(s / WIDTH)
  place = lambda s: (
    MEAN + (x0 + s0[:, None] * z - MEAN) * jnp.sqrt((VARIANCE + s[:, None] ** 2) / (VARIANCE + s0[:, None] ** 2))
  )
  s0, h = s, 1e-3
  ends = [WIDTH * jnp.tan(phi + d) for d in (h, -h)]
  f = lambda s: model.data(None, place(s), sde.time_of_log_snr(-2 * jnp.log(s)))
  slope = (f(ends[0]) - f(ends[1])) / (2 * h)
  expected = jnp.linalg.norm(jnp.cos(phi)[:, None] * slope, axis=1)
  inner = (s > 0.05) & (s < 20)  # where the differences are exact enough in float32
  np.testing.assert_allclose(norm[inner], expected[inner], rtol=0.05, atol=0.02)


def test_schedules_are_those_of_the_papers():
  exact, teacher = models(SDES["ve"], EPS)
  ct = ConsistencyLoss(exact, objective="ct", total=800_000, first_scales=2, last_scales=150, target_rate=0.9)
  assert [int(ct.scales(k)) for k in (0, 400_000, 800_000)] == [2, 107, 151]
  one = jax.tree.map(jnp.asarray, (0.0, 1.0))
  rate = [float(1 - ct.next_target(jnp.asarray(k), one[0], one[1], one[1])) for k in (0, 800_000)]
  np.testing.assert_allclose(rate, [0.9**2, 0.9 ** (2 / 150)], rtol=1e-5)
  ict = ConsistencyLoss(exact, objective="ict", total=400_000)
  assert [int(ict.scales(k)) for k in (0, 50_000, 399_999)] == [11, 21, 1281]
  uneven = dataclasses.replace(ict, last_scales=100)  # 1 + log2(10) stages, the last one shorter
  assert [int(uneven.scales(k)) for k in (0, 93_000, 370_000, 371_000, 400_000)] == [11, 21, 81, 101, 101]
  progressive = ConsistencyLoss(teacher, teacher, objective="progressive", total=300, first_scales=2, last_scales=16)
  assert [int(progressive.scales(k)) for k in (0, 99, 100, 200, 300)] == [8, 8, 4, 2, 2]
  followed = [float(progressive.next_target(jnp.asarray(k), 0.0, 1.0, 2.0)) for k in (98, 99, 100, 199, 299)]
  assert followed == [0, 2, 0, 2, 0]
  ect = ConsistencyLoss(models(SDES["ve"])[0], objective="ect", total=800)
  s, r = ect._pair(jnp.linspace(0, 1, 100), 0)
  np.testing.assert_allclose(r, jnp.maximum(s * (1 - (1 + 8 * jax.nn.sigmoid(-s)) / 2), 0.002), rtol=1e-3)
  s, r = ect._pair(jnp.linspace(0, 1, 100), 799)
  assert float(jnp.max((s - r) / s)) < 5 / 2**8


def test_lognormal_levels_have_the_shares_of_the_normal_distribution():
  """Song & Dhariwal 2024, eq. (12): an interval of the grid is drawn in proportion to the lognormal mass in it."""
  exact, _ = models(SDES["ve"], EPS)
  loss = ConsistencyLoss(exact, objective="ict", eps=EPS, total=1, first_scales=10)
  s, r = loss._pair((jnp.arange(100_000) + 0.5) / 100_000, 0)
  edges = np.asarray(loss._grid(jnp.arange(11.0), jnp.asarray(10.0)))
  shares = np.histogram(np.asarray(s), (edges[:-1] + edges[1:]) / 2)[0]
  shares = np.append(shares, 100_000 - shares.sum() - (np.asarray(s) < (edges[0] + edges[1]) / 2).sum())
  mass = np.diff(jax.scipy.special.ndtr((jnp.log(edges) + 1.1) / 2.0))
  np.testing.assert_allclose(shares / 100_000, mass / mass.sum(), atol=2e-4)
  assert (np.asarray(r) < np.asarray(s)).all()


@pytest.mark.parametrize(("change", "message"), [
  ({"objective": "cd", "teacher": None}, "needs a teacher"),
  ({"objective": "ect"}, "end=0"),
  ({"objective": "progressive"}, "trains a ScoreModel"),
  ({"objective": "ict", "first_scales": 2000}, "smaller than last_scales"),
  ({"objective": "cd", "eps": 2.0}, "eps=2.0"),
  ({"objective": "none"}, "objective='none'"),
])  # fmt: skip
def test_options_that_do_not_fit_together_are_refused(change, message):
  exact, teacher = models(SDES["ve"], EPS)
  with pytest.raises(ss.InvalidArgument, match=message):
    ConsistencyLoss(exact, **{"teacher": teacher, "total": 10} | change)


def test_a_teacher_of_another_sde_and_a_missing_one_are_refused():
  exact, _ = models(SDES["ve"], EPS)
  with pytest.raises(ss.InvalidArgument, match="must be a ScoreModel of"):
    ConsistencyLoss(exact, models(SDES["vp"])[1], objective="cd")
  loss = ConsistencyLoss(exact, models(SDES["ve"])[1], objective="cd")
  with pytest.raises(ss.InvalidArgument, match="give its parameters"):
    mean_loss(loss, 0.0, data())


@pytest.mark.slow
@pytest.mark.longest
def test_a_trained_network_is_the_flow_map_of_a_mixture():
  """Improved consistency training from scratch, against a fine solve of the ODE: within 5% (root mean square)."""
  sde, width = ss.VE(0.02, 8.0), 0.7
  covariances = [[[0.25, 0.1], [0.1, 0.2]], [[0.3, -0.12], [-0.12, 0.25]]]
  mixture = GaussianMixture(np.array([[0.9, 0.3], [-0.7, -0.4]]), np.array(covariances), np.array([0.6, 0.4]))
  network = Tiny()
  model = ss.ConsistencyModel(
    sde, lambda params, x, label, keys: network.apply({"params": params}, x, label), "edm", "sigma", sigma_data=width,
    end=EPS,
  )  # fmt: skip
  loss = ConsistencyLoss(
    model, objective="ict", eps=EPS, total=3000, first_scales=5, last_scales=80, huber=0.03, stratified=True
  )
  params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, loss.total))

  def step(carry, i):
    params, state = carry
    key = jax.random.fold_in(jax.random.key(1), i)
    x0, keys = mixture.sample(key, 256), example_keys(key, jnp.arange(256))
    gradient = jax.grad(lambda p: jnp.mean(loss(p, keys, x0, jnp.arange(256), 256, step=i)))(params)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), None

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(loss.total))[0][0])
  params = run((params, optimizer.init(params)))
  x = 8.0 * jax.random.normal(jax.random.key(5), (2000, 2))
  fine = ss.Heun(noise_removal=False)
  exact = ss.sample(
    jax.random.key(0), sde, mixture.score(sde), x.shape, solver=fine, steps=500, grid="log_snr", eps=EPS, x_T=x
  )
  error = model.data(params, x, jnp.ones(len(x))) - exact
  assert jnp.sqrt(jnp.mean(error**2)) < 0.05 * jnp.sqrt(jnp.mean(exact**2))


def test_the_smallest_level_of_easy_tuning_has_a_finite_loss_and_gradient():
  """There r = 0, the target is the data, and the weight is 1 / s."""
  exact, _ = models(SDES["vp"])
  model = dataclasses.replace(exact, network=lambda p, x, *args: p * x)
  loss = ConsistencyLoss(model, objective="ect", eps=1e-5, total=10)
  s, r = loss._pair(jnp.zeros(B), 0)
  assert bool((s == r).all())
  x0, z = data(), jax.random.normal(jax.random.key(3), (B, 3))

  def mean(p):
    from score_sde.losses.consistency import _Call

    return jnp.mean(loss._paired(_Call(loss, p, p, None, None, None), x0, z, s, r))

  value, gradient = jax.value_and_grad(mean)(1.0)
  assert bool(jnp.isfinite(value))
  assert bool(jnp.isfinite(gradient))
  assert float(value) < 10  # |f(x_s) - x_0| / s is of order one


# --- samples ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sde", SDES.values(), ids=SDES)
@pytest.mark.parametrize("steps", [1, 2, 4])
def test_samples_of_the_exact_function_have_the_moments_of_the_data(sde, steps):
  exact, _ = models(sde, EPS)
  score = jax.tree_util.Partial(exact.score, 0.0)
  x, info = ss.sample(
    jax.random.key(0), sde, score, (20_000, 3), solver=ss.Consistency(), steps=steps, eps=EPS, return_info=True
  )
  assert info["nfe"] == steps
  # What is left: the signal of x_T, which the prior lacks, and Monte Carlo.
  np.testing.assert_allclose(x.mean(0), MEAN, atol=0.05)
  np.testing.assert_allclose(x.var(0), VARIANCE + level(sde, EPS) ** 2, rtol=0.05)


def test_levels_of_the_steps_can_be_given():
  sde = SDES["ve"]
  exact, _ = models(sde, EPS)
  seen = []
  score = lambda x, t: (jax.debug.callback(lambda t: seen.append(float(t)), t[0]), exact.score(0.0, x, t))[1]
  ss.sample(jax.random.key(0), sde, score, (2, 3), solver=ss.Consistency(sigmas=(0.821, 0.1)), steps=3, eps=EPS)
  jax.effects_barrier()
  np.testing.assert_allclose(sorted({level(sde, t) for t in seen}), [0.1, 0.821, 80], rtol=1e-3)
  with pytest.raises(ss.InvalidArgument, match="noise levels of 3 steps"):
    ss.sample(jax.random.key(0), sde, score, (2, 3), solver=ss.Consistency(sigmas=(0.8, 0.1)))
  with pytest.raises(ss.InvalidArgument, match="must decrease"):
    ss.sample(jax.random.key(0), sde, score, (2, 3), solver=ss.Consistency(sigmas=(0.1, 0.8)), steps=3)
  to_zero = {"solver": ss.Consistency(start_sigma=40.0), "grid": ss.TimeGrid.through([1.0, 0.5, 0.0])}
  for draw in (ss.sample, lambda *args, **options: jax.jit(lambda key: ss.sample(key, *args[1:], **options))(args[0])):
    with pytest.raises(ss.InvalidArgument, match="End the grid at a small eps"):
      draw(jax.random.key(0), ss.VP(), score, (2, 3), **to_zero)


@pytest.mark.parametrize("steps", [1, 3])
def test_sampling_can_start_at_a_lower_noise_level(steps):
  """From noise of that level: the moments are those of the data as long as it hides them."""
  sde = SDES["vp"]
  exact, _ = models(sde, EPS)
  x, info = ss.sample(
    jax.random.key(0), sde, jax.tree_util.Partial(exact.score, 0.0), (20_000, 3), steps=steps, eps=EPS,
    solver=ss.Consistency(start_sigma=40.0), return_info=True,
  )  # fmt: skip
  assert info["nfe"] == steps
  np.testing.assert_allclose(x.mean(0), MEAN, atol=0.08)
  np.testing.assert_allclose(x.var(0), VARIANCE, rtol=0.05)
  grid = ss.Consistency(start_sigma=40.0, sigmas=(0.8,)).schedule(sde, ss.make_grid("log_snr", sde, 2, EPS))
  np.testing.assert_allclose([level(sde, t) for t in grid.t], [40.0, 0.8], rtol=1e-3)
  with pytest.raises(ss.InvalidArgument, match="start_sigma=1000"):
    ss.Consistency(start_sigma=1000.0).schedule(sde, ss.make_grid("log_snr", sde, 1, EPS))


def test_known_pixels_are_kept_and_the_others_fit_them():
  """Zero-shot inpainting of a correlated Gaussian: the mean of the unknown coordinate given the known one."""
  sde, rho = ss.VE(0.002, 20.0), 0.9
  covariance = jnp.array([[1.0, rho], [rho, 1.0]])
  values, vectors = jnp.linalg.eigh(covariance)
  last = level(sde, EPS)

  def path(x, s):
    return ((x @ vectors) * jnp.sqrt((values + last**2) / (values + s**2))) @ vectors.T

  model = ss.ConsistencyModel(sde, network_of(path, last), "edm", "sigma", sigma_data=WIDTH, end=EPS)
  known = ss.guidance.inpaint(jnp.array([1.0, 0.0]), jnp.array([1.5, 0.0]))
  solver = ss.guidance.Projection()(jax.tree.map(lambda a: jnp.repeat(a, 4000, axis=0), known))(ss.Consistency())
  x = ss.sample(
    jax.random.key(0), sde, jax.tree_util.Partial(model.score, 0.0), (4000, 2), solver=solver, steps=40, eps=EPS
  )
  np.testing.assert_allclose(x[:, 0], 1.5, atol=1e-5)
  np.testing.assert_allclose(x[:, 1].mean(), rho * 1.5, atol=0.25)  # the method is no exact posterior


def test_a_model_samples_by_its_consistency_function_and_refuses_what_needs_a_score():
  exact, _ = models(SDES["vp"], EPS)
  model = ss.Model(exact, 0.0, ss.Scaling(levels=None), (3,), eps=EPS)
  x = model.sample(jax.random.key(0), 5000)
  np.testing.assert_allclose(x.mean(0), MEAN, atol=0.1)
  latent = jax.random.normal(jax.random.key(1), (16, 3))
  np.testing.assert_allclose(model.decode(latent), exact.data(0.0, latent, jnp.ones(16)), rtol=1e-5)
  for call in (lambda: model.log_likelihood(jax.random.key(0), x), lambda: model.encode(x)):
    with pytest.raises(ss.InvalidArgument, match="use its teacher"):
      call()
  with pytest.raises(ss.InvalidArgument, match="use Consistency"):
    model.sample(jax.random.key(0), 4, solver=ss.UniPC())
  known = ss.guidance.inpaint(jnp.array([1.0, 0.0, 0.0]), jnp.array([0.5, 0.0, 0.0]))
  np.testing.assert_array_equal(model.sample(jax.random.key(0), 4, measurement=known, steps=3)[:, 0], 0.5)
  for method in ("pigdm", "tmpd", "dps", "ddrm"):
    with pytest.raises(ss.InvalidArgument, match="needs a score"):
      model.sample(jax.random.key(0), 4, measurement=known, method=method)


def test_samples_and_latents_of_a_model_start_at_its_noise_level():
  """A consistency function that is right only below that level, as of a network that was not trained above it."""
  exact, _ = models(SDES["vp"], EPS)
  network = lambda params, x, s, keys: jnp.where(s[:, None] > 45, 0.0, exact.network(params, x, s, keys))
  partial = dataclasses.replace(exact, network=network)
  x = {}
  for start in (None, 40.0):
    model = ss.Model(partial, 0.0, ss.Scaling(levels=None), (3,), eps=EPS, solver=ss.Consistency(start_sigma=start))
    latent = jax.random.normal(jax.random.key(1), (20_000, 3))
    own = ss.Consistency(sigmas=(0.05,))  # one's own levels begin there, too
    x[start] = [
      model.sample(jax.random.key(0), 20_000),
      model.decode(latent),
      model.sample(jax.random.key(2), 20_000, solver=own),
    ]
  for drawn in x[40.0]:
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=0.08)
    np.testing.assert_allclose(drawn.var(0), VARIANCE, rtol=0.05)
  assert all(np.abs(drawn.mean(0) - MEAN).max() > 0.2 for drawn in x[None])
  model = ss.Model(exact, 0.0, ss.Scaling(levels=None), (3,), eps=EPS, solver=ss.Consistency(start_sigma=40.0))
  start = jnp.full((2000, 3), 0.3)  # an edit starts where it says, with the state that it gives
  edited = model.sample(jax.random.key(0), 2000, t_start=0.5, x_T=start)
  np.testing.assert_allclose(edited, exact.data(0.0, start, jnp.full(2000, 0.5)), rtol=1e-3)
  with pytest.raises(ss.InvalidArgument, match="leave one of them unset"):
    model.sample(jax.random.key(0), 4, solver=ss.Consistency(start_sigma=2.0), t_start=0.5)


def test_objectives_are_named():
  assert set(CONSISTENCY) == {"cd", "ct", "ict", "ect", "scm", "progressive"}
