"""Networks against the official forward passes, and their layers against plain definitions."""

import dataclasses
import importlib

import flax.linen
import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from score_sde import models
from score_sde.batch import example_keys
from score_sde.models import layers
from score_sde.models.mlp import MLP
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.wideresnet import WideResnet
from score_sde.run import devices
from score_sde.run.config import default_config, networks, resolve
from score_sde.run.experiment import build

CASES = golden_cases.parameters("flax_*.npz")


@pytest.mark.parametrize("name", CASES)
def test_official_networks_agree(name):
  """Names and shapes of all weights, the output and its gradient in x."""
  case = golden_cases.load(name)
  network = golden_cases.network(golden_cases.manifest(case))
  x, labels, weights = jnp.asarray(case["x"]), jnp.asarray(case["labels"]), golden_cases.weights(case)
  assert golden_cases.shapes(network, x, labels) == {k: v.shape for k, v in weights.items()}
  variables = golden_cases.variables(weights)
  if "grad_x_of_sum_y2" not in case:
    assert golden_cases.relative_error(devices.run_once(network.apply, variables, x, labels), case["y"]) < 1e-4
    return
  loss = lambda x, variables: (jnp.sum((y := network.apply(variables, x, labels)) ** 2), y)
  (_, y), gradient = devices.run_once(jax.value_and_grad(loss, has_aux=True), x, variables)
  assert golden_cases.relative_error(y, case["y"]) < 1e-4
  # In ncsnv2_256 two values that a max pool compares agree to 1e-7, and which of them wins, and so gets the gradient,
  # changes with the order of rounding: by 3.3e-4 of the largest entry, or not (1.4e-5) with XLA's older fusions.
  tolerance = 1e-3 if name == "flax_ncsnv2_256" else 1e-4
  assert golden_cases.relative_error(gradient, case["grad_x_of_sum_y2"]) < tolerance


def random_params(network, x, scale=1.0):
  """Parameters drawn leaf by leaf with NumPy: compiling an initialisation takes longer than these tests."""
  shapes = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(len(x)))
  rng = np.random.default_rng(0)

  def draw(path, leaf):
    centre = 1.0 if path[-1].key == "scale" else 0.0
    fan = np.prod(leaf.shape[:-1]) if leaf.ndim > 1 else 100.0
    return jnp.asarray(centre + scale * rng.standard_normal(leaf.shape) / np.sqrt(fan), jnp.float32)

  return jax.tree_util.tree_map_with_path(draw, shapes)


def abstract_size(network, size):
  x = jnp.zeros((1, size, size, 3))
  tree = jax.eval_shape(network.init, jax.random.key(0), x, jnp.ones(1))["params"]
  return sum(v.size for v in jax.tree.leaves(tree))


@pytest.mark.parametrize(
  ("options", "size", "expected"),
  [
    ({}, 32, 62_758_915),
    ({"num_res_blocks": 8}, 32, 107_587_075),
    (
      {"fir": False, "progressive_input": "none", "embedding_type": "positional", "scale_by_sigma": False},
      32,
      61_804_419,
    ),
    (
      {
        "ch_mult": (1, 1, 2, 2, 2, 2, 2),
        "num_res_blocks": 2,
        "progressive": "output_skip",
        "progressive_input": "input_skip",
      },
      256,
      65_574_549,
    ),
  ],
  ids=["ncsnpp", "deep", "ddpmpp", "256 px"],
)  # fmt: skip
def test_published_parameter_counts(options, size, expected):
  assert abstract_size(NCSNpp(**options), size) == expected


def insert_zeros_and_filter(x, taps, up, down, pad):
  """upfirdn2d by its definition, with NumPy."""
  b, h, w, c = x.shape
  z = np.zeros((b, h * up, w * up, c))
  z[:, ::up, ::up] = x
  z = np.pad(z, ((0, 0), pad, pad, (0, 0)))
  kernel = np.outer(taps, taps)[::-1, ::-1]
  n = len(taps)
  windows = np.lib.stride_tricks.sliding_window_view(z, (n, n), axis=(1, 2))
  return np.einsum("bhwcij,ij->bhwc", windows, kernel)[:, ::down, ::down]


