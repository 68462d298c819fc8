"""Evaluation: of which checkpoints, resumed where it was stopped, reported, compared."""

import importlib.util
import json
import shutil
import signal
import threading
import time
import types

import numpy as np
import pytest
import runs
from array_record.python.array_record_module import ArrayRecordReader
from PIL import Image

from configs import quickstart
from score_sde.run import evaluate, features, storage
from score_sde.run.config import BadInput, resolve
from score_sde.run.evaluate import compare, likelihoods, reports, samples
from score_sde.run.evaluate.chosen import POLL_SECONDS


def rows_of(folder, name="report"):
  return json.loads((folder / f"{name}.json").read_text())["checkpoints"]


@pytest.mark.slow
def test_sample_and_eval_modes_write_what_they_promise(trained, capsys):
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.enable_sampling = True
  config.eval.num_samples = 21
  evaluate.sample(config, str(folder))
  with np.load(folder / "samples.npz") as file:
    assert file["samples"].shape == (9, 8, 8, 1)
    assert file["samples"].dtype == np.uint8
  assert (folder / "samples.png").exists()
  assert (folder / "denoising.png").exists()
  evaluate.evaluate(config, str(folder))
  (row,) = rows_of(folder)
  assert row["step"] == 40
  assert row["examples"] == 24
  assert np.isfinite(row["bits_per_dim"])
  assert "bits/dim on 24 test examples" in capsys.readouterr().out
  with np.load(row["samples_file"]) as file:
    assert file["samples"].shape == (21, 8, 8, 1)
    # The i-th sample belongs to the i-th key, however many are drawn at once.
    with np.load(folder / "samples.npz") as nine:
      assert np.max(np.abs(nine["samples"].astype(int) - file["samples"][:9])) <= 1


def test_bits_per_dim_go_on_where_they_were_stopped(trained, monkeypatch):
  """Two of three batches of each of two repeats are on disk when the run dies; the next run does the others alone."""
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.likelihood, config.eval.num_times, config.eval.batch_size, config.eval.num_repeats = "elbo", 4, 8, 2
  config.eval.enable_loss, config.eval.enable_bpd, written = False, True, []
  save = storage.save_atomically

  def dies(path, write):
    save(path, write)
    written.append(path.name)
    if len(written) == 5:
      raise KeyboardInterrupt

  with monkeypatch.context() as patch:
    patch.setattr(likelihoods, "save_atomically", dies)
    with pytest.raises(KeyboardInterrupt):
      evaluate.evaluate(config, str(folder))
  left = sorted(p.name for p in (folder / "eval").glob("unfinished_*/*/likelihood/*"))
  assert left == sorted(written)
  assert len(left) == 5
  for path in (folder / "eval").glob("unfinished_*/*/likelihood/*"):
    np.save(path, np.load(path) + np.array([64 * np.log(2), 0, 0]))  # to be recognized: a bit/dim less
  evaluate.evaluate(config, str(folder))
  resumed = rows_of(folder)[0]
  assert not list((folder / "eval").glob("unfinished_*"))
  evaluate.evaluate(config, str(folder))
  whole = rows_of(folder)[0]
  assert resumed["bits_per_dim"] == pytest.approx(whole["bits_per_dim"] - 5 / 6, abs=1e-4)
  assert whole["likelihood"] == "elbo"


