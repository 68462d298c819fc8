"""What follows from what in a config, and the line that explains a mistake."""

import importlib.util
import pathlib

import pytest
from ml_collections import ConfigDict

from score_sde.options import check_value
from score_sde.run.config import BadInput, default_config, get, keys, resolve, unknown_key, why_unread
from score_sde.run.experiment import build

ROOT = pathlib.Path(__file__).parent.parent
SMALL = [
  ROOT / "configs/quickstart.py",
  *(ROOT / "configs/toy").glob("*.py"),
  *(ROOT / "configs/fashion_mnist").glob("*.py"),
]


def load(path) -> ConfigDict:
  spec = importlib.util.spec_from_file_location("config", path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config()


@pytest.mark.parametrize("sde", ["vesde", "vpsde", "subvpsde"])
@pytest.mark.parametrize("path", sorted(SMALL), ids=lambda p: str(p.relative_to(ROOT / "configs")))
def test_the_small_configs_build_for_every_sde_by_one_override(path, sde):
  config = load(path)
  config.training.sde = sde
  experiment = build(config)
  assert experiment.abstract_params()
  assert experiment.config.data.centered == (sde != "vesde")


def test_what_belongs_to_an_sde_follows_unless_set():
  config = default_config()
  config.training.sde = "vesde"
  resolved = resolve(config)
  assert resolved.data.centered is False
  assert resolved.sampling.predictor == "reverse_diffusion"
  assert resolved.model.embedding_type == "fourier"
  assert resolved.model.scale_by_sigma is True
  config.training.sde = "subvpsde"
  config.data.centered = False
  resolved = resolve(config)
  assert resolved.data.centered is False
  assert resolved.sampling.corrector == "none"
  assert resolved.sampling.eps == 1e-3
  assert config.sampling.eps is None


def changed(key, value):
  config = default_config()
  section, name = key.split(".")
  config[section][name] = value
  return config


@pytest.mark.parametrize(
  ("key", "value", "message"),
  [
    (
      "training.sde",
      "vp",
      r"choose one of vesde, vpsde, subvpsde, cosine, rectified_flow. Did you mean 'vpsde'",
    ),
    ("model.embedding_type", "positional", r"Use --config.model.embedding_type=fourier"),
    ("model.parameterization", "nose", r"Did you mean 'noise'"),
    ("model.dropout", 1.5, r"model.dropout=1.5 must lie in \[0, 1\)"),
    ("model.sigma_min", 60.0, r"model.sigma_min=60.0 and model.sigma_max=50.0 must satisfy 0 < sigma_min < sigma_max"),
    ("optim.lr", 0.0, r"optim.lr=0.0 must be positive"),
    ("training.batch_size", 0, r"training.batch_size=0 must be at least 1"),
    ("sampling.num_steps", -3, r"sampling.num_steps=-3 must be at least 1"),
    ("sampling.predictor", "euler", r"sampling.predictor='euler' is unknown; choose one of euler_maruyama"),
    ("sampling.eps", 2.0, r"sampling.eps=2.0 must lie in \(0, 1.0\)"),
    ("sampling.method", "sde", r"choose one of pc, ncsn, ddpm, ode"),
    ("training.importance_sampling", True, r"training.time_sampling='importance' draws times .* set both or none"),
    ("model.name", "unet", r"model.name='unet' is unknown; choose one of ncsnpp, ddpm, ncsn, "),
  ],
)
def test_values_that_cannot_work_are_explained(key, value, message):
  with pytest.raises(BadInput, match=message):
    build(changed(key, value))


def test_discrete_sub_vp_and_fourier_on_indices_are_refused():
  config = default_config()
  config.training.continuous = False
  config.training.sde = "subvpsde"
  with pytest.raises(BadInput, match="no discrete model for subvpsde"):
    resolve(config)
  config.training.sde = "vesde"
  assert resolve(config).model.embedding_type == "positional"
  config.model.embedding_type = "fourier"
  with pytest.raises(BadInput, match="embedding_type=positional"):
    resolve(config)


def test_a_misspelt_key_gets_the_list_of_keys():
  message = unknown_key(default_config(), "model.sigma_mex")
  assert "Did you mean model.sigma_max?" in message
  assert "Keys of model:" in message
  assert "Did you mean training?" in unknown_key(default_config(), "trainig.sde")
  with pytest.raises((AttributeError, KeyError)):
    default_config().model.sigma_mex = 3.0


def test_official_key_names_and_types_are_kept():
  """A config or override of the official code means the same here."""
  config = default_config()
  for key in (
    "training.sde", "training.continuous", "training.n_jitted_steps", "training.snapshot_freq_for_preemption",
    "training.likelihood_weighting", "sampling.snr", "sampling.n_steps_each", "sampling.noise_removal",
    "sampling.probability_flow", "eval.enable_bpd", "eval.bpd_dataset", "model.ema_rate", "model.ch_mult",
    "optim.warmup", "data.uniform_dequantization",
  ):  # fmt: skip
    get(config, key)
  config.model.sigma_max = 90.5
  config.data.centered = True


@pytest.mark.parametrize(
  ("key", "unread", "read"),
  [
    ("model.sigma_max", {"training.sde": "vpsde"}, {}),
    ("model.beta_max", {}, {"training.sde": "subvpsde"}),
    ("sampling.snr", {"training.sde": "vpsde"}, {}),
    ("sampling.snr", {"sampling.corrector": "none"}, {"sampling.method": "ncsn", "training.continuous": False}),
    ("sampling.num_steps", {"sampling.method": "ode"}, {"sampling.method": "heun"}),
    ("sampling.solver", {}, {"sampling.method": "ode"}),
    ("training.snr_gamma", {}, {"training.weighting": "min_snr"}),
    ("training.path_steps", {}, {"training.sde": str(ROOT / "configs/toy/double_well.py:double_well")}),
    ("eval.num_samples", {"eval.enable_bpd": True}, {"eval.enable_sampling": True}),
    ("eval.probe", {"eval.enable_bpd": False}, {"eval.enable_bpd": True}),
    ("guidance.eta", {}, {"guidance.task": "inpaint", "guidance.method": "ddrm"}),
    ("guidance.prior_variance", {"guidance.task": "class", "model.num_classes": 10}, {"guidance.task": "deblur"}),
  ],
)
def test_what_reads_a_key_follows_from_the_others(key, unread, read):
  def told(values):
    config = default_config()
    for name, value in values.items():
      section, _, name = name.partition(".")
      config[section][name] = value
    return why_unread(resolve(config), key)

  assert told(unread)
  assert told(read) is None


def test_the_keys_of_a_config_are_the_options_of_what_reads_them():
  """Every key is a field with a meaning, has a default that it accepts, and is read under some config."""
  config = default_config()
  there = {f"{section}.{name}" for section in config if section != "seed" for name in config[section]}
  assert there == set(keys())
  for readers in keys().values():
    for _, field, option in readers:
      assert option.doc, field.name
      check_value(field.name, field.default, option)


@pytest.mark.parametrize(
  ("key", "value"),
  [
    ("sampling.posterior_variance", True),
    ("eval.inception_path", "weights.pth"),
    ("data.path", "/missing"),
    ("eval.features", "folder"),
  ],
)
def test_what_nothing_reads_is_named_wherever_it_stands(key, value):
  """Keys that once could be set without effect and without a word."""
  assert why_unread(resolve(changed(key, value)), key)