@pytest.mark.parametrize(("up", "down", "pad"), [(2, 1, (2, 1)), (1, 2, (1, 1)), (1, 1, (2, 2)), (2, 1, (3, 2))])
@pytest.mark.parametrize("kernel", [(1, 3, 3, 1), (1, 2, 5), (1, 4, 6, 4, 1)])
def test_polyphase_filter_is_the_definition_of_upfirdn(kernel, up, down, pad, x64):
  x = np.random.default_rng(0).standard_normal((2, 6, 8, 3))
  taps = np.array(kernel) / sum(kernel) * up
  got = layers.fir(jnp.asarray(x), kernel, up=up, down=down, pad=pad)
  np.testing.assert_allclose(got, insert_zeros_and_filter(x, taps, up, down, pad), atol=1e-12)


def test_fused_upsampling_convolves_before_it_filters(x64):
  """StyleGAN2's order: zeros inserted, convolved by the kernel (transposed convolution), then low-pass filtered."""
  x = np.random.default_rng(0).standard_normal((1, 4, 4, 2))
  layer = layers.Conv2d(3, (1, 3, 3, 1), up=True, dtype=jnp.float64)
  params = layer.init(jax.random.key(0), jnp.asarray(x))
  w = np.asarray(params["params"]["weight"])
  z = np.zeros((1, 7, 7, 2))
  z[:, ::2, ::2] = x
  z = np.pad(z, ((0, 0), (2, 2), (2, 2), (0, 0)))
  windows = np.lib.stride_tricks.sliding_window_view(z, (3, 3), axis=(1, 2))
  convolved = np.einsum("bhwcij,ijcd->bhwd", windows, w)
  expected = insert_zeros_and_filter(convolved, np.array([1, 3, 3, 1]) / 4, 1, 1, (1, 1))
  np.testing.assert_allclose(layer.apply(params, jnp.asarray(x)), expected, atol=1e-12)


@pytest.mark.parametrize("resblock_type", ["ddpm", "biggan"])
@pytest.mark.parametrize("progressive", ["none", "output_skip", "residual"])
@pytest.mark.parametrize("progressive_input", ["none", "input_skip", "residual"])
def test_every_combination_of_options_builds(resblock_type, progressive, progressive_input):
  for combine in ("sum", "cat"):
    for fir in (False, True):
      network = NCSNpp(
        nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), resblock_type=resblock_type, fir=fir,
        progressive=progressive, progressive_input=progressive_input, progressive_combine=combine,
      )  # fmt: skip
      x = jnp.zeros((1, 8, 8, 3))
      y, _ = jax.eval_shape(lambda x: network.init_with_output(jax.random.key(0), x, jnp.ones(1)), x)
      assert y.shape == x.shape


@pytest.mark.slow
def test_a_fresh_network_predicts_zero():
  """The last convolution starts at 1e-10 of its usual variance, as the residual branches do."""
  network = NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(), dropout=0.0)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  y, variables = devices.run_once(lambda: network.init_with_output(jax.random.key(1), x, jnp.ones(2)))
  assert float(jnp.max(jnp.abs(y))) < 1e-3
  for path, value in flatten_dict(variables["params"]).items():
    if path[-1] == "kernel" and path[-2] == "Conv_0" and len(path) == 3:
      fan = np.prod(value.shape[:-2]) * (value.shape[-2] + value.shape[-1]) / 2
      assert float(jnp.max(jnp.abs(value))) <= np.sqrt(3 / fan)


def uniform_bound(fan):
  """Of a uniform distribution with variance 1 / fan."""
  return np.sqrt(3 / fan)