def test_snapshots_are_evaluated_by_number(trained):
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.enable_bpd = config.eval.enable_sampling = False
  config.eval.begin_ckpt, config.eval.end_ckpt = 1, 2
  evaluate.evaluate(config, str(folder))
  assert [row["step"] for row in rows_of(folder)] == [20, 40]
  once, before = rows_of(folder), set(folder.glob("report_2*.json"))
  config.eval.end_ckpt = 1  # the report of more snapshots is kept
  evaluate.evaluate(config, str(folder))
  assert [row["step"] for row in rows_of(folder)] == [20]
  assert [json.loads(p.read_text())["checkpoints"] for p in set(folder.glob("report_2*.json")) - before] == [once]
  config.eval.end_ckpt = 2  # rows that are not measured anew stay, until they are
  evaluate.evaluate(config, str(folder))
  assert [row["step"] for row in rows_of(folder)] == [20, 40]
  config.eval.end_ckpt = 3
  with pytest.raises(BadInput, match=r"ask for steps \[20, 40, 60\], and the workdir has \[20, 30, 40\]"):
    evaluate.evaluate(config, str(folder))
  config.eval.begin_ckpt = config.eval.end_ckpt = None
  config.eval.checkpoint = "30"
  evaluate.evaluate(config, str(folder))
  assert [row["step"] for row in rows_of(folder)] == [30]
  for name, message in (("31", "no checkpoint of step 31"), ("newest", "neither 'latest', nor 'best', nor a step"),
                        ("best", "its training measured no FID")):  # fmt: skip
    config.eval.checkpoint = name
    with pytest.raises(BadInput, match=message):
      evaluate.evaluate(config, str(folder))


def waiting(trained, tmp_path, minutes):
  """A copy of a run whose last snapshot is not there yet, and the config of an evaluation that waits for it."""
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.enable_bpd, config.eval.begin_ckpt, config.eval.wait_minutes = False, 1, minutes
  copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "report*"))
  (copy / "checkpoints" / "40").rename(tmp_path / "40")
  return copy, config


def test_snapshots_that_a_training_still_writes_are_waited_for(trained, tmp_path, monkeypatch):
  copy, config = waiting(trained, tmp_path, 1)
  monkeypatch.setattr("score_sde.run.evaluate.chosen.POLL_SECONDS", 0.05)

  def appear():
    while not (copy / "report.json").exists():  # written once the first snapshot is done
      time.sleep(0.05)
    (tmp_path / "40").rename(copy / "checkpoints" / "40")

  thread = threading.Thread(target=appear)
  thread.start()
  evaluate.evaluate(config, str(copy))
  thread.join()
  assert [row["step"] for row in rows_of(copy)] == [20, 40]
  assert POLL_SECONDS >= 1  # no busy loop


def test_what_is_waited_for_in_vain_is_named(trained, tmp_path):
  copy, config = waiting(trained, tmp_path, 0.001)
  with pytest.raises(BadInput, match=r"No checkpoint of step 40 came into workdir .* within eval.wait_minutes=0.001"):
    evaluate.evaluate(config, str(copy))
  assert [row["step"] for row in rows_of(copy)] == [20]
  (tmp_path / "40").rename(copy / "checkpoints" / "40")
  shutil.rmtree(copy / "checkpoints" / "20")
  with pytest.raises(BadInput, match=r"The checkpoint of step 20 was waited for, and vanished"):
    evaluate.evaluate(config, str(copy))


@pytest.mark.slow
def test_a_killed_evaluation_draws_no_finished_batch_again(trained, tmp_path):
  """SIGKILL after two batches of five; the first is marked, and must come through to the end."""
  folder, _ = trained
  copy = shutil.copytree(folder, tmp_path / "run", ignore=shutil.ignore_patterns("eval", "report*"))
  flags = (
    "--mode=eval", "--config.eval.enable_sampling", "--config.eval.enable_bpd=False", "--config.eval.batch_size=8",
    "--config.eval.num_samples=37", "--config.sampling.num_steps=300",
  )  # fmt: skip
  process = runs.start(copy, *flags)
  batches = lambda: sorted((copy / "eval").glob("unfinished_*/*/samples/batch_*.npz"))
  deadline = time.monotonic() + 200
  while len(batches()) < 2 and process.poll() is None and time.monotonic() < deadline:
    time.sleep(0.01)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  kept = batches()
  assert len(kept) >= 2
  marked = dict(np.load(kept[0]))
  marked["samples"] = np.full_like(marked["samples"], 7)
  np.savez(kept[0], **marked)
  code, out, err = runs.finish(copy, *flags)
  assert code == 0, err
  assert "37 samples" in out
  assert "read_only" not in err  # what orbax narrates
  assert not list((copy / "eval").glob("unfinished_*"))
  with np.load(copy / "eval" / "samples_00000040.npz") as file:
    drawn = file["samples"]
  assert drawn.shape == (37, 8, 8, 1)
  assert (drawn[:8] == 7).all()
  code, _, err = runs.finish(copy, *flags, devices=2)
  assert code == 0, err
  with np.load(copy / "eval" / "samples_00000040.npz") as file:
    np.testing.assert_allclose(drawn[8:].astype(int), file["samples"][8:], atol=1)  # on two devices, too


