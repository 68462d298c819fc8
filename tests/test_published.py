"""Published weights: every format, by the official outputs; and files that are none of them."""

import collections
import json
import math
import pickle
import re
import struct
import subprocess
import sys
import zipfile

import golden_cases
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
import safetensors.numpy
from PIL import Image
from runs import tiny

from configs.fashion_mnist import ddpmpp
from score_sde.models import DDPM, NCSNpp
from score_sde.parameterization import PREDICTIONS
from score_sde.run import checkpoints, devices, pipeline, train_step
from score_sde.run.checkpoints import diffusers, published, torch_file
from score_sde.run.checkpoints import transfer as tool
from score_sde.run.config import BadInput, default_config, resolve, signature
from score_sde.run.experiment import build

CHECKPOINTS = golden_cases.FOLDER / "checkpoints"


def forward(network, flat, case):
  x, labels = jnp.asarray(case["x"]), jnp.asarray(case["labels"])
  return devices.run_once(network.apply, golden_cases.variables(flat), x, labels)


@pytest.mark.parametrize("name", golden_cases.parameters("torch_*.npz"))
def test_pytorch_networks_agree(name):
  case = golden_cases.load(name)
  network, weights = golden_cases.network(golden_cases.manifest(case)), golden_cases.weights(case)
  expected = golden_cases.shapes(network, case["x"], case["labels"])
  if "begin_conv.weight" in weights:
    flat = published.from_ncsn_pytorch(weights)
  else:
    flat = published.from_score_sde_pytorch(weights, expected)
  published.check(flat, expected, name)
  assert golden_cases.relative_error(forward(network, flat, case), case["y"]) < 1e-4


DIFFUSERS = {
  "diffusers_ddpm": DDPM(
    nf=32, ch_mult=(1, 2), num_res_blocks=1, attn_resolutions=(8,), centered=True, attn_every_block=True
  ),
  "diffusers_ncsnpp": NCSNpp(
    nf=128, ch_mult=(1, 1, 2), num_res_blocks=1, attn_resolutions=(8,), centered=True, head_dim=8,
    progressive="output_skip", progressive_input="input_skip",
  ),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFUSERS)
def test_diffusers_networks_agree(name):
  case = golden_cases.load(name)
  expected = golden_cases.shapes(DIFFUSERS[name], case["x"], case["labels"])
  flat = diffusers.from_diffusers(golden_cases.weights(case), expected)
  published.check(flat, expected, name)
  assert golden_cases.relative_error(forward(DIFFUSERS[name], flat, case), case["y"]) < 1e-4


def config_of(manifest):
  """Our config with the values of a reference config."""
  config = default_config()
  for section, values in manifest["config"].items():
    for key, value in values.items():
      if key in config[section]:
        config[section][key] = tuple(value) if isinstance(value, list) else value
  config.data.dataset = "digits"
  return config


def imported(tmp_path, source, config):
  tool.import_weights(config, str(tmp_path / "run"), str(source))
  experiment = build(config)
  with checkpoints.manager(str(tmp_path / "run")) as opened:
    return experiment, train_step.restore_state(opened, experiment, str(tmp_path / "run"))


FILES = sorted(p.name for p in CHECKPOINTS.glob("*.[mp]*") if p.suffix != ".npz")
# PyTorch's checkpoints take longer; test_torch_file.py has fast tests of their format.
FILES_BY_TIME = [pytest.param(f, marks=[pytest.mark.thorough] if f.endswith(".pth") else []) for f in FILES]


@pytest.mark.parametrize("file", FILES_BY_TIME)
def test_checkpoints_of_the_official_code_are_imported(tmp_path, file):
  """Both sets of weights, by the outputs they gave; the run goes on with Adam's moments."""
  with np.load(CHECKPOINTS / file.replace(".pth", ".npz").replace(".msgpack", ".npz")) as case:
    case = {k: case[k] for k in case}
  experiment, state = imported(tmp_path, CHECKPOINTS / file, config_of(golden_cases.manifest(case)))
  for params, y in ((state.params, case["y_model"]), (state.ema_params, case["y_ema"])):
    x, labels = jnp.asarray(case["x"]), jnp.asarray(case["labels"])
    got = devices.run_once(experiment.network.apply, {"params": params}, x, labels)
    assert golden_cases.relative_error(got, y) < 1e-4
  assert float(np.max(np.abs(case["y_model"] - case["y_ema"]))) > 1e-3
  moments = state.opt_state[1]
  assert max(float(jnp.max(jnp.abs(v))) for v in [m["Conv_0"]["kernel"] for m in (moments.mu, moments.nu)]) > 0


