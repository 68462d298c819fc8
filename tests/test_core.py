"""`sample` as a pure function: jitted, vmapped, differentiated, sharded, in float64; and what it refuses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs

import score_sde as ss
from score_sde import analytic
from score_sde.run.sampler import Sampler, stepping
from score_sde.sampling import METHODS, grid_for

MIXTURE = analytic.GaussianMixture(
  means=[[0.5, -0.3], [-0.6, 0.4]],
  covariances=[[[0.05, 0.02], [0.02, 0.04]], [[0.02, 0.0], [0.0, 0.06]]],
  weights=[0.3, 0.7],
)
KEY = jax.random.key(3)
SLOW = pytest.mark.slow


def options_of(method, sde):
  """Few enough steps to be quick, of a solver and an SDE that belong together."""
  if method in ("ode", "adaptive_sde"):
    return METHODS[method](rtol=1e-2, atol=1e-2), None
  if method in ("ncsn", "ddpm"):
    return METHODS[method](num_scales=50, **({"n_steps_each": 2} if method == "ncsn" else {})), None
  return METHODS[method](), 12


def cases():
  for method in METHODS:
    for sde in (ss.VP(), ss.VE(0.01, 5.0), ss.SubVP()):
      name = type(sde).__name__
      if (method == "ncsn" and name != "VE") or (method == "ddpm" and name != "VP"):
        continue
      quick = name == ("VE" if method == "ncsn" else "VP") and method != "adaptive_sde"
      yield pytest.param(method, sde, id=f"{method}-{name}", marks=[] if quick else SLOW)


@pytest.mark.parametrize(("method", "sde"), list(cases()))
def test_sample_is_what_the_runner_draws(method, sde):
  """One scan under jit, against chunks over devices with progress; up to rounding, which a compiler may order anew."""
  score = MIXTURE.score(sde)
  solver, steps = options_of(method, sde)
  x, info = jax.jit(lambda key: ss.sample(key, sde, score, (6, 2), solver=solver, steps=steps, return_info=True))(KEY)
  adaptive = method in ("ode", "adaptive_sde")
  sampler = Sampler(sde, solver) if adaptive else stepping(solver, sde, steps)
  y, expected = sampler(jax.tree_util.Partial(score), KEY, (6, 2))
  np.testing.assert_allclose(x, y, rtol=2e-3 if adaptive else 1e-4, atol=2e-3 if adaptive else 2e-5)
  if not adaptive:
    assert info["nfe"] == expected["nfe"]
  part = ss.sample(KEY, sde, score, (2, 2), solver=solver, steps=steps, first=4)
  np.testing.assert_allclose(part, x[4:], rtol=2e-3, atol=2e-3)


@pytest.mark.thorough
def test_vmap_over_keys_and_conditions():
  sde, keys = ss.VP(), jax.random.split(KEY, 3)
  score = lambda x, t, c: -(x - c[:, None])
  one = lambda key, c: ss.sample(key, sde, score, (4, 2), condition=jnp.full(4, c), solver=ss.UniPC(), steps=8)
  together = jax.vmap(one)(keys, jnp.arange(3.0))
  for i in range(3):
    np.testing.assert_allclose(together[i], one(keys[i], float(i)), atol=1e-5)
  over_keys = jax.vmap(lambda key: ss.sample(key, sde, lambda x, t: -x, (4, 2), steps=20))(keys)
  assert over_keys.shape == (3, 4, 2)
  assert len(np.unique(over_keys)) == over_keys.size


@pytest.mark.thorough
def test_gradients_are_those_of_finite_differences(x64):
  """With respect to a parameter of the score, the condition and x_T, through solvers of every kind."""
  sde, z = ss.VP(), jax.random.normal(jax.random.key(1), (3, 2))

  def value(solver, a, c, x_T):
    score = lambda x, t, c: -jnp.tanh(a * x) + c[:, None]
    x = ss.sample(KEY, sde, score, (3, 2), condition=c, x_T=x_T, solver=solver, steps=6, dtype=jnp.float64)
    return jnp.sum(x**2)

  c = jnp.array([0.1, -0.2, 0.3])
  for solver in (ss.UniPC(), ss.DPMSolverSDE(), ss.PredictorCorrector("euler_maruyama", "langevin"), ss.Heun()):
    f = functools.partial(value, solver)
    slope = jax.grad(f, argnums=(0, 1, 2))(0.8, c, z)
    h = 1e-5
    assert float(slope[0]) == pytest.approx(float(f(0.8 + h, c, z) - f(0.8 - h, c, z)) / (2 * h), rel=1e-5)
    e = h * jax.nn.one_hot(1, 3)
    assert float(slope[1][1]) == pytest.approx(float(f(0.8, c + e, z) - f(0.8, c - e, z)) / (2 * h), rel=1e-5)
    e = jnp.zeros((3, 2)).at[2, 0].set(h)
    assert float(slope[2][2, 0]) == pytest.approx(float(f(0.8, c, z + e) - f(0.8, c, z - e)) / (2 * h), rel=1e-5)


@pytest.mark.thorough
def test_the_adaptive_ode_has_a_gradient(x64):
  value = lambda a: jnp.sum(
    ss.sample(KEY, ss.VP(), lambda x, t: -a * x, (3, 2), solver=ss.AdaptiveODE(), dtype=jnp.float64) ** 2
  )
  expected = (value(0.9 + 1e-4) - value(0.9 - 1e-4)) / 2e-4
  assert float(jax.grad(value)(0.9)) == pytest.approx(float(expected), rel=1e-3)


def test_a_gradient_through_a_hundred_steps_keeps_no_activations():
  """Each step is computed anew on the way back: memory grows by the states alone, not by a network's activations."""
  wide = 2048

  def value(params, steps):
    score = lambda x, t: jnp.tanh(x @ params) @ params.T
    return jnp.sum(ss.sample(KEY, ss.VP(), score, (8, 2), solver=ss.DDIM(), steps=steps))

  params = jnp.ones((2, wide)) / wide
  memory = {}
  for steps in (10, 100):
    compiled = jax.jit(jax.grad(value), static_argnums=1).lower(params, steps).compile()
    memory[steps] = compiled.memory_analysis().temp_size_in_bytes
  activations = 8 * wide * 4
  assert memory[100] - memory[10] < 90 * activations / 2


