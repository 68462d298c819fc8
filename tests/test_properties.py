"""Properties of SDEs, grids, configs and tensor files that hold for all inputs; hypothesis looks for an exception."""

import json
import math
import pathlib
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_published import write_stream

from score_sde import analytic
from score_sde.run.checkpoints import torch_file
from score_sde.run.config import BadInput, as_dict, check_key, default_config, get, keys, resolve
from score_sde.run.loading import parse_config
from score_sde.run.workdir import write_json
from score_sde.sampling import make_grid
from score_sde.sde import VE, VP, CosineVP, RectifiedFlow, SubVP

QUICK = settings(
  max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)  # the same cases in each run
numbers = lambda low, high: st.floats(low, high, allow_subnormal=False)

SDES = st.one_of(
  st.builds(lambda low, share: VE(low, low * share), numbers(1e-3, 1.0), numbers(2.0, 1e4)),
  st.builds(lambda low, more: VP(low, low + more), numbers(1e-3, 1.0), numbers(1.0, 40.0)),
  st.builds(lambda low, more: SubVP(low, low + more), numbers(1e-3, 1.0), numbers(1.0, 40.0)),
  st.builds(CosineVP, s=numbers(0.0, 0.05)),
  st.just(RectifiedFlow()),
)
GRIDS = st.sampled_from(["uniform", "log_snr", "karras", "quadratic"])


@pytest.fixture(autouse=True)
def float64(x64):
  """Identities are tested to more digits than float32 has."""


@QUICK
@given(SDES, numbers(1e-3, 1.0))
def test_the_snr_falls_and_is_that_of_alpha_and_sigma(sde, share):
  t = jnp.array([share * sde.T * 0.99, share * sde.T])
  alpha, sigma = sde.alpha(t), sde.sigma(t)
  np.testing.assert_allclose(sde.log_snr(t), 2 * jnp.log(alpha / sigma), rtol=1e-6, atol=1e-8)
  assert sde.log_snr(t)[1] < sde.log_snr(t)[0]


@QUICK
@given(SDES, numbers(0.02, 0.98), numbers(0.02, 0.98), numbers(0.02, 0.98))
def test_transitions_compose(sde, a, b, c):
  """x_c | x_a is x_c | x_b after x_b | x_a, and the marginal is the transition from t = 0."""
  early, middle, late = (jnp.full(1, sde.T * t) for t in sorted((a, b, c)))
  ratio1, std1 = sde.transition(early, middle)
  ratio2, std2 = sde.transition(middle, late)
  ratio, std = sde.transition(early, late)
  np.testing.assert_allclose(ratio, ratio1 * ratio2, rtol=1e-9)
  np.testing.assert_allclose(std**2, (ratio2 * std1) ** 2 + std2**2, rtol=1e-6, atol=1e-12)
  np.testing.assert_allclose(sde.sigma(late) ** 2, (ratio * sde.sigma(early)) ** 2 + std**2, rtol=1e-6, atol=1e-12)


@QUICK
@given(SDES, numbers(0.02, 0.98))
def test_drift_and_diffusion_give_the_marginals(sde, share):
  """alpha' = a alpha for the drift a x, and (sigma²)' = 2 a sigma² + g²."""
  t = jnp.full(1, sde.T * share)
  slope = lambda f: jax.jvp(f, (t,), (jnp.ones(1),))[1]
  rate = sde.drift(jnp.ones((1, 1)), t)[:, 0]
  g = sde.diffusion(jnp.ones((1, 1)), t)
  np.testing.assert_allclose(slope(sde.alpha), rate * sde.alpha(t), rtol=1e-6, atol=1e-10)
  variance = lambda t: sde.sigma(t) ** 2
  np.testing.assert_allclose(slope(variance), 2 * rate * variance(t) + g**2, rtol=1e-5, atol=1e-9)