@pytest.mark.thorough
def test_the_command_imports_exports_and_imports_again(tmp_path):
  """In a process: a .pth in, safetensors out, and the same weights in again; sampling works from them."""
  case = golden_cases.load("checkpoints/score_sde_pytorch_ve_ncsnpp_continuous")
  config = config_of(golden_cases.manifest(case))
  source = CHECKPOINTS / "score_sde_pytorch_ve_ncsnpp_continuous.pth"
  tool.import_weights(config, str(tmp_path / "a"), str(source))
  tool.export_weights(config, str(tmp_path / "a"), str(tmp_path / "w.safetensors"))
  tool.import_weights(config, str(tmp_path / "b"), str(tmp_path / "w.safetensors"))
  experiment, states = build(config), []
  for name in ("a", "b"):
    with checkpoints.manager(str(tmp_path / name)) as opened:
      states.append(train_step.restore_state(opened, experiment, str(tmp_path / name)))
  one, two = ((s.params, s.ema_params) for s in states)
  assert all(np.array_equal(a, b) for a, b in zip(*map(_leaves, (one, two)), strict=True))
  with pytest.raises(BadInput, match="already holds checkpoints"):
    tool.import_weights(config, str(tmp_path / "a"), str(source))


@pytest.mark.thorough
def test_the_shipped_garments_are_of_their_config(tmp_path):
  source = runs.ROOT / "configs/fashion_mnist/ddpmpp_vpsde.safetensors"
  assert source.stat().st_size < 4e6
  config = ddpmpp.get_config()
  tool.import_weights(config, str(tmp_path / "garments"), str(source))
  with checkpoints.manager(str(tmp_path / "garments")) as opened:
    state = train_step.restore_state(opened, build(config), str(tmp_path / "garments"))
  assert int(state.step) == 2400
  assert all(np.array_equal(a, b) for a, b in zip(_leaves(state.params), _leaves(state.ema_params), strict=True))
  tool.export_weights(config, str(tmp_path / "garments"), str(tmp_path / "again.safetensors"), ema_only=True)
  one, two = (_contents(path) for path in (source, tmp_path / "again.safetensors"))
  # Options that are newer than the shipped file have their defaults there.
  assert one[0]["step"] == two[0]["step"]
  assert json.loads(one[0]["signature"]).items() <= json.loads(two[0]["signature"]).items()
  written, shipped = json.loads(two[0]["config"]), json.loads(source.with_suffix(".json").read_text())
  for section, values in shipped.items():  # for score_sde.load
    same = {k: written[section][k] for k in values} if isinstance(values, dict) else written[section]
    assert same == values
  assert one[1].keys() == two[1].keys()
  assert all(np.array_equal(a, two[1][k]) for k, a in one[1].items())


def _contents(path):
  """Metadata and arrays of a safetensors file, which its writer orders as it likes."""
  with safetensors.safe_open(path, "np") as file:
    return file.metadata(), safetensors.numpy.load_file(path)


def _leaves(tree):
  import jax

  return jax.tree.leaves(tree)


def test_the_command_line_names_what_is_missing(tmp_path):
  import subprocess
  import sys

  tool = [sys.executable, "-m", "score_sde", "import", "nowhere.pth"]
  command = [*tool, f"--workdir={tmp_path / 'run'}"]
  done = subprocess.run(
    [*command, "--config=configs/quickstart.py"], cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True,
    check=False,
  )  # fmt: skip
  assert done.returncode == 2
  assert done.stderr.startswith("python -m score_sde import: 'nowhere.pth' does not exist")
  assert len(done.stderr.splitlines()) == 1


def test_a_checkpoint_of_another_architecture_gets_the_list_of_what_differs(tmp_path):
  case = golden_cases.load("checkpoints/score_sde_pytorch_ve_ncsnpp_continuous")
  config = config_of(golden_cases.manifest(case))
  config.model.nf = 16
  with pytest.raises(BadInput, match=r"arrays differ\. .*: \(.*\) in the checkpoint, \(.*\) in the network") as error:
    tool.import_weights(config, str(tmp_path / "run"), str(CHECKPOINTS / "score_sde_pytorch_ve_ncsnpp_continuous.pth"))
  assert "and" in str(error.value)
  assert not checkpoints.exists(str(tmp_path / "run"))


