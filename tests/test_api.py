"""The public API: what `import score_sde` gives, trained models by `load`, and workdirs of earlier versions."""

import json
import pathlib
import subprocess
import sys
import zipfile

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

import score_sde as ss
from score_sde.run import checkpoints, guide, training
from score_sde.run import evaluate as evaluation
from score_sde.run.checkpoints.transfer import export_weights
from score_sde.run.loading import read_config

GOLDEN = pathlib.Path(__file__).parent / "golden"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A run of version 0.1: 200 steps of a small MLP on the digits under VP."""
  folder = tmp_path_factory.mktemp("version_0_1")
  with zipfile.ZipFile(GOLDEN / "workdir.zip") as archive:
    archive.extractall(folder)
  return folder


@pytest.fixture(scope="module")
def model(workdir):
  return ss.load(str(workdir))


def test_the_snippet_of_the_readme_runs():
  x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (16, 2), solver=ss.UniPC(), steps=20)
  assert x.shape == (16, 2)
  assert np.isfinite(x).all()


def test_every_public_name_is_there_and_documented():
  for name in ss.__all__:
    thing = getattr(ss, name)
    if name != "__version__":
      assert thing.__doc__, name
      assert not thing.__doc__.startswith(f"{name}("), f"{name} has no docstring of its own"


def test_import_brings_no_runner_with_it():
  heavy = ("matplotlib", "orbax", "grain", "absl", "tensorflow_datasets", "ml_collections", "score_sde.run", "sklearn")
  code = f"import sys, score_sde; print([m for m in sys.modules if m.startswith({heavy!r})])"
  done = subprocess.run(
    [sys.executable, "-c", code], env=runs.environment(), capture_output=True, text=True, check=True
  )
  # absl alone is a dependency of optax and of tensorstore's types; its flags and logging are not touched by us.
  assert [m for m in json.loads(done.stdout.replace("'", '"')) if not m.startswith("absl")] == []


# --- trained models ---------------------------------------------------------------------------------------------------


def test_a_loaded_model_samples_scores_encodes_and_denoises(model, workdir):
  images = model.sample(jax.random.key(0), 4)
  assert images.shape == (4, 8, 8, 1)
  assert (images >= 0).all()
  assert (images <= 1).all()
  logp = model.log_likelihood(jax.random.key(1), images, rtol=1e-3, atol=1e-3)
  assert logp.shape == (4,)
  latent = model.encode(images)
  np.testing.assert_allclose(model.decode(latent), images, atol=2e-3)
  assert model.denoise(latent, 0.5).shape == images.shape
  assert model.score(latent, jnp.full(4, 0.5)).shape == images.shape
  assert model.sde == ss.VP()
  with pytest.raises(ss.InvalidArgument, match="knows no classes"):
    model.sample(jax.random.key(0), 4, label=3)
  with pytest.raises(ss.InvalidArgument, match=r"x of \[4, 8, 8\] must be \(n, 8, 8, 1\)"):
    model.log_likelihood(jax.random.key(0), images[..., 0])
  with pytest.raises(ss.InvalidArgument, match="divide images by 16"):
    model.log_likelihood(jax.random.key(0), (16 * images).astype(jnp.uint8))


def test_loading_writes_and_prints_nothing(workdir, capfd):
  before = sorted((str(p), p.stat().st_mtime_ns) for p in workdir.rglob("*"))
  ss.load(str(workdir))
  assert sorted((str(p), p.stat().st_mtime_ns) for p in workdir.rglob("*")) == before
  assert capfd.readouterr() == ("", "")


def test_loading_is_silent_in_a_program_of_its_own(workdir):
  """There no test captures the logs: orbax's warnings would reach the terminal."""
  program = f"import score_sde as ss; ss.load({str(workdir)!r})"
  done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
  assert done.stdout + done.stderr == ""


@pytest.mark.thorough
def test_the_density_of_data_counts_the_scaling(model):
  """log p on [0, 1] is that on [-1, 1] plus log 2 per dimension, and bits/dim follow from it."""
  images = model.sample(jax.random.key(0), 2)
  exact = {"rtol": 1e-4, "atol": 1e-4, "probe": "exact"}
  on_data = model.log_likelihood(jax.random.key(1), images, **exact)
  on_network = ss.log_likelihood(jax.random.key(1), model.sde, model.score, 2 * images - 1, **exact)
  np.testing.assert_allclose(on_data, on_network + 64 * np.log(2), rtol=1e-3)


