"""The configs of the papers: value for value, parameter for parameter, and each of them runs."""

import functools
import json
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from golden_cases import FOLDER
from test_config import ROOT, load

from score_sde import models
from score_sde.run import devices, train_step
from score_sde.run.config import as_dict, default_config, get, keys, why_unread
from score_sde.run.experiment import build

OFFICIAL = json.loads((FOLDER / "official_configs.json").read_text())

# Counted in the Flax naming, fixed frequencies included. 62,758,915, 107,587,075, 61,804,419, 106,632,579, 35,218,947,
# 65,574,549 and 111,569,923 are published; the others follow from networks that these and the golden cases pin down.
PARAMETERS = {
  "subvp/cifar10_ddpm_continuous": 35_218_947,
  "subvp/cifar10_ddpmpp_continuous": 61_804_419,
  "subvp/cifar10_ddpmpp_deep_continuous": 106_632_579,
  "subvp/cifar10_ncsnpp_continuous": 62_693_251,
  "subvp/cifar10_ncsnpp_deep_continuous": 107_521_411,
  "ve/bedroom_ncsnpp_continuous": 65_574_549,
  "ve/celeba_ncsnpp": 62_693_251,
  "ve/celebahq_256_ncsnpp_continuous": 65_574_549,
  "ve/celebahq_ncsnpp_continuous": 105_785_896,
  "ve/church_ncsnpp_continuous": 65_574_549,
  "ve/cifar10_ddpm": 35_218_947,
  "ve/cifar10_ncsnpp": 62_693_251,
  "ve/cifar10_ncsnpp_continuous": 62_758_915,
  "ve/cifar10_ncsnpp_deep_continuous": 107_587_075,
  "ve/ffhq_256_ncsnpp_continuous": 65_574_549,
  "ve/ffhq_ncsnpp_continuous": 105_785_896,
  "ve/ncsn/celeba": 30_117_635,
  "ve/ncsn/celeba_124": 51_379_715,
  "ve/ncsn/celeba_1245": 51_379_715,
  "ve/ncsn/celeba_5": 30_117_635,
  "ve/ncsn/cifar10": 30_117_635,
  "ve/ncsn/cifar10_124": 39_750_659,
  "ve/ncsn/cifar10_1245": 39_750_659,
  "ve/ncsn/cifar10_5": 30_117_635,
  "ve/ncsnv2/bedroom": 83_445_379,
  "ve/ncsnv2/celeba": 33_970_563,
  "ve/ncsnv2/cifar10": 33_970_563,
  "vp/cifar10_ddpmpp": 61_804_419,
  "vp/cifar10_ddpmpp_continuous": 61_804_419,
  "vp/cifar10_ddpmpp_deep_continuous": 106_632_579,
  "vp/cifar10_ncsnpp": 62_693_251,
  "vp/cifar10_ncsnpp_continuous": 62_693_251,
  "vp/cifar10_ncsnpp_deep_continuous": 107_521_411,
  "vp/ddpm/bedroom": 111_569_923,
  "vp/ddpm/celebahq": 111_569_923,
  "vp/ddpm/church": 111_569_923,
  "vp/ddpm/cifar10": 35_218_947,
  "vp/ddpm/cifar10_continuous": 35_218_947,
  "vp/ddpm/cifar10_unconditional": 32_329_347,
}

# What the official files get wrong, or hold though nothing reads it: {config, or * for all of a network: {key: why}}.
NOT_READ = {
  "ddpm": {"model.embedding_type", "model.conv_size"},
  "ncsn": {"model.dropout", "model.embedding_type"},
  "ncsnv2": {"model.dropout", "model.embedding_type"},
}
WRONG = {
  "data.tfrecords_path": "a path of the authors; data.path names a user's TFRecords",
  "model.sigma_begin": "read by nothing",
  "training.loss": "means training.sde",
  "training.continuouse": "means training.continuous",
}


def flat(tree, prefix=""):
  for key, value in tree.items():
    if isinstance(value, dict):
      yield from flat(value, f"{prefix}{key}.")
    else:
      yield f"{prefix}{key}", value


def plain(value):
  return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


@functools.cache
def experiment(name):
  config = load(ROOT / f"configs/{name}.py")
  if config.data.dataset in ("FFHQ", "CelebAHQ"):
    config.data.path = "images"
  return build(config)


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_configs_have_the_official_values(name):
  config = experiment(name).config
  for key, value in flat(OFFICIAL[name]):
    if key in WRONG or key in NOT_READ.get(config.model.name.split("_")[0], ()):
      continue
    if key in ("model.sigma_max", "sampling.snr") and config.training.sde != "vesde":
      continue  # of the LSUN base; VP models without a corrector read neither
    if (name, key) == ("ve/ncsnv2/bedroom", "training.continuous"):
      value = False
    assert plain(get(config, key)) == value, key