class Call:
  """Pickles into a call of os.system."""

  def __init__(self, command):
    self.command = command

  def __reduce__(self):
    import os

    return os.system, (self.command,)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_a_pickle_that_would_run_code_is_refused_and_runs_nothing(tmp_path, form):
  path, proof = tmp_path / "hostile.pth", tmp_path / "ran"
  content = pickle.dumps({"model": Call(f"touch {proof}")}, protocol=2)
  if form == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      archive.writestr("archive/data.pkl", content)
  else:
    start = [torch_file._MAGIC, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in start) + content)
  with pytest.raises(BadInput, match=r"refused as a PyTorch checkpoint: it asks for (posix|os)\.system"):
    tool.import_weights(tiny(), str(tmp_path / "run"), str(path))
  assert not proof.exists()


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 cut off", b"\x80\x02}q\x00.", b"\x93\x01\x02", b"hello"])
def test_files_that_are_no_checkpoint_are_named(tmp_path, content):
  path = tmp_path / "checkpoint_1"
  path.write_bytes(content)
  with pytest.raises(BadInput, match=r"checkpoint_1'"):
    tool.import_weights(tiny(), str(tmp_path / "run"), str(path))


class Storage:
  """What PyTorch's pickles call a storage, for a pickler that writes as PyTorch before 1.6 did."""

  def __init__(self, key, values):
    self.key, self.values = key, values


class StreamPickler(pickle._Pickler):
  def persistent_id(self, value):
    if isinstance(value, Storage):
      return "storage", Global("torch", "FloatStorage"), value.key, "cpu", value.values.size, None
    return None

  def save_global(self, value, name=None):
    self.write(pickle.GLOBAL + f"{value.module}\n{value.name}\n".encode())
    self.memoize(value)

  def save(self, value, *args, **kwargs):
    if isinstance(value, Global):
      self.save_global(value)
    elif isinstance(value, np.ndarray):
      storage = Storage(str(len(self.storages)), value)
      self.storages.append(storage)
      strides = tuple(s // 4 for s in value.strides)
      self.save(Global("torch._utils", "_rebuild_tensor_v2"))
      arguments = (storage, 0, value.shape, strides, False, collections.OrderedDict())
      self.save(arguments)
      self.write(pickle.REDUCE)
    elif isinstance(value, collections.OrderedDict):
      self.save(Global("collections", "OrderedDict"))
      self.save(())
      self.write(pickle.REDUCE)
      self._batch_setitems(value.items(), *([value] if self._batch_setitems.__code__.co_argcount > 2 else []))
    else:
      super().save(value, *args, **kwargs)


class Global:
  def __init__(self, module, name):
    self.module, self.name = module, name


def write_stream(path, content):
  """A file as torch.save wrote before PyTorch 1.6, without PyTorch."""
  with path.open("wb") as file:
    for part in (torch_file._MAGIC, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}}):
      pickle.dump(part, file, protocol=2)
    pickler = StreamPickler(file, protocol=2)
    pickler.storages = []
    pickler.dump(content)
    pickle.dump([s.key for s in pickler.storages], file, protocol=2)
    for storage in pickler.storages:
      file.write(struct.pack("<q", storage.values.size) + storage.values.tobytes())
  return path