@pytest.mark.parametrize(
  ("network", "size"),
  [
    (NCSNpp(nf=16, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)), 8),
    (models.DDPM(nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,)), 8),
    pytest.param(
      models.NCSN(nf=16, num_scales=50, stages=((1, 1), (2, 2)), refine=(2, 1)), 4, marks=pytest.mark.thorough
    ),
    pytest.param(models.NCSNv2_64(nf=32, stages=((1, 1), (2, 1)), refine=(2, 1)), 4, marks=pytest.mark.thorough),
    (WideResnet(1, 1, 10), 8),
    (models.DiT(nf=32, num_res_blocks=1, num_heads=2), 8),
  ],
  ids=["ncsnpp", "ddpm", "ncsn", "ncsnv2", "wideresnet", "dit"],
)
def test_weights_start_as_in_the_papers(network, size):
  """The bounds and the spread of every kernel, by the rule of its network; norms at one, biases at zero."""
  x = jnp.zeros((1, size, size, 3))
  tree = devices.run_once(lambda: network.init(jax.random.key(0), x, jnp.ones(1)))["params"]
  seen = 0
  for path, w in flatten_dict(tree).items():
    name, w = "/".join(path), np.asarray(w)
    fan_in, fan_out = (np.prod(w.shape[:-1]), np.prod(w.shape[:-2]) * w.shape[-1]) if w.ndim > 1 else (0, 0)
    if "InstanceNorm" in name:
      if path[-1] == "embedding":
        w, zeros = np.split(w, [2 * w.shape[1] // 3], axis=1)
        assert not zeros.any(), name
      elif path[-1] == "beta":
        assert not w.any(), name
        continue
      assert abs(w.mean() - 1) < 5 * 0.02 / np.sqrt(w.size), name
      assert w.std() == pytest.approx(0.02, rel=0.5), name
    elif path[-1] == "scale":
      assert (w == 1).all(), name
    elif isinstance(network, models.RefineNet):
      fan_in = fan_in or np.prod(flatten_dict(tree)[(*path[:-1], "kernel")].shape[:-1])
      assert np.abs(w).max() <= 1 / np.sqrt(fan_in), name
      assert np.abs(w).max() > (0.5 if w.ndim > 1 else 0.1) / np.sqrt(fan_in), name
    elif w.ndim == 1:
      assert path[-1] == "W" or not w.any() or isinstance(network, WideResnet), name
    elif isinstance(network, WideResnet) and w.ndim == 4:
      assert w.std() == pytest.approx(np.sqrt(2 / fan_out), rel=0.2), name
    elif isinstance(network, models.DiT):
      zero = path[-2] in ("modulation", "last_modulation", "pixels")
      assert zero == (not w.any()), name
      if path[-2] in ("qkv", "proj", "fc1", "fc2", "patches"):
        assert np.abs(w).max() == pytest.approx(uniform_bound((fan_in + fan_out) / 2), rel=0.05), name
    elif isinstance(network, (NCSNpp, models.DDPM)):
      # The last layer of a branch starts at 1e-10 of the usual variance, the others of NIN at a tenth.
      block = path[0].split("_")[0]
      last = (block, path[-2]) in {("ResnetBlockBigGANpp", "Conv_1"), ("ResnetBlockDDPM", "Conv_1")} or (
        block in ("AttnBlockpp", "AttnBlock") and path[-2] == "NIN_3"
      )
      last |= path == ("Conv_1", "kernel")
      scale = 1e-10 if last else 0.1 if "NIN" in path[-2] else 1.0
      assert np.abs(w).max() == pytest.approx(uniform_bound((fan_in + fan_out) / 2 / scale), rel=0.1), name
    seen += 1
  assert seen > 10


def test_class_labels_are_seen_and_dropped_at_their_rate():
  # Of 64 channels two share a group; of 32 each is normed alone, and what embeddings add to it is taken away again.
  network = models.DDPM(nf=64, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), num_classes=3, label_dropout=0.5)
  x = jnp.zeros((64, 4, 4, 1))
  params = random_params(network, x)
  apply = jax.jit(network.apply)
  keys = example_keys(jax.random.key(0), jnp.arange(64))
  one, none, unknown = (apply(params, x, jnp.ones(64), None, y) for y in (jnp.full(64, 1), None, jnp.full(64, -1)))
  np.testing.assert_array_equal(none, unknown)
  spread = lambda a: np.max(np.abs(np.asarray(a)), axis=(1, 2, 3))
  assert spread(one - none).min() > 1e-3
  trained = jax.jit(dataclasses.replace(network, dropout=0.0).apply)(params, x, jnp.ones(64), keys, jnp.full(64, 1))
  dropped, kept = spread(trained - none) < 1e-4, spread(trained - one) < 1e-4
  assert (dropped ^ kept).all()
  assert 16 < dropped.sum() < 48


@pytest.mark.slow
@pytest.mark.parametrize("network", [NCSNpp, models.DDPM])
def test_rematerialization_changes_no_name_and_no_number(network):
  options = {"nf": 32, "ch_mult": (1,), "num_res_blocks": 1, "attn_resolutions": (), "dropout": 0.1}
  plain, remat = network(**options), network(**options, remat=True)
  x = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
  params, keys = random_params(plain, x), example_keys(jax.random.key(0), jnp.arange(2))
  assert golden_cases.shapes(plain, x, jnp.ones(2)) == golden_cases.shapes(remat, x, jnp.ones(2))
  gradients = []
  for n in (plain, remat):
    gradient = jax.grad(lambda p, x: jnp.sum(n.apply(p, x, jnp.ones(2), keys) ** 2))
    gradients.append(jax.tree.leaves(devices.run_once(gradient, params, x)))
  largest = max(float(jnp.max(jnp.abs(g))) for g in gradients[0])
  for a, b in zip(*gradients, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * largest)


@pytest.mark.slow
def test_bfloat16_keeps_parameters_and_output_in_float32():
  network = NCSNpp(nf=8, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(4,), dtype=jnp.bfloat16)
  x = jax.random.normal(jax.random.key(0), (2, 8, 8, 3))
  exact = dataclasses.replace(network, dtype=jnp.float32)
  params = random_params(exact, x)
  assert {v.dtype for v in jax.tree.leaves(jax.eval_shape(network.init, jax.random.key(1), x, jnp.ones(2)))} == {
    jnp.dtype("float32")
  }
  low, high = jax.jit(network.apply)(params, x, jnp.ones(2)), jax.jit(exact.apply)(params, x, jnp.ones(2))
  assert low.dtype == jnp.float32
  assert 1e-5 < golden_cases.relative_error(low, np.asarray(high)) < 0.05


def test_swish_has_its_closed_form_derivatives(x64):
  """The derivative is written out by hand, and differentiated again for scores of scores."""
  x = jnp.linspace(-30.0, 30.0, 601)
  s = 1 / (1 + np.exp(-np.asarray(x)))
  first = s * (1 + x * (1 - s))
  second = s * (1 - s) * (2 + x * (1 - 2 * s))
  np.testing.assert_allclose(layers.swish(x), x * s, atol=1e-14)
  np.testing.assert_allclose(jax.vmap(jax.grad(layers.swish))(x), first, atol=1e-14)
  np.testing.assert_allclose(jax.vmap(jax.grad(jax.grad(layers.swish)))(x), second, atol=1e-14)


@pytest.mark.thorough
def test_group_norm_and_its_derivatives_are_those_of_flax(x64):
  """Value, forward and backward derivative, and the derivative of the derivative, which is written out by hand."""
  keys = jax.random.split(jax.random.key(0), 4)
  x, dx = (3 + 2 * jax.random.normal(key, (2, 4, 6, 8)) for key in keys[:2])
  scale, bias = (jax.random.normal(key, (8,)) for key in keys[2:])
  theirs = flax.linen.GroupNorm(num_groups=4, epsilon=1e-3)
  norms = (
    lambda x, scale, bias: layers.normalize_groups(x, scale, bias, 4, 1e-3),
    lambda x, scale, bias: theirs.apply({"params": {"scale": scale, "bias": bias}}, x),
  )
  loss = lambda norm: lambda *args: jnp.sum(jnp.sin(norm(*args)) * dx)
  slope = lambda norm: lambda *args: jax.jvp(loss(norm), args, (dx, bias, scale))[1]
  results = [
    (norm(x, scale, bias), jax.jvp(norm, (x, scale, bias), (dx, bias, scale))[1],
     jax.grad(loss(norm), (0, 1, 2))(x, scale, bias), jax.grad(slope(norm), (0, 1, 2))(x, scale, bias))
    for norm in norms
  ]  # fmt: skip
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9), *results)