@pytest.mark.parametrize("method", ["pigdm", pytest.param("ddrm", marks=pytest.mark.slow), "replacement"])
def test_what_is_known_of_an_image_stays(model, method):
  half = jnp.ones((8, 8, 1)).at[:, 4:].set(0)
  y = jax.random.randint(jax.random.key(1), (8, 8, 1), 0, 256) / 255  # not all of them survive 2 y - 1 and back
  x_T = jax.random.normal(jax.random.key(2), (3, 8, 8, 1))
  images = model.sample(
    jax.random.key(0), 3, measurement=ss.guidance.inpaint(half, y), method=method, steps=12, x_T=x_T
  )
  np.testing.assert_array_equal(images[:, :, :4], jnp.broadcast_to(y[:, :4], (3, 8, 4, 1)))
  assert np.std(images[:, :, 4:]) > 0.01
  with pytest.raises(ss.InvalidArgument, match="Did you mean 'pigdm'"):
    model.sample(jax.random.key(0), 3, measurement=ss.guidance.inpaint(half, y), method="pidgm")


def test_other_parameters_do_not_compile_anew(model):
  import dataclasses

  from score_sde import model as module

  twice = dataclasses.replace(model, params=jax.tree.map(lambda p: 2 * p, model.params))
  model.sample(jax.random.key(0), 4)
  size = module._sample._cache_size()
  twice.sample(jax.random.key(0), 4)
  assert module._sample._cache_size() == size


# --- files of earlier versions ----------------------------------------------------------------------------------------


def config_of(workdir) -> ConfigDict:
  return read_config(str(workdir))


@pytest.mark.thorough
def test_an_older_workdir_is_sampled_measured_and_resumed(workdir, tmp_path):
  """The same samples and bits/dim as when it was written, by the version that wrote it."""
  import shutil

  folder = tmp_path / "run"
  shutil.copytree(workdir, folder)
  old = json.loads((folder / "report.json").read_text())["checkpoints"][0]
  drawn = np.load(folder / "samples.npz")["samples"].astype(int)
  config = config_of(folder)
  guide.sample(config, str(folder))
  again = np.load(folder / "samples.npz")["samples"].astype(int)
  assert np.abs(again - drawn).max() <= 1
  evaluation.evaluate(config, str(folder))
  new = json.loads((folder / "report.json").read_text())["checkpoints"][0]
  assert new["bits_per_dim"] == pytest.approx(old["bits_per_dim"], rel=1e-4)
  assert new["loss"] == pytest.approx(old["loss"], rel=1e-5)
  config.training.n_iters, config.training.final_report = 220, False
  training.train(config, str(folder))
  assert checkpoints.exists(str(folder))
  assert (folder / "checkpoints" / "220").is_dir()


def test_an_exported_file_is_a_model_by_itself(workdir, model, tmp_path):
  file = tmp_path / "digits.safetensors"
  export_weights(config_of(workdir), str(workdir), str(file))
  loaded = ss.load(str(file))
  np.testing.assert_array_equal(loaded.sample(jax.random.key(0), 2), model.sample(jax.random.key(0), 2))


def test_code_that_a_workdir_names_is_not_run_unless_allowed(workdir, tmp_path):
  import shutil

  folder = tmp_path / "run"
  shutil.copytree(workdir, folder)
  (tmp_path / "mine.py").write_text(
    f"import score_sde\nopen({str(tmp_path / 'ran')!r}, 'w').close()\nsde = lambda model: score_sde.VP()\n"
  )
  values = json.loads((folder / "config.json").read_text())
  values["training"]["sde"] = f"{tmp_path}/mine.py:sde"
  (folder / "config.json").write_text(json.dumps(values))
  with pytest.raises(ss.ScoreSDEError, match=r"names code that would be run: .*mine.py:sde.*allow_code=True"):
    ss.load(str(folder))
  assert not (tmp_path / "ran").exists()
  with pytest.raises(ss.ScoreSDEError, match="holds checkpoints of another model"):  # its signature names the SDE
    ss.load(str(folder), allow_code=True)


@pytest.mark.parametrize(
  ("make", "message"),
  [
    (lambda p: None, "holds no trained model"),
    (lambda p: (p / "config.json").write_text("{"), "holds no trained model"),
  ],
)
def test_what_cannot_be_loaded_is_named(tmp_path, make, message):
  make(tmp_path)
  with pytest.raises(ss.ScoreSDEError, match=message):
    ss.load(str(tmp_path))
  with pytest.raises(ss.ScoreSDEError, match="does not exist"):
    ss.load(str(tmp_path / "nothing.safetensors"))
  (tmp_path / "broken.safetensors").write_bytes(b"no")
  with pytest.raises(ss.ScoreSDEError, match="is no safetensors file"):
    ss.load(str(tmp_path / "broken.safetensors"))