@pytest.mark.parametrize(
  "name",
  [
    pytest.param("torch_ncsn_32", marks=pytest.mark.slow),
    pytest.param("torch_ncsnv2", marks=pytest.mark.thorough),
  ],
)
def test_ncsn_checkpoints_in_the_old_format_are_imported(tmp_path, name):
  """[model, optimizer, epoch, step, average], with DataParallel's prefix, as the NCSN repositories saved them."""
  case = golden_cases.load(name)
  weights = golden_cases.weights(case)
  state = collections.OrderedDict((f"module.{k}", v) for k, v in weights.items())
  average = {f"module.{k}": 2 * v for k, v in weights.items()}
  values = golden_cases.manifest(case)["config"]["model"]
  config = default_config()
  config.training.continuous = False
  config.data.dataset = "digits"
  config.model.name = "ncsn" if name == "torch_ncsn_32" else "ncsnv2_64"
  config.model.reference = "jax" if name == "torch_ncsn_32" else "pytorch"
  config.model.nonlinearity = "elu"
  config.model.nf, config.model.num_scales = values["ngf"], values["num_classes"]
  states = [state, {"state": {}}] if name == "torch_ncsn_32" else [state, {"state": {}}, 3, 700, average]
  write_stream(tmp_path / "checkpoint.pth", states)
  experiment, restored = imported(tmp_path, tmp_path / "checkpoint.pth", config)
  x, labels = jnp.asarray(case["x"]), jnp.asarray(case["labels"])
  got = devices.run_once(experiment.network.apply, {"params": restored.params}, x, labels)
  assert golden_cases.relative_error(got, case["y"]) < 1e-4
  factor = 1.0 if name == "torch_ncsn_32" else 2.0
  np.testing.assert_array_equal(restored.ema_params["Conv_0"]["bias"], factor * restored.params["Conv_0"]["bias"])
  assert int(restored.step) == (0 if name == "torch_ncsn_32" else 700)


@pytest.mark.thorough
@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_a_diffusers_folder_is_imported_and_its_settings_are_compared(tmp_path, suffix):
  case = golden_cases.load("diffusers_ddpm")
  folder = tmp_path / "model"
  folder.mkdir()
  (folder / "config.json").write_text(json.dumps(golden_cases.manifest(case)["config"]))
  weights = {k: np.ascontiguousarray(v) for k, v in golden_cases.weights(case).items()}
  if suffix == "bin":
    write_stream(folder / "diffusion_pytorch_model.bin", weights)
  else:
    safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
  config = default_config()
  config.training.sde, config.training.continuous, config.data.dataset = "vpsde", False, "digits"
  config.data.image_size, config.model.name, config.model.nf = 16, "ddpm", 32
  config.model.ch_mult, config.model.num_res_blocks, config.model.attn_resolutions = (1, 2), 1, (8,)
  with pytest.raises(BadInput, match=r"Add --config\.model\.attn_every_block=True, or give its own config"):
    tool.import_weights(config, str(tmp_path / "run"), str(folder))
  config.model.attn_every_block = True
  experiment, state = imported(tmp_path, folder, config)
  x, labels = jnp.asarray(case["x"]), jnp.asarray(case["labels"])
  got = devices.run_once(experiment.network.apply, {"params": state.params}, x, labels)
  assert golden_cases.relative_error(got, case["y"]) < 1e-4
  assert signature(experiment.config)["model.attn_every_block"]


def write_unet(folder, case, **changed):
  """Writes a UNet2DModel of diffusers with the weights of a golden case, and other settings."""
  folder.mkdir(parents=True)
  (folder / "config.json").write_text(json.dumps(golden_cases.manifest(case)["config"] | changed))
  weights = {k: np.ascontiguousarray(v) for k, v in golden_cases.weights(case).items()}
  safetensors.numpy.save_file(weights, folder / "diffusion_pytorch_model.safetensors")
  return folder


def config_of_unet(folder):
  """The config of a diffusers folder, as the flags that the importer asks for would set it."""
  config = default_config()
  config.training.sde, config.training.continuous, config.data.dataset = "vpsde", False, "digits"
  for key, value in diffusers.settings_of(folder).items():
    section, name = key.split(".")
    config[section][name] = value
  return config