@pytest.mark.thorough
def test_shard_map_draws_the_same_samples():
  """In a process of four simulated devices, each with its share of the keys."""
  import subprocess
  import sys

  code = """
import jax, jax.numpy as jnp, numpy as np, score_sde as ss
P = jax.sharding.PartitionSpec
mesh = jax.make_mesh((4,), ("batch",), axis_types=(jax.sharding.AxisType.Auto,))
score = lambda x, t: -x
draw = lambda first: ss.sample(jax.random.key(0), ss.VP(), score, (2, 3), first=first[0], solver=ss.UniPC(), steps=8)
split = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"), check_vma=False))
x = split(jnp.arange(0, 8, 2))
whole = ss.sample(jax.random.key(0), ss.VP(), score, (8, 3), solver=ss.UniPC(), steps=8)
np.testing.assert_allclose(x, whole, atol=1e-5)
norms = ss.PredictorCorrector(norms="batch", axis_name="batch")
draw = lambda first: ss.sample(jax.random.key(0), ss.VP(), score, (2, 3), first=first[0], solver=norms, steps=8)
split = jax.jit(jax.shard_map(draw, mesh=mesh, in_specs=P("batch"), out_specs=P("batch"), check_vma=False))
x = split(jnp.arange(0, 8, 2))
whole = ss.sample(jax.random.key(0), ss.VP(), score, (8, 3), solver=ss.PredictorCorrector(norms="batch"), steps=8)
np.testing.assert_allclose(x, whole, atol=1e-5)
from score_sde.run.sampler import Sampler, stepping  # a batch of 6, padded to 8
narrow = lambda x, t: -x / (0.25 + ss.VE().sigma(t)[:, None] ** 2)
x, _ = stepping(ss.PredictorCorrector(norms="batch"), ss.VE(), 20)(narrow, jax.random.key(0), (6, 3))
whole = ss.sample(jax.random.key(0), ss.VE(), narrow, (6, 3), solver=ss.PredictorCorrector(norms="batch"), steps=20)
np.testing.assert_allclose(x, whole, rtol=1e-5)
clipped = ss.Clip(-999.0, 999.0)(ss.PredictorCorrector(norms="batch"))
x, _ = stepping(clipped, ss.VE(), 20)(narrow, jax.random.key(0), (6, 3))
np.testing.assert_allclose(x, whole, rtol=1e-3, atol=1e-4)
rough = ss.AdaptiveODE(norms="batch", rtol=1e-2, atol=1e-2)  # other steps would be seen
x, info = Sampler(ss.VP(), rough)(lambda x, t: -x / 4, jax.random.key(0), (6, 3))
whole, plain = ss.sample(
  jax.random.key(0), ss.VP(), lambda x, t: -x / 4, (6, 3), solver=rough, return_info=True
)
np.testing.assert_allclose(x, whole, rtol=1e-5, atol=1e-5)
np.testing.assert_array_equal(info["nfe"], plain["nfe"])
"""
  done = subprocess.run(
    [sys.executable, "-c", code], env=runs.environment(4), capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


@pytest.mark.thorough
def test_float64_has_no_float32_islands(x64):
  """A Gaussian's flow in closed form, to nine digits, by the adaptive ODE; and grids that are float64 to the last."""
  sde, mean, c = ss.VP(), np.array([0.5, -0.3]), 0.2
  data = analytic.gaussian(mean, c**2 * np.eye(2))
  solver = ss.AdaptiveODE(rtol=1e-11, atol=1e-11, noise_removal=False)
  z = jax.random.normal(jax.random.key(1), (4, 2))
  assert z.dtype == jnp.float64
  x = ss.sample(KEY, sde, data.score(sde), (4, 2), solver=solver, x_T=z, eps=1e-3, dtype=jnp.float64)
  variance = lambda t: (sde.alpha(t) * c) ** 2 + sde.sigma(t) ** 2
  eps, end = jnp.array(1e-3), jnp.array(sde.T)
  expected = sde.alpha(eps) * mean + (z - sde.alpha(end) * mean) * jnp.sqrt(variance(eps) / variance(end))
  np.testing.assert_allclose(x, expected, rtol=1e-8)
  grid = ss.make_grid("log_snr", sde, 50, 1e-3)
  np.testing.assert_allclose(
    np.diff(sde.log_snr(jnp.asarray(grid.t))), np.diff(sde.log_snr(jnp.asarray(grid.t)))[0], rtol=1e-9
  )


# --- the last step goes to zero ---------------------------------------------------------------------------------------


def k_diffusion(name, denoised, x, sigmas):
  """Euler, Heun and DPM-Solver++(2M) in sigma, from noise sigmas[0] to zero, and the evaluations they took."""
  count, before, calls = len(sigmas) - 1, None, 0
  for i in range(count):
    now, after = sigmas[i], sigmas[i + 1]
    d0, calls = denoised(x, now), calls + 1
    if name == "dpmpp_2m":
      if after == 0:
        x = d0
      else:
        h = np.log(now / after)
        ratio = 0 if before is None else h / np.log(sigmas[i - 1] / now)
        estimate = d0 if before is None else d0 + ratio / 2 * (d0 - before)
        x = after / now * x - np.expm1(-h) * estimate
      before = d0
      continue
    slope = (x - d0) / now
    if name == "heun" and after > 0:
      guess, calls = x + slope * (after - now), calls + 1
      slope = (slope + (guess - denoised(guess, after)) / after) / 2
    x = x + slope * (after - now)
  return x, calls


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("theirs", "solver"), [("euler", ss.DDIM()), ("heun", ss.Heun()), ("dpmpp_2m", ss.DPMSolver())], ids=str
)
def test_n_sigmas_and_a_final_zero_are_those_of_k_diffusion(theirs, solver, x64):
  """n, 2n - 1 and n evaluations, to 1e-12."""
  sde, n = ss.VE(0.02, 10.0), 9
  sigmas = np.geomspace(10.0, 0.02, n)
  times = np.log(sigmas / 0.02) / np.log(10.0 / 0.02)
  z = 10.0 * jax.random.normal(jax.random.key(1), (5, 2))
  denoised = lambda x, s: MIXTURE.posterior_mean(sde, x, jnp.full(5, np.log(s / 0.02) / np.log(10.0 / 0.02)))
  expected, calls = k_diffusion(theirs, denoised, z, [*sigmas, 0.0])
  x, info = ss.sample(
    KEY, sde, MIXTURE.score(sde), (5, 2), solver=solver, grid=ss.TimeGrid.through(times), x_T=z, dtype=jnp.float64,
    return_info=True,
  )  # fmt: skip
  np.testing.assert_allclose(x, expected, rtol=1e-12, atol=1e-13)
  assert info["nfe"] == calls == {"euler": n, "heun": 2 * n - 1, "dpmpp_2m": n}[theirs]


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [ss.DDIM(), ss.DPMSolver(), ss.DPMSolverSDE(), ss.UniPC(), ss.Heun()], ids=str)
def test_few_step_samples_of_ve_have_no_noise_left(solver):
  """Points 0.01 apart in noise come out as points: sigma_min = 0.05 is taken off unless it is asked to stay."""
  sde, data = ss.VE(0.05, 8.0), analytic.points([[0.0, 1.0], [1.0, 0.0]])
  off = {}
  for noise_removal in (True, False):
    kept = type(solver)(noise_removal=noise_removal)
    x = np.asarray(ss.sample(KEY, sde, data.score(sde), (400, 2), solver=kept, steps=40))
    off[noise_removal] = np.abs(x - np.round(x)).std()
  assert off[True] < 0.005
  assert off[False] > 0.02