def test_cheap_bits_are_fair_and_independent():
  """Every bit, pairs of neighbours, of examples and of layers, and bytes: within five standard errors."""
  keys = example_keys(jax.random.key(0), jnp.arange(64))
  bits = np.asarray(layers.cheap_bits(keys, (64, 64)))
  other = np.asarray(layers.cheap_bits(keys, (64, 64), 1))  # another layer's
  signs = 2.0 * ((bits[..., None] >> np.arange(32, dtype=np.uint32)) & 1) - 1
  standard_error = bits.size**-0.5
  assert np.abs(signs.mean(axis=(0, 1, 2))).max() < 5 * standard_error
  correlation = lambda a, b: np.abs((a * b).mean(axis=(0, 1, 2))).max()
  for axis in range(3):
    for distance in (1, 2, 8):
      assert correlation(signs, np.roll(signs, distance, axis)) < 5 * standard_error
  assert correlation(signs, np.roll(signs, 1, axis=-1)) < 5 * standard_error
  assert correlation(signs, 2.0 * ((other[..., None] >> np.arange(32, dtype=np.uint32)) & 1) - 1) < 5 * standard_error
  for byte in range(4):
    counts = np.bincount((bits >> np.uint32(8 * byte)).astype(np.uint8).ravel(), minlength=256)
    chi_squared = np.sum((counts - bits.size / 256) ** 2 / (bits.size / 256))
    assert abs(chi_squared - 255) < 5 * np.sqrt(2 * 255)