# Each takes a while to compile: the fast suite has the one that differs most, and classes.
@pytest.mark.thorough
@pytest.mark.parametrize(
  "name",
  ["default", "classes"]
  + [pytest.param(n, marks=pytest.mark.slow) for n in ("act", "eps", "flip", "groups", "heads", "padding", "shift")],
)
def test_every_setting_of_a_diffusers_network_is_honoured(tmp_path, name):
  case = golden_cases.load(f"diffusers_variants/{name}")
  folder = write_unet(tmp_path / "model", case)
  experiment, state = imported(tmp_path, folder, config_of_unet(folder))
  y = golden_cases.manifest(case).get("class_labels")
  y = None if y is None else jnp.asarray(y)
  x, t = jnp.asarray(case["x"]), jnp.asarray(case["t"])
  got = devices.run_once(lambda p: experiment.network.apply({"params": p}, x, t, None, y), state.params)
  assert golden_cases.relative_error(got, case["y"]) < 1e-4


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"time_embedding_type": "fourier"}, "time_embedding_type='fourier'; our DDPM only has 'positional'"),
    ({"resnet_time_scale_shift": "scale_shift"}, "resnet_time_scale_shift='scale_shift'"),
    ({"act_fn": "quick_gelu"}, "act_fn='quick_gelu'"),
    ({"downsample_type": "resnet"}, "downsample_type='resnet'"),
    ({"mid_block_type": None}, "mid_block_type=None"),
    ({"class_embed_type": "timestep", "num_class_embeds": 10}, "class_embed_type='timestep'"),
    ({"up_block_types": ["UpBlock2D", "UpBlock2D"]}, "which do not mirror"),
    ({"out_channels": 6}, "out_channels=6 for in_channels=3"),
    ({"dual_cross_attention": True}, "keys that this importer does not know: dual_cross_attention"),
  ],
)
def test_other_settings_of_a_diffusers_network_are_refused_by_name(tmp_path, changed, message):
  folder = write_unet(tmp_path / "model", golden_cases.load("diffusers_ddpm"), **changed)
  with pytest.raises(BadInput, match=re.escape(message)):
    diffusers.settings_of(folder)