@pytest.mark.thorough
def test_evaluations_are_counted_with_the_last_one():
  calls = []

  def score(x, t):
    jax.debug.callback(lambda t: calls.append(float(t[0])), t)
    return -x

  for solver, expected in ((ss.DDIM(), 7), (ss.DPMSolver(), 7), (ss.UniPC(), 7), (ss.Heun(), 13)):
    for noise_removal in (True, False):
      calls.clear()
      solver = type(solver)(noise_removal=noise_removal)
      _, info = ss.sample(KEY, ss.VP(), score, (1, 2), solver=solver, steps=7, return_info=True)
      jax.effects_barrier()
      wanted = expected if noise_removal else {"Heun": 14, "UniPC": 8}.get(type(solver).__name__, 7)
      assert info["nfe"] == len(calls) == wanted, solver
  only = ss.sample(KEY, ss.VP(), lambda x, t: -x, (4, 2), solver=ss.UniPC(), steps=1)
  assert np.isfinite(only).all()


# --- constraints ------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_constraint_is_a_function_from_a_solver_to_a_solver():
  known = jnp.array([1.0, 0.0])
  y = ss.guidance.inpaint(jnp.tile(known, (8, 1)), jnp.tile(0.7 * known, (8, 1)))
  constraint = ss.guidance.Projection()(y)
  score = MIXTURE.score(ss.VP())
  for solver in (ss.DPMSolverSDE(), ss.PredictorCorrector("euler_maruyama", "langevin", snr=0.05), ss.UniPC()):
    constrained = constraint(solver)
    x = jax.jit(lambda key, s=constrained: ss.sample(key, ss.VP(), score, (8, 2), solver=s, steps=30))(KEY)
    np.testing.assert_allclose(x[:, 0], 0.7, atol=0.05)
    assert np.std(x[:, 1]) > 0.05
  x = ss.sample(KEY, ss.VP(), score, (8, 2), solver=ss.guidance.DDRM().given(y), steps=30)
  np.testing.assert_allclose(x[:, 0], 0.7, atol=0.05)
  with pytest.raises(ss.InvalidArgument, match="takes no constraint"):
    constraint(ss.DDPM())


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [ss.DPMSolverSDE(), ss.PredictorCorrector(), ss.DDIM()], ids=str)
def test_a_constrained_solver_keeps_its_grid_and_number_of_steps(solver):
  """The pure function and the runner, which sees the solver without its constraint, choose the same steps."""
  y = ss.guidance.inpaint(jnp.tile(jnp.array([1.0, 0.0]), (8, 1)), jnp.tile(jnp.array([0.7, 0.0]), (8, 1)))
  constrained = ss.guidance.Projection()(y)(solver)
  assert constrained.default_steps == solver.default_steps
  score = MIXTURE.score(ss.VP())
  x = jax.jit(lambda key: ss.sample(key, ss.VP(), score, (8, 2), solver=constrained, steps=12))(KEY)
  grid = grid_for(solver, ss.VP(), 12, None, 1e-3)
  runner = Sampler(ss.VP(), solver, grid, constraint=ss.guidance.Projection())
  expected, _ = runner(jax.tree_util.Partial(score), KEY, (8, 2), condition=y)
  np.testing.assert_allclose(x, expected, rtol=1e-4, atol=1e-4)