def test_dropout_keeps_the_mean_and_its_rate():
  keys = example_keys(jax.random.key(3), jnp.arange(16))
  for rate in (0.1, 0.5):
    dropped = np.asarray(layers.Dropout(rate).apply({}, jnp.ones((16, 64, 64)), keys))
    share, error = np.mean(dropped == 0), np.sqrt(rate * (1 - rate) / dropped.size)
    assert abs(share - rate) < 5 * error
    np.testing.assert_allclose(dropped[dropped > 0], 1 / (1 - rate), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("network", [MLP(nf=16, dropout=0.5), NCSNpp(nf=8, ch_mult=(1,), dropout=0.5)])
def test_dropout_of_an_example_does_not_depend_on_its_batch(network):
  x = jax.random.normal(jax.random.key(0), (4, 4, 4, 1))
  params = random_params(network, x)
  keys = example_keys(jax.random.key(2), jnp.arange(4))
  apply = jax.jit(network.apply)
  whole, part = apply(params, x, jnp.ones(4), keys), apply(params, x[2:], jnp.ones(2), keys[2:])
  np.testing.assert_allclose(whole[2:], part, rtol=1e-4, atol=1e-5)
  assert float(jnp.max(jnp.abs(whole - apply(params, x, jnp.ones(4))))) > 1e-3


def test_networks_that_do_not_fit_the_data_are_refused():
  config = default_config()
  config.data.dataset = "swiss_roll"
  with pytest.raises(ValueError, match="needs images"):
    networks.create(resolve(config), (2,))
  config = default_config()
  config.data.image_size = 28
  with pytest.raises(ValueError, match="no multiple of 8"):
    networks.create(resolve(config), (28, 28, 3))
  config = default_config()
  config.model.nf = 130
  with pytest.raises(ValueError, match="GroupNorm"):
    networks.create(resolve(config), (32, 32, 3))


@pytest.mark.parametrize(("name", "size"), [("cifar10_ncsnpp_continuous", 32), ("ffhq_256_ncsnpp_continuous", 64)])
def test_the_benchmark_s_pytorch_network_is_the_same(name, size):
  pytest.importorskip("torch")
  import torch

  from benchmarks.torch_ncsnpp import NCSNpp, load

  config = importlib.import_module(f"configs.ve.{name}").get_config()
  config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 16, (1, 2), 1
  config.model.attn_resolutions, config.data.image_size = (size // 2,), size
  experiment = build(config)
  params = experiment.init_params(jax.random.key(0))
  params = jax.tree.map(lambda x: x + 0.02 * jax.random.normal(jax.random.key(x.size), x.shape), params)
  network = NCSNpp(config.model, size, 3).eval()
  load(network, jax.device_get(params))
  x, sigma = np.random.default_rng(0).random((2, size, size, 3), np.float32), np.array([0.3, 5.0], np.float32)
  with torch.no_grad():
    found = network(torch.from_numpy(x).permute(0, 3, 1, 2), torch.from_numpy(sigma)).permute(0, 2, 3, 1).numpy()
  expected = np.asarray(experiment.network.apply({"params": params}, x, sigma))
  np.testing.assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())
