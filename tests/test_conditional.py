"""Guidance from the command line: every task on a model of digits trained for a moment."""

import json
import pathlib

import numpy as np
import pytest
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs import quickstart
from configs.classifier import digits
from score_sde.run import data, evaluate, features, guide
from score_sde.run.config import CONSTRAINTS, SCORE_METHODS, BadInput, resolve
from score_sde.run.report import curves
from score_sde.run.training import train

pytestmark = pytest.mark.slow


def small(config, **guidance):
  config.training.update({
    "batch_size": 16, "n_iters": 20, "n_jitted_steps": 1, "log_freq": 10, "eval_freq": 10, "snapshot_freq": 20,
    "snapshot_freq_for_preemption": 20, "snapshot_sampling": False, "final_report": False,
  })  # fmt: skip
  if config.model.name == "mlp":
    config.model.nf, config.model.num_res_blocks = 32, 1
  config.sampling.update({"method": "dpm_solver_sde", "grid": "log_snr", "num_steps": 4, "num_samples": 20})
  config.eval.update({"batch_size": 20, "num_examples": 20})
  config.guidance.update({"num_inputs": 2, "samples_per_input": 2, "length": 3, "factor": 2} | guidance)
  return config


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """Workdirs of a model, of a class-conditional one and of a classifier."""
  root = tmp_path_factory.mktemp("runs")
  conditional_model = small(quickstart.get_config())
  conditional_model.model.num_classes = 10
  configs = {
    "model": small(quickstart.get_config()), "classes": conditional_model, "classifier": small(digits.get_config())
  }  # fmt: skip
  for name, config in configs.items():
    train(config, str(root / name))
  return {name: str(root / name) for name in configs}


def draw(workdir, **guidance):
  guide.sample(small(quickstart.get_config(), **guidance), workdir)
  return np.load(f"{workdir}/guided.npz")


@pytest.mark.longest
def test_measurements_of_every_kind_get_posterior_samples(runs):
  for task in ("super_resolution", "fourier", "phase_retrieval"):
    out = draw(runs["model"], task=task)
    assert out["samples"].shape == (2, 2, 8, 8, 1)
    assert (out["samples"][:, 0] != out["samples"][:, 1]).any()
    with Image.open(f"{runs['model']}/guided/test_0.png") as picture:
      assert picture.width > 500


LIKE_OTHERS = ("tmpd", "dps", "projection")


@pytest.mark.parametrize(
  "method",
  [pytest.param(m, marks=pytest.mark.longest) if m in LIKE_OTHERS else m for m in SCORE_METHODS + CONSTRAINTS],
)
def test_known_pixels_are_the_input_s_exactly(runs, method):
  out = draw(runs["model"], task="inpaint", mask="left", method=method)
  known = np.broadcast_to(out["inputs"][:, None, :, 4:], out["samples"][:, :, :, 4:].shape)
  np.testing.assert_array_equal(out["samples"][:, :, :, 4:], known)
  noisy = draw(runs["model"], task="inpaint", mask="left", method=method, noise=0.1)
  assert (noisy["samples"][:, :, :, 4:] != known).any()