def test_numbers_that_json_does_not_have_are_shown():
  row = {"fid": "inf", "step": 1, "metrics": {"psnr": "inf", "other": None, "third": 0.25}}
  report = {"dataset": "digits", "sde": "vpsde", "split": "test"}
  assert reports.line(row, report).endswith("fid inf, psnr inf, other nan, third 0.25")


def test_an_evaluation_is_another_one_with_other_code_or_another_guide(tmp_path):
  file = tmp_path / "mine.py"
  file.write_text("metrics = lambda samples, examples: {}\n")
  (tmp_path / "weak" / "checkpoints" / "10").mkdir(parents=True)
  config = runs.tiny(eval__metrics=f"{file}:metrics", guidance__weak=str(tmp_path / "weak"))
  before = evaluate.runs._contents(config)
  assert before == evaluate.runs._contents(config)
  file.write_text("metrics = lambda samples, examples: {'a': 1}\n")
  assert evaluate.runs._contents(config) != before
  before = evaluate.runs._contents(config)
  (tmp_path / "weak" / "checkpoints" / "20").mkdir()
  assert evaluate.runs._contents(config) != before
  assert evaluate.runs._contents(runs.tiny()) == {}


def test_samples_are_saved_in_every_form(tmp_path):
  rng = np.random.default_rng(0)
  for channels in (1, 3):
    images = rng.integers(0, 256, (7, 5, 5, channels), dtype=np.uint8)
    saved = lambda kind, images=images: samples.save_samples(iter(np.split(images, [3, 6])), 7, tmp_path / "out", kind)
    with np.load(saved("npz")) as file:
      np.testing.assert_array_equal(file["samples"], images)
    files = sorted(saved("png").glob("*.png"))
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(7)]
    for i, file in enumerate(files):
      np.testing.assert_array_equal(np.asarray(Image.open(file)).reshape(5, 5, channels), images[i])
    records = ArrayRecordReader(str(saved("array_record"))).read_all()
    assert records == [file.read_bytes() for file in files]


def test_images_become_uint8_as_asked():
  x = np.array([-0.1, 0.0, 0.4999 / 255, 0.6 / 255, 254.99 / 255, 1.0, 2.0, np.nan, np.inf])
  np.testing.assert_array_equal(samples.to_uint8(x, "truncate"), [0, 0, 0, 0, 254, 255, 255, 0, 0])
  np.testing.assert_array_equal(samples.to_uint8(x, "round"), [0, 0, 0, 1, 255, 255, 255, 0, 0])


@pytest.mark.thorough
def test_samples_that_are_not_finite_are_counted_and_named(trained, tmp_path, caplog):
  """A network of NaN: every sample fails, is named, and there is no FID of them."""
  _, config = trained
  config = config.copy_and_resolve_references()
  config.sampling.method, config.eval.num_samples = "ode", 10
  experiment = evaluate.runs.build(config)
  import jax

  broken = jax.tree.map(lambda p: np.full(p.shape, np.nan, np.float32), experiment.abstract_params())
  (file,) = samples.draw_batches(experiment, broken, 10, tmp_path)
  found = samples.read_batch(file)
  assert not found["finite"].any()
  assert (found["samples"] == 0).all()
  assert "10 of 10 samples are not finite" in caplog.text
  file.write_bytes(file.read_bytes()[:100])
  with pytest.raises(BadInput, match=r"batch_000000\.npz cannot be read .* draws only this batch again"):
    samples.read_batch(file)
  (again,) = samples.draw_batches(experiment, broken, 10, tmp_path)
  assert "is damaged" in caplog.text
  np.testing.assert_array_equal(samples.read_batch(again)["samples"], found["samples"])