@QUICK
@given(SDES, GRIDS, st.integers(1, 60), numbers(1e-3, 0.2), numbers(0.5, 1.0))
def test_grids_chain_from_start_to_end(sde, name, n, eps, start):
  eps, start = eps * sde.T, start * sde.T
  grid = make_grid(name, sde, n, eps, t_start=start)
  assert len(grid.t) == n
  assert math.isclose(grid.start[0], start, rel_tol=1e-6)
  assert math.isclose(grid.stop[-1], eps, rel_tol=1e-5)
  np.testing.assert_array_equal(grid.start[1:], grid.stop[:-1])
  assert (np.float32(grid.start) > np.float32(grid.stop)).all()


@QUICK
@given(SDES, numbers(0.05, 0.95), numbers(-2.0, 2.0), numbers(0.1, 3.0))
def test_the_score_of_a_gaussian_is_its_closed_form(sde, share, mean, std):
  t = jnp.full(1, sde.T * share)
  x = jnp.full((1, 1), 0.3)
  alpha, sigma = sde.alpha(t), sde.sigma(t)
  variance = (alpha * std) ** 2 + sigma**2
  score = analytic.gaussian(np.array([mean]), np.array([[std**2]])).score(sde)(x, t)
  np.testing.assert_allclose(score[:, 0], (alpha * mean - x[:, 0]) / variance, rtol=1e-7)


def values_of(key):
  """Values that a key accepts, from its range and its default."""
  _, field, known = keys()[key][0]
  if known.choices:
    return st.sampled_from([c for c in known.choices if not callable(c)])
  if isinstance(field.default, bool):
    return st.booleans()
  if isinstance(field.default, int):
    return st.integers(1, 10_000)
  if isinstance(field.default, float):
    return st.one_of(numbers(1e-9, 0.999), st.just(math.inf))
  if isinstance(field.default, str):
    return st.text(st.characters(codec="utf-8", exclude_characters=":"), max_size=12)
  if isinstance(field.default, tuple) and field.default and isinstance(field.default[0], int):
    return st.lists(st.integers(1, 9), min_size=1, max_size=4).map(tuple)
  return st.none()


KEYS = sorted(keys())


@QUICK
@given(st.data())
def test_any_config_comes_back_from_its_json(data):
  """As a run stores it and `load` reads it, whatever the values are."""
  config = default_config()
  for key in data.draw(st.lists(st.sampled_from(KEYS), max_size=8, unique=True)):
    value = data.draw(values_of(key))
    if value is not None:
      section, name = key.split(".")
      config[section][name] = value
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "config.json"
    write_json(file, as_dict(config))
    json.loads(file.read_text(), parse_constant=lambda text: pytest.fail(text))
    again = parse_config(file.read_text(), str(file), allowed=None)
  for key in KEYS:
    plain = lambda v: list(v) if isinstance(v, tuple) else v
    assert plain(get(again, key)) == plain(get(config, key)), key


def test_resolving_twice_changes_nothing():
  config = resolve(default_config())
  assert as_dict(resolve(parse_config(json.dumps(as_dict(config)), "config"))) == as_dict(config)


@QUICK
@given(st.text(max_size=20))
def test_an_unknown_key_is_named_whatever_it_is(text):
  if text in default_config() or text in KEYS:
    return
  with pytest.raises(BadInput):
    check_key(default_config(), text, "--config.")


SHAPES = st.lists(st.integers(0, 4), max_size=3).map(tuple)


@QUICK
@given(st.dictionaries(st.text("abcXYZ._0", min_size=1, max_size=8), st.tuples(SHAPES, st.integers(0, 99)), max_size=5))
def test_tensors_come_back_from_a_file_of_pytorch(described):
  draw = lambda shape, seed: np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
  made = {name: np.asarray(draw(*what), np.float32) for name, what in described.items()}
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "weights.bin"
    write_stream(file, made)
    found = torch_file.read(file)
    assert set(found) == set(made)
    for name, array in made.items():
      np.testing.assert_array_equal(found[name], array)
      assert found[name].dtype == array.dtype


@QUICK
@given(st.binary(max_size=200))
def test_no_bytes_but_those_of_a_tensor_file_are_read(content):
  with tempfile.TemporaryDirectory() as folder:
    file = pathlib.Path(folder) / "weights.bin"
    file.write_bytes(content)
    with pytest.raises(BadInput):
      torch_file.read(file)