def test_editing_starts_from_the_input_and_interpolation_ends_at_both(runs, tmp_path):
  images = data.load(quickstart.get_config(), "test").gather(np.arange(2))["image"]
  for i, image in enumerate(images):
    Image.fromarray((image[..., 0] * 255 // 16).astype(np.uint8)).save(tmp_path / f"digit_{i}.png")
  out = draw(runs["model"], task="edit", t0=0.01, input=str(tmp_path))
  assert np.abs(out["samples"][:, 0].astype(int) - out["inputs"]).mean() < 15  # of 255: little noise, little change
  out = draw(runs["model"], task="interpolate", input=str(tmp_path))
  assert out["samples"].shape == (1, guide.BETWEEN, 8, 8, 1)
  ends = np.abs(out["samples"][0, [0, -1]].astype(int) - out["inputs"])
  assert ends.max() <= 3


def test_classes_guide_samples_and_likelihoods(runs, capsys):
  for workdir, guidance in ((runs["model"], {"classifier": runs["classifier"]}), (runs["classes"], {})):
    drawn, strong = [], 100.0 if guidance else 2000.0  # the networks are hardly trained
    for scale in (1.0, strong):
      config = small(quickstart.get_config(), task="class", scale=scale, label=3, **guidance)
      config.model.num_classes = 0 if guidance else 10
      guide.sample(config, workdir)
      drawn.append(np.load(f"{workdir}/samples.npz")["samples"])
    assert drawn[0].shape == (20, 8, 8, 1)
    assert (drawn[0] != drawn[1]).any()  # from the same noise
  config.eval.update({"enable_loss": False, "rtol": 1e-2, "atol": 1e-2})
  guide.evaluate(config, runs["classes"])
  assert "bits/dim" in capsys.readouterr().out
  guide.evaluate(small(digits.get_config()), runs["classifier"])
  row = json.loads((pathlib.Path(runs["classifier"]) / "report.json").read_text())["checkpoints"][0]
  assert 0 <= row["accuracy"] <= 1
  assert len(row["accuracies"]) == 10


def test_samples_are_measured_in_features_of_a_classifier(runs, tmp_path, capsys):
  """FID, KID, precision and recall land in the report; statistics in a file give the same as the data itself."""
  config = small(quickstart.get_config())
  config.eval.update({
    "enable_sampling": True, "enable_loss": False, "enable_bpd": False, "num_samples": 70, "batch_size": 50,
    "features": runs["classifier"],
  })  # fmt: skip
  guide.evaluate(config, runs["model"])
  row = json.loads((pathlib.Path(runs["model"]) / "report.json").read_text())["checkpoints"][0]
  assert row["samples"] == 70
  assert row["fid"] > 0
  assert 0 <= row["precision"] <= 1
  features.stats(config, str(tmp_path / "stats.npz"))
  config.eval.reference = str(tmp_path / "stats.npz")
  guide.evaluate(config, runs["model"])
  again = json.loads((pathlib.Path(runs["model"]) / "report.json").read_text())["checkpoints"][0]
  assert again["fid"] == pytest.approx(row["fid"], rel=1e-4)
  assert again["kid"] == pytest.approx(row["kid"], rel=1e-4)
  assert "fid" in capsys.readouterr().out
  extractor, reference = evaluate.compared_with(resolve(config), 70)
  source = data.load(config, "train")
  images = np.round(source.gather(np.arange(len(source)))["image"] * (255 / 16)).astype(np.uint8)
  assert evaluate.measure(resolve(config), [extractor(images)], extractor, reference)["fid"] < 1e-3
  config.data.image_size = 16
  with pytest.raises(BadInput, match=r"is a classifier of images with data\.image_size=8, and these have 16"):
    features.make(config)


def test_what_does_not_fit_is_refused(runs, tmp_path):
  guided = {"task": "class", "classifier": runs["classifier"]}
  config = small(quickstart.get_config(), **guided, label=10)
  with pytest.raises(BadInput, match=r"guidance.label=10 is no class: the classifier .* has 10, from 0"):
    guide.sample(config, runs["model"])
  config = small(quickstart.get_config(), **guided)
  config.training.sde = "vesde"
  with pytest.raises(BadInput, match=r"does not fit the model: training\.sde is 'vpsde', the model's 'vesde'"):
    guide.sample(config, runs["model"])
  config = small(quickstart.get_config(), task="class", classifier=runs["model"])
  with pytest.raises(BadInput, match="was trained as a model of scores"):
    guide.sample(config, runs["model"])
  with pytest.raises(BadInput, match="draws no samples"):
    guide.sample(small(digits.get_config()), runs["classifier"])
  with pytest.raises(BadInput, match="only accepts 'class'"):
    guide.evaluate(small(quickstart.get_config(), task="inpaint"), runs["model"])
  with pytest.raises(BadInput, match="is no image and no folder of images"):
    draw(runs["model"], task="inpaint", input=str(tmp_path))
  (tmp_path / "broken.png").write_bytes(b"no image")
  with pytest.raises(BadInput, match=r"1 of 1 images .* cannot be read: .*broken.png"):
    draw(runs["model"], task="inpaint", input=str(tmp_path))
  with pytest.raises(BadInput, match="needs two inputs or more"):
    draw(runs["model"], task="interpolate", num_inputs=1)


def test_snapshots_are_measured_while_training_and_the_best_is_known(runs, tmp_path):
  config = small(quickstart.get_config())
  config.training.update({"n_iters": 40, "fid_samples": 70, "fid_steps": 3})
  with pytest.raises(BadInput, match=r"training.fid_samples=70 needs eval.features"):
    train(config, str(tmp_path))
  config.eval.features = runs["classifier"]
  train(config, str(tmp_path))
  measured = {row["step"]: row["fid"] for row in curves.read(tmp_path) if np.isfinite(row["fid"])}
  assert sorted(measured) == [20, 40]
  assert curves.best_step(tmp_path) == min(measured, key=measured.get)
  assert (tmp_path / "fid.png").stat().st_size > 1000
  events = EventAccumulator(str(tmp_path / "tensorboard"))
  events.Reload()
  assert [e.step for e in events.Scalars("fid")] == [20, 40]
  assert [e.step for e in events.Scalars("recall")] == [20, 40]
  # As if killed after the last snapshot was saved and before it was measured.
  lines = (tmp_path / "metrics.csv").read_text().splitlines()
  (tmp_path / "metrics.csv").write_text("\n".join(lines[:-1]) + "\n")
  assert curves.best_step(tmp_path) == 20
  train(config, str(tmp_path))
  again = {row["step"]: row["fid"] for row in curves.read(tmp_path) if np.isfinite(row["fid"])}
  assert again == pytest.approx(measured, rel=1e-3)
  config.eval.checkpoint = "best"
  config.eval.update({"enable_bpd": False})
  guide.evaluate(config, str(tmp_path))
  row = json.loads((tmp_path / "report.json").read_text())["checkpoints"][0]
  assert row["step"] == curves.best_step(tmp_path)