# --- what is refused, before anything is compiled ---------------------------------------------------------------------

GOOD = {"key": KEY, "sde": ss.VP(), "score": lambda x, t: -x, "shape": (4, 2)}


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"shape": (0, 2)}, r"shape=\(0, 2\) must be a tuple of positive integers"),
    ({"shape": 4}, "shape=4 must be a tuple"),
    ({"shape": [4, 2]}, r"shape=\[4, 2\] must be a tuple"),
    ({"key": 0}, r"key=0 must be one random key: use jax.random.key\(0\)"),
    ({"key": jax.random.split(KEY, 2)}, "must be one random key"),
    ({"sde": ss.VP}, r"must be an SDE, such as ss.VP\(\)"),
    ({"solver": "unipc"}, r"solver='unipc' must be a solver, such as ss.UniPC\(\)"),
    ({"solver": ss.UniPC}, "must be a solver"),
    ({"score": lambda x: -x}, r"must take \(x, t\)"),
    ({"score": "network"}, "score='network' must be a function"),
    ({"score": lambda x, t: -x[:, :1]}, r"returns float32\[4, 1\] for x of float32\[4, 2\]"),
    ({"score": lambda x, t: (-x).astype(jnp.bfloat16)}, "returns bfloat16"),
    ({"score": lambda x, t, c: -x, "condition": jnp.zeros(3)}, "one entry per sample, 4 along its first axis"),
    ({"eps": 2.0}, r"^eps=2.0 must lie in \(0, 1.0\)"),
    ({"eps": -1e-3}, "eps=-0.001 must lie in"),
    ({"t_start": 1.5}, r"t_start=1.5 must lie in \(0, 1.0\]"),
    ({"x_T": jnp.zeros((3, 2))}, r"must have the samples' shape \(4, 2\)"),
    ({"steps": 2.5}, "steps=2.5 must be an integer"),
    ({"grid": "log_snt"}, "Did you mean 'log_snr'"),
    ({"grid": ss.TimeGrid.through([2.0, 0.5])}, "must run from noise to data, within"),
    ({"dtype": jnp.float64}, "jax_enable_x64"),
    ({"dtype": jnp.int32}, "dtype=int32 must be float32 or float64"),
    ({"dtype": jnp.bfloat16}, "dtype=bfloat16 must be float32 or float64"),
    ({"solver": ss.AdaptiveODE(), "grid": "uniform"}, "AdaptiveODE chooses its own steps"),
    ({"solver": ss.AdaptiveSDE(), "grid": ss.TimeGrid.through([0.5, 0.1])}, "grid=TimeGrid: AdaptiveSDE chooses"),
    ({"solver": ss.guidance.DDRM()}, r"use `DDRM\(\).given\(measurement\)`"),
    ({"solver": ss.UniPC(), "grid": "official"}, "needs steps that chain"),
  ],
)
def test_what_a_caller_gets_wrong_is_named_before_anything_compiles(changed, message):
  with pytest.raises(ss.InvalidArgument, match=message):
    ss.sample(**(GOOD | changed))


def test_keys_of_both_kinds_draw_the_same():
  raw = jax.random.PRNGKey(5)
  draw = lambda key: ss.sample(key, ss.VP(), lambda x, t: -x, (4, 2), steps=5)
  np.testing.assert_array_equal(draw(raw), draw(jax.random.key(5)))


def test_all_exceptions_have_one_base():
  for wrong in (
    lambda: ss.VE(1.0, 0.5),
    lambda: ss.UniPC().on(ss.Reflected(ss.VE()), ss.make_grid("uniform", ss.VP(), 3, 0.1)),
  ):
    with pytest.raises(ss.ScoreSDEError):
      wrong()


def test_a_misspelt_option_is_an_error():
  with pytest.raises(TypeError, match="churm"):
    ss.Heun(churm=3.0)
  with pytest.raises(TypeError, match="gird"):
    ss.sample(KEY, ss.VP(), lambda x, t: -x, (4, 2), gird="uniform")
