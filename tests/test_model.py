"""Models in Python: classes, conditions, measurements on the scale of the data, samplers that follow the config."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict
from test_config import load

import score_sde as ss
from score_sde.run import checkpoints, train_step, training
from score_sde.run.checkpoints.transfer import export_weights
from score_sde.run.config import make_sde, resolve
from score_sde.run.config.networks import create
from score_sde.run.evaluate.chosen import short_run
from score_sde.run.experiment import build, make_model, make_solver
from score_sde.run.loading import _own_sampler, read_config

SDE = ss.VP()
MEANS = jnp.array([-1.0, 0.0, 2.0])
POINTS = jnp.array([[0.5, -1.0], [1.0, 1.0], [0.0, 3.0]])


def network(params, x, labels, keys, y=None):
  """The exact score of N(mean, I) with the mean of a class, or a condition; of N(7, I) without either."""
  alpha = 1 / jnp.sqrt(1 + labels**2)[:, None]  # labels are sigma / alpha
  mean = y.get("condition") if isinstance(y, dict) else None if y is None else MEANS[y][:, None]
  mean = 7.0 if mean is None else mean
  return params * (alpha * mean - x)


def model(**more):
  return ss.Model(ss.ScoreModel(SDE, network), 1.0, ss.Scaling(levels=None), (2,), **more)


def log_density(mean):
  return -0.5 * ((POINTS - mean) ** 2).sum(1) - np.log(2 * np.pi)


# At T the noise is not exactly N(0, I): the mean there is 0.0066 times that of the data.
EXACT = {"probe": "exact", "rtol": 1e-5, "atol": 1e-5}


def test_data_get_their_own_class_or_none_but_never_one_in_turn():
  key, classes = jax.random.key(0), jnp.array([2, 2, 0])
  strict, free = model(classes=3), model(classes=3, optional=("label",))
  for its in (strict, free):
    found = its.log_likelihood(key, POINTS, label=classes, **EXACT)
    np.testing.assert_allclose(found, log_density(MEANS[classes][:, None]), atol=0.1)
  for call in (strict.encode, strict.decode, lambda x: strict.denoise(x, 0.5), lambda x: strict.log_likelihood(key, x)):
    with pytest.raises(ss.InvalidArgument, match=r"never trained without a class: give one for all, or 3, 0 to 2"):
      call(POINTS)
  np.testing.assert_allclose(free.log_likelihood(key, POINTS, **EXACT), log_density(7.0), rtol=0.02)
  x = strict.sample(key, 3000)  # samples have them in turn
  np.testing.assert_allclose([x[i::3].mean() for i in range(3)], MEANS, atol=0.1)


def test_a_condition_is_asked_for_unless_the_network_goes_without():
  key, given = jax.random.key(0), {"condition_shape": (2,)}
  strict, free = model(**given), model(**given, optional=("condition",))
  with pytest.raises(ss.InvalidArgument, match=r"never trained without: give one of \[2\], or 5"):
    strict.sample(key, 5)
  np.testing.assert_allclose(strict.sample(key, 4000, condition=jnp.array([1.0, -2.0])).mean(0), [1, -2], atol=0.1)
  np.testing.assert_allclose(free.sample(key, 4000).mean(0), [7, 7], atol=0.1)
  known = ss.guidance.inpaint(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0]))
  np.testing.assert_array_equal(free.sample(key, 4, measurement=known, steps=3)[:, 0], 0.5)
  with pytest.raises(ss.InvalidArgument, match=r"with model\.label_dropout and model\.condition_dropout"):
    strict.sample(key, 4, measurement=known)


def test_methods_of_measurements_may_have_options():
  known = ss.guidance.inpaint(jnp.array([1.0, 0.0]), jnp.array([0.5, 0.0]))
  known = known.replace(noise=jnp.array([0.1]))  # else all methods put in the same value at the end
  draw = lambda method: model().sample(jax.random.key(0), 3, measurement=known, method=method, steps=5)
  np.testing.assert_array_equal(draw("projection"), draw(ss.guidance.Projection(1.0)))
  assert not np.allclose(draw("projection"), draw(ss.guidance.Projection(0.5)))
  np.testing.assert_array_equal(draw("tmpd"), draw(ss.guidance.TMPD(SDE)))
  assert not np.allclose(draw("ddrm"), draw(ss.guidance.DDRM(eta=0.1)))
  with pytest.raises(ss.InvalidArgument, match="is no method of measurements"):
    draw(ss.UniPC())
  with pytest.raises(ss.InvalidArgument, match="method='pigdm' uses a measurement, and there is none"):
    model().sample(jax.random.key(0), 3, method="pigdm")


@pytest.mark.parametrize("scaling", [
  ss.Scaling(centered=True), ss.Scaling(), ss.Scaling(levels=None, mean=(3.0,), std=(2.0,)),
], ids=("centered", "unit", "floats"))  # fmt: skip
@pytest.mark.parametrize("operator", [
  ss.guidance.PhaseRetrieval(), ss.guidance.Quantized(quality=50), "linear",
], ids=lambda o: type(o).__name__)  # fmt: skip
def test_a_measurement_of_data_is_one_of_the_networks_x(scaling, operator):
  """The residual of the true x is zero there, whether or not the operator is linear."""
  images = jax.random.uniform(jax.random.key(0), (2, 8, 8, 1))
  if operator == "linear":
    operator = ss.guidance.inpaint(jnp.ones((2, 8, 8, 1)).at[:, 2:].set(0), images).operator
  measured = ss.guidance.measure(jax.random.split(jax.random.key(1), 2), operator, images, 0.0)
  its = ss.Model(ss.ScoreModel(SDE, network), 1.0, scaling, (8, 8, 1))
  on_data, given = its._measured(measured, 2)
  assert on_data is measured
  x = scaling.forward(images)
  slope = 2.0 if scaling.std else scaling.slope
  # The quantization of values at the border of a step may go either way by a rounding error.
  np.testing.assert_allclose(given.operator.apply(x), given.y, atol=1e-5 if scaling.slope == 1 else 1e-3)
  np.testing.assert_allclose(given.noise * slope, measured.noise)


def config_of(name, **values):
  config = resolve(runs.changed(load(runs.ROOT / f"configs/{name}.py"), **values))
  shape = (config.data.image_size, config.data.image_size, config.data.num_channels)
  return config, make_model(config, make_sde(config), create(config, shape))


def test_models_of_a_few_noise_levels_get_the_sampler_of_their_config():
  config, network = config_of("ve/ncsn/cifar10")
  own = _own_sampler(config, network)
  assert own == {"solver": make_solver(config), "steps": config.sampling.num_steps, "grid": config.sampling.grid}
  assert _own_sampler(*config_of("vp/ddpm/cifar10")) == {}
  assert _own_sampler(*config_of("quickstart")) == {}
  config, network = config_of("consistency/cifar10_ct")
  assert _own_sampler(config, network) == {"solver": ss.Consistency(sigmas=(0.821,))}


def test_an_average_that_is_mostly_the_beginning_is_named():
  config = ConfigDict({"model": {"ema_rate": 0.9999, "ema_warmup": False}})
  assert "2,000: the initial parameters still have a weight of 82%" in short_run(config, 2000)
  assert short_run(config, 20_000) == ""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  """The workdir of a run of a few steps, whose average of the parameters is still the beginning."""
  folder = str(tmp_path_factory.mktemp("short") / "run")
  steps = {"training__batch_size": 8, "training__n_iters": 2, "training__n_jitted_steps": 2, "training__log_freq": 2,
    "training__eval_freq": 2, "training__snapshot_freq": 2, "training__snapshot_freq_for_preemption": 2}  # fmt: skip
  training.train(runs.tiny(
    **steps, training__final_report=False, training__snapshot_sampling=False, eval__batch_size=8,
    model__ema_warmup=False, model__ema_rate=0.999, eval__num_probes=3, eval__rtol=0.02,
  ), folder)  # fmt: skip
  return folder


def test_raw_parameters_and_the_options_of_the_run_are_loaded(run, tmp_path):
  with pytest.warns(UserWarning, match=r"still have a weight of 100% in it\. Choose weights='raw'"):
    average = ss.load(run)
  raw = ss.load(run, weights="raw")
  with checkpoints.manager(run) as opened:
    state = train_step.restore_state(opened, build(read_config(run)), run)
  for its, expected in ((average, state.ema_params), (raw, state.params)):
    jax.tree.map(np.testing.assert_array_equal, its.params, expected)
  assert (average.likelihood.num_probes, average.likelihood.rtol) == (3, 0.02)
  for only in (False, True):
    export_weights(read_config(run), run, file := str(tmp_path / f"{only}.safetensors"), ema_only=only)
  both = ss.load(str(tmp_path / "False.safetensors"), weights="raw")
  jax.tree.map(np.testing.assert_array_equal, both.params, raw.params)
  with pytest.raises(ss.ScoreSDEError, match="holds only the average"):
    ss.load(file, weights="raw")
  with pytest.raises(ss.ScoreSDEError, match="the parameters of one step only"):
    ss.load(file, "best")
  with pytest.raises(ss.InvalidArgument, match="weights='row'"):
    ss.load(run, weights="row")