@functools.cache
def size(network, shape):
  """Parameters; many configs share a network."""
  tree = jax.eval_shape(network.init, jax.random.key(0), jnp.zeros((1, *shape)), jnp.ones(1))
  return sum(x.size for x in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", OFFICIAL)
def test_networks_have_their_published_size(name):
  assert size(experiment(name).network, experiment(name).shape) == PARAMETERS[name]


FILES = sorted(
  str(p.relative_to(ROOT / "configs").with_suffix(""))
  for p in (ROOT / "configs").rglob("*.py")
  if p.stem not in ("papers", "small", "base")
  and p.parent.name + p.stem != "classifierfolder"
  and "def get_config" in p.read_text()
)


@pytest.mark.parametrize("name", FILES)
def test_every_config_builds_and_nothing_it_states_is_ignored(name):
  """Of a paper's config each key that differs from the default is read; those of the small ones suit all SDEs."""
  built = experiment(name)
  if built.config.training.final_report:
    return
  stated, default = dict(flat(as_dict(load(ROOT / f"configs/{name}.py")))), dict(flat(as_dict(default_config())))
  as_in_official_files = {"sampling.snr", "sampling.norms", "model.sigma_max"}  # which state them for VP models, too
  for key in [k for k, v in stated.items() if v != default[k] and k not in as_in_official_files]:
    assert why_unread(built.config, key) is None, f"{key} is stated and not read"


def test_every_key_of_the_runner_is_looked_up():
  """Keys of the core's objects are their fields; each other one is read somewhere, or accepts one value alone."""
  code = "\n".join(
    p.read_text() for p in (ROOT / "score_sde").rglob("*.py") if p.name not in ("sections.py", "readers.py")
  )
  for key, readers in keys().items():
    name = key.split(".")[-1]
    of_the_runner = all(reader.options.__module__.endswith("sections") for reader, *_ in readers)
    only_one_value = any(len(option.choices) == 1 for *_, option in readers)
    looked_up = re.search(rf"\.{name}\b|\b\w\[\"{name}\"\]|\"{key}\"|\"{name}\"", code)
    assert not of_the_runner or only_one_value or looked_up, f"nothing reads {key}"


def test_a_key_that_the_network_does_not_read_is_an_error():
  config = load(ROOT / "configs/ve/ncsnv2/cifar10.py")
  config.model.fir = False
  with pytest.raises(ValueError, match=r"model\.fir=False is not read by model\.name='ncsnv2_64'"):
    build(config)


def reduced(name):
  """The config at 8 px, with few channels and few steps; all that makes its structure stays."""
  config = load(ROOT / f"configs/{name}.py")
  config.data.dataset, config.data.category, config.data.image_size, config.data.num_channels = "digits", "", 8, 3
  model = config.model
  model.nf = 32 if model.name in ("ddpm", "dit", "mlp") else 8
  if model.name in ("ncsnpp", "ddpm"):
    model.ch_mult, model.num_res_blocks, model.attn_resolutions = (1, 2), 1, (4,)
  if model.name == "dit":
    model.num_res_blocks, model.num_heads = 1, 2
  config.training.batch_size, config.training.n_jitted_steps = 2, 1
  config.sampling.num_steps, config.sampling.n_steps_each = 30, 1  # 20 / 30 is still a beta
  config.sampling.rtol = config.sampling.atol = 1e-1
  return config


def run_reduced(name):
  """One train step and one short chain; what a sampler of untrained weights finds has to be finite."""
  built = build(reduced(name))
  draw = np.random.default_rng(0)
  leaf = lambda s: jnp.asarray(0.1 * draw.standard_normal(s.shape), s.dtype)
  params = jax.tree.map(leaf, built.abstract_params())
  opt_state = train_step.make_optimizer(built.config).init(params)
  state = train_step.TrainState(
    jnp.zeros((), jnp.int32), params, jax.tree.map(jnp.copy, params), opt_state, jax.random.key(0)
  )
  levels = built.config.data.levels
  batch = {
    "image": draw.integers(0, levels, (1, 2, *built.shape)).astype(np.uint8),
    "label": np.zeros((1, 2), np.int32),
    "index": np.arange(2, dtype=np.int32)[None],
  }
  step = devices.map_batch(train_step.make_train_step(built), (None, 0), out_axes=None)
  state, metrics = step(state, batch)
  assert np.isfinite(metrics["loss"]), name
  y = built.asked(0, 2)
  _, info = built.sampler(built.score(state.ema_params), jax.random.key(1), (2, *built.shape), condition=y)
  assert np.all(info["finite"]), name


def computation(name):
  """What is left of a reduced config that decides what is computed; two configs that agree need only run once."""
  config = reduced(name)
  numbers = ("sigma_", "beta_", "ema_rate", "num_scales", "dropout")
  model = {k: v for k, v in config.model.items() if not k.startswith(numbers)}
  t, s = config.training, config.sampling
  rest = (t.sde, t.continuous, t.likelihood_weighting, t.reduce_mean, s.method, s.predictor, s.corrector, s.grid)
  return str((model, rest, config.data.centered, config.optim.warmup == 0))


# One of each family of networks and kind of training, which CI runs.
SOME = (
  "ve/cifar10_ncsnpp", "ve/ncsnv2/cifar10", "vp/cifar10_ddpmpp", "vp/ddpm/cifar10", "vp/cifar10_dit",
  "diffusers/ddpm_cifar10_32",
)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
  "folder", ["some", *(pytest.param(f, marks=pytest.mark.longest) for f in ("ve", "vp", "subvp", "edm", "diffusers"))]
)
def test_every_config_of_the_papers_trains_and_samples_in_small(folder):
  """In a process of its own, whose compiler does not optimize: there is nothing to run twice."""
  distinct = {computation(n): n for n in FILES if n.startswith(f"{folder}/") and "fashion" not in n}
  names = list(SOME) if folder == "some" else list(distinct.values())
  code = f"import sys; sys.path[:0] = ['tests', '.']; import test_papers\nfor n in {names}: test_papers.run_reduced(n)"
  environment = runs.environment() | {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
  )
  assert done.returncode == 0, done.stderr


def test_the_registry_has_every_network_of_the_configs():
  assert {experiment(n).config.model.name for n in FILES} <= set(models.MODELS)