def test_what_features_cannot_be_made_of_is_refused(tmp_path):
  extractor = features.Extractor("mean", lambda _, images: (images.mean((1, 2)), images.mean((1, 2))), None)
  good = np.zeros((3, 4, 4, 2), np.uint8)
  assert extractor(good)[0].shape == (3, 2)
  assert extractor.dims((4, 4, 2)) == 2
  for images, message in (
    (good / 255, r"got float64 \(3, 4, 4, 2\) from 0 to 0"),
    (np.full(good.shape, np.nan), "some not finite"),
    (good.astype(np.int32) + 300, "got int32 .* from 300 to 300"),
    (good[0], r"got uint8 \(4, 4, 2\)"),
    (good[:0], r"got uint8 \(0, 4, 4, 2\)"),
  ):
    with pytest.raises(BadInput, match=message):
      extractor(images)
  with pytest.raises(BadInput, match=r"eval.num_samples=64 gives 64 images, too few .* at least 65 are needed"):
    features.check_count("eval.num_samples=64", 64, 64)


def test_reports_side_by_side_with_the_papers(trained, tmp_path, capsys):
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.enable_bpd, config.eval.enable_sampling, config.eval.num_samples = False, True, 5
  config.eval.save_samples, config.eval.report = "none", "report_few"
  evaluate.evaluate(config, str(folder))
  report = json.loads((folder / "report_few.json").read_text())
  assert report["config_hash"] != ""
  assert report["checkpoints"][0]["samples_file"] == ""
  markdown = (folder / "report_few.md").read_text()
  for part in ("| loss |", "(NFE) |", "jax ", "truncate", report["config_hash"], "Euler-Maruyama, 4 steps"):
    assert part in markdown, part
  assert (folder / report["checkpoints"][0]["picture"]).stat().st_size > 1000
  shown = compare.compare(str(folder / "report_few.json"))
  assert "| report_few.json | digits | VP SDE | 40 |" in shown
  assert "2.20" not in shown  # the papers' numbers are of CIFAR-10
  (folder / "report_few.json").write_text(json.dumps(report | {"dataset": "CIFAR10"}))
  shown = compare.compare(str(folder / "report_few.json"))
  (folder / "report_few.json").unlink()
  assert "| `ve/cifar10_ncsnpp_deep_continuous` | 2.20 | 9.89 |" in shown
  with pytest.raises(BadInput, match="is no report and no workdir with one"):
    compare.compare(str(tmp_path))
  (tmp_path / "report.json").write_text('{"checkpoints": 3}')
  with pytest.raises(BadInput, match="is no report of --mode=eval"):
    compare.compare(str(tmp_path))


def test_torch_fidelity_is_an_option_that_says_what_it_needs(trained):
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.enable_bpd, config.eval.enable_sampling = False, True
  config.eval.fidelity_engine, config.eval.features = "torch-fidelity", "inception"
  if importlib.util.find_spec("torch_fidelity") is None:
    with pytest.raises(BadInput, match=r"needs .*torch_fidelity, not installed here: pip install -e '.\[fidelity\]'"):
      evaluate.evaluate(config, str(folder))
  config.eval.fidelity_engine = "torch_fidelity"
  with pytest.raises(BadInput, match="Did you mean 'torch-fidelity'"):
    evaluate.evaluate(config, str(folder))


def test_features_of_the_data_are_computed_once(monkeypatch):
  """A training that measures FIDs on its way and at its end needs them several times."""
  made = []
  monkeypatch.setattr(features, "_of_source", lambda config, extractor, source: made.append(extractor.name) or made[-1])
  monkeypatch.setattr(features, "_LAST", {})
  extractor = types.SimpleNamespace(name="one", dims=lambda shape: 4)
  config = resolve(quickstart.get_config())
  assert [features.of_data(config, extractor, "train") for _ in range(2)] == ["one", "one"]
  features.of_data(config, types.SimpleNamespace(name="two", dims=lambda shape: 4), "train")
  features.of_data(config, extractor, "test")
  assert made == ["one", "two", "one"]