def write_pipeline(folder, case, **scheduler):
  """Writes a pipeline of diffusers: a network of a golden case, and a scheduler with these settings."""
  write_unet(folder / "unet", case)
  (folder / "scheduler").mkdir()
  (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
  (folder / "model_index.json").write_text(json.dumps({"_class_name": "DDPMPipeline"}))
  return folder


def betas_of_diffusers(schedule, steps, start, end):
  """The betas by the definitions of diffusers' schedulers."""
  if schedule == "linear":
    return np.linspace(start, end, steps)
  bar = lambda t: math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
  return np.array([min(1 - bar((i + 1) / steps) / bar(i / steps), 0.999) for i in range(steps)])


@pytest.mark.parametrize("schedule", ["linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize(("prediction", "ours"), [("epsilon", "noise"), ("v_prediction", "velocity")])
def test_a_pipeline_gives_its_own_config_with_the_noise_levels_of_its_scheduler(tmp_path, schedule, prediction, ours):
  folder = write_pipeline(
    tmp_path / "pipeline", golden_cases.load("diffusers_ddpm"), _class_name="DDIMScheduler", beta_schedule=schedule,
    beta_start=0.0002, beta_end=0.03, num_train_timesteps=500, prediction_type=prediction,
  )  # fmt: skip
  model = build(pipeline.get_config(str(folder))).score_model
  assert (model.parameterization, model.num_scales) == (ours, 500)
  alpha, sigma = model.sde.levels(500)
  bar = np.cumprod(1 - betas_of_diffusers(schedule, 500, 0.0002, 0.03))
  np.testing.assert_allclose(alpha**2, bar, rtol=1e-9)
  np.testing.assert_allclose(sigma**2, 1 - bar, rtol=1e-7)
  x0, z = jnp.full((1, 2), 0.7), jnp.full((1, 2), -0.4)
  a, s = alpha[100], sigma[100]
  told = {"noise": z, "velocity": a * z - s * x0}[ours]  # what a network of that kind predicts
  np.testing.assert_allclose(PREDICTIONS[ours][1](told, a * x0 + s * z, a, s, 0.5), x0, rtol=1e-5)


def test_a_ve_pipeline_has_its_sigmas(tmp_path):
  folder = write_pipeline(
    tmp_path / "pipeline", golden_cases.load("diffusers_ncsnpp"), _class_name="ScoreSdeVeScheduler", sigma_min=0.02,
    sigma_max=50.0, num_train_timesteps=300,
  )  # fmt: skip
  config = resolve(pipeline.get_config(str(folder)))
  assert (config.training.sde, config.training.continuous) == ("vesde", True)
  assert (config.model.sigma_min, config.model.sigma_max) == (0.02, 50.0)


@pytest.mark.parametrize(
  ("changed", "message"),
  [
    ({"beta_schedule": "scaled_linear"}, "beta_schedule='scaled_linear'"),
    ({"prediction_type": "flow"}, "prediction_type='flow'"),
    ({"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr=True"),
    ({"trained_betas": [0.1, 0.2]}, "trained_betas=[0.1, 0.2]"),
    ({"predict_epsilon": False}, "predict_epsilon=False"),
    ({"_class_name": "EDMEulerScheduler"}, "EDMEulerScheduler, whose noise levels are not known"),
    ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, "FlowMatchEulerDiscreteScheduler"),
  ],
)
def test_other_schedulers_are_refused_by_name(tmp_path, changed, message):
  folder = write_pipeline(tmp_path / "pipeline", golden_cases.load("diffusers_ddpm"), **changed)
  with pytest.raises(BadInput, match=re.escape(message)):
    pipeline.get_config(str(folder))


def test_a_config_with_other_noise_levels_than_the_pipeline_is_refused(tmp_path):
  folder = write_pipeline(tmp_path / "pipeline", golden_cases.load("diffusers_ddpm"), beta_schedule="squaredcos_cap_v2")
  with pytest.raises(BadInput, match=re.escape("--config.training.sde=cosine")):
    tool.import_weights(config_of_unet(folder), str(tmp_path / "run"), str(folder))


@pytest.mark.slow
def test_a_pipeline_is_imported_and_sampled_without_a_config(tmp_path):
  folder = write_pipeline(tmp_path / "pipeline", golden_cases.load("diffusers_ddpm"), beta_schedule="squaredcos_cap_v2")
  run = lambda *a: subprocess.run(
    [sys.executable, "-m", "score_sde", *a], cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True,
    check=False,
  )  # fmt: skip
  done = run("import", str(folder), f"--workdir={tmp_path / 'run'}")
  assert done.returncode == 0, done.stderr
  done = run(
    "sample", f"--workdir={tmp_path / 'run'}", "--config.sampling.method=ddim", "--config.sampling.num_steps=3",
    "--config.sampling.num_samples=2",
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  with np.load(tmp_path / "run" / "samples.npz") as file:
    assert file["samples"].shape == (2, 16, 16, 3)


def test_unet_ema_beside_unet_is_the_average(tmp_path):
  case = golden_cases.load("diffusers_ddpm")
  folder = write_unet(tmp_path / "model" / "unet", case)
  average = write_unet(tmp_path / "model" / "unet_ema", case)
  file = average / "diffusion_pytorch_model.safetensors"
  doubled = {k: 2 * v for k, v in safetensors.numpy.load_file(file).items()}
  safetensors.numpy.save_file(doubled, file)
  _, state = imported(tmp_path, folder.parent, config_of_unet(folder.parent))
  jax.tree.map(lambda p, e: np.testing.assert_array_equal(2 * p, e), state.params, state.ema_params)


def test_a_hub_name_without_a_network_is_explained(tmp_path, monkeypatch):
  monkeypatch.setenv("HF_HUB_OFFLINE", "1")
  monkeypatch.setenv("HF_HOME", str(tmp_path))
  with pytest.raises(BadInput, match=r"google/ddpm-cifar10-32' (cannot be downloaded|is no file)"):
    tool.import_weights(tiny(), str(tmp_path / "run"), "google/ddpm-cifar10-32")


@pytest.mark.slow
def test_an_imported_checkpoint_is_evaluated_with_the_snapshots_of_its_config_missing(tmp_path, caplog):
  """As after `import` with a paper's config, which names the snapshots 9 to 26."""
  from score_sde.run import evaluate

  case = golden_cases.load("diffusers_ddpm")
  folder = write_unet(tmp_path / "model", case)
  config = config_of_unet(folder)
  config.eval.begin_ckpt, config.eval.end_ckpt, config.eval.enable_bpd = 9, 26, False
  config.eval.batch_size, config.eval.num_examples = 8, 8
  config.data.dataset, config.data.path = "folder", str(tmp_path / "images")
  (tmp_path / "images").mkdir()
  for i in range(100):
    Image.fromarray(np.full((16, 16, 3), i, np.uint8)).save(tmp_path / "images" / f"{i}.png")
  tool.import_weights(config, str(tmp_path / "run"), str(folder))
  evaluate.evaluate(config, str(tmp_path / "run"))
  assert "none of the snapshots 9 to 26, only step 0" in caplog.text
  report = json.loads((tmp_path / "run" / "report.json").read_text())
  assert [row["step"] for row in report["checkpoints"]] == [0]
