"""Situations in which a run once answered wrongly or not at all, each with the right answer."""

import json
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from PIL import Image
from runs import tiny

import score_sde as ss
from score_sde import metrics
from score_sde.run import data, evaluate, training
from score_sde.run.config import BadInput, resolve
from score_sde.run.data.files import as_shown
from score_sde.run.data.records import as_bytes
from score_sde.run.workdir import claimed

FEW = {"training__batch_size": 8, "training__final_report": False, "training__snapshot_sampling": False}


def blocks_of(n, total):
  """Settings of a run of `total` steps that dispatches `n` steps at a time."""
  return tiny(
    **FEW, training__n_iters=total, training__n_jitted_steps=n, training__log_freq=n, training__eval_freq=2 * n,
    training__snapshot_freq=2 * n, training__snapshot_freq_for_preemption=n, model__nf=8, optim__decay="none",
  )  # fmt: skip


def test_a_run_resumed_with_another_number_of_steps_per_dispatch_saves_its_end(tmp_path):
  """5 steps, then dispatches of 3: the first has 1 step, and what follows ends at multiples of 3."""
  training.train(blocks_of(5, 5), str(tmp_path / "changed"))
  training.train(blocks_of(3, 10), str(tmp_path / "changed"))
  training.train(blocks_of(1, 12), str(tmp_path / "steady"))
  kept = sorted(int(p.name) for p in (tmp_path / "changed" / "checkpoints").iterdir() if p.name.isdigit())
  assert kept[-1] == 12
  rows = [line.split(",")[0] for line in (tmp_path / "changed" / "metrics.csv").read_text().splitlines()[1:]]
  assert rows == ["5", "6", "9", "12"]
  changed, steady = (ss.load(str(tmp_path / name)).params for name in ("changed", "steady"))
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-5), changed, steady)


def test_a_lock_file_stays_so_that_a_third_job_cannot_come_in(tmp_path):
  """If the first job removed the file, the second would hold the lock of a file that the third cannot see."""
  with claimed(tmp_path):
    first = (tmp_path / ".claimed").stat().st_ino
  with claimed(tmp_path):
    assert (tmp_path / ".claimed").stat().st_ino == first
    with pytest.raises(BadInput, match="is another job's"), claimed(tmp_path):
      pass


@pytest.mark.parametrize("predictor", ["reverse_diffusion", "ancestral_sampling"])
@pytest.mark.parametrize("steps", [2, 19])
def test_the_official_grid_needs_more_steps_than_beta_max(predictor, steps):
  solver = ss.PredictorCorrector(predictor=predictor, corrector="none")
  draw = lambda steps, grid: ss.sample(
    jax.random.key(0), ss.VP(), lambda x, t: -x, (8, 2), solver=solver, steps=steps, grid=grid
  )
  with pytest.raises(ss.InvalidArgument, match=rf"steps={steps} is too small for grid='official' under VP"):
    draw(steps, "official")
  assert np.isfinite(draw(steps, "uniform")).all()
  assert np.isfinite(draw(30, "official")).all()


def test_times_that_are_equal_in_float32_are_refused():
  with pytest.raises(ss.InvalidArgument, match="must decrease"):
    ss.TimeGrid.through([1.0, 1.0 - 1e-9, 0.5])


def test_interpolation_is_finite_between_any_latents():
  """Equal, opposite and zero latents have no great circle of their own: they are joined by a line."""
  a = jax.random.normal(jax.random.key(0), (4, 6))
  b = jnp.stack([a[0], -a[1], jnp.zeros(6), a[2]])
  path = ss.interpolate(a, b, jnp.linspace(0, 1, 5))
  assert np.isfinite(path).all()
  np.testing.assert_allclose(path[0], a, atol=1e-6)
  np.testing.assert_allclose(path[-1], b, atol=1e-6)
  np.testing.assert_allclose(path[2, 0], a[0], atol=1e-5)


def test_kid_of_few_samples_has_a_spread():
  rng = np.random.default_rng(0)
  a, b = rng.normal(size=(2, 500, 16))
  _, spread = metrics.kid(a, b, subset_size=metrics.kid_subset_size(500, 500))
  fresh = [metrics.kid(*rng.normal(size=(2, 250, 16)), subset_size=250, subsets=1)[0] for _ in range(30)]
  assert spread == pytest.approx(np.std(fresh), rel=0.5)
  assert metrics.kid_subset_size(50_000, 50_000) == 1000


def test_the_inception_score_does_not_depend_on_the_order_of_samples():
  logits = 20 * np.eye(10)[np.repeat(np.arange(10), 100)]  # sure of their class, and ordered by it
  assert metrics.inception_score(logits)[0] == pytest.approx(1.0, abs=1e-3)
  assert metrics.inception_score(logits, seed=0)[0] == pytest.approx(10.0, rel=0.1)


def test_failed_likelihood_solves_are_left_out_and_counted(trained, tmp_path, capsys):
  """With some failures the mean is over the others; with nothing else, the report is written and the run fails."""
  folder, config = trained
  config = config.copy_and_resolve_references()
  config.eval.update({
    "enable_loss": False, "enable_bpd": True, "enable_sampling": False, "num_examples": 8, "rtol": 1e-3, "atol": 1e-3,
  })  # fmt: skip
  row = lambda: json.loads((pathlib.Path(folder) / "report.json").read_text())["checkpoints"][0]
  evaluate.evaluate(config, str(folder))
  whole = row()
  assert (whole["examples"], whole["likelihood_failed"]) == (8, 0)
  config.sampling.max_steps = 2
  with pytest.raises(evaluate.SolvesFailed, match=r"exceeded sampling\.max_steps=2"):
    evaluate.evaluate(config, str(folder))
  assert (row()["examples"], row()["likelihood_failed"]) == (0, 8)
  assert "bits_per_dim" not in row()
  assert "8 likelihoods failed" in capsys.readouterr().out
  assert "NaN" not in (pathlib.Path(folder) / "report.json").read_text()


# --- images -----------------------------------------------------------------------------------------------------------

RAMP = np.tile(np.linspace(0, 255, 16).astype(np.uint8), (16, 1))


def read_folder(folder, channels=1, size=16, split="train"):
  config = tiny(data__dataset="folder", data__path=str(folder), data__image_size=size, data__num_channels=channels)
  return data.load(config, split)


def shown(image, channels=1):
  return np.asarray(as_shown(image, channels)).squeeze()


def test_every_depth_of_gray_is_the_same_picture():
  """A ramp from black to white, in 8 and 16 bits, as floats, as a palette and in CMYK."""
  wide = RAMP.astype(np.uint16) * 257
  images = {
    "L": Image.fromarray(RAMP),
    "I;16": Image.fromarray(wide),
    "I": Image.fromarray(wide.astype(np.int32)),
    "F": Image.fromarray((RAMP / 255).astype(np.float32)),
    "F to 255": Image.fromarray(RAMP.astype(np.float32)),
    "RGB": Image.fromarray(np.stack([RAMP] * 3, -1)),
    "CMYK": Image.fromarray(np.stack([RAMP] * 3, -1)).convert("CMYK"),
    "P": Image.fromarray(np.stack([RAMP] * 3, -1)).quantize(16),
    "LA": Image.merge("LA", (Image.fromarray(RAMP), Image.new("L", (16, 16), 255))),
  }
  for name, image in images.items():
    np.testing.assert_allclose(shown(image).astype(int), RAMP, atol=2, err_msg=name)


def test_transparent_parts_are_white_whatever_colour_they_hide():
  rng = np.random.default_rng(0)
  rgba = rng.integers(0, 256, (16, 16, 4)).astype(np.uint8)
  rgba[..., 3] = 0
  rgba[4:12, 4:12] = (0, 0, 0, 255)  # a black square
  expected = np.full((16, 16), 255)
  expected[4:12, 4:12] = 0
  np.testing.assert_array_equal(shown(Image.fromarray(rgba)), expected)
  np.testing.assert_array_equal(shown(Image.fromarray(rgba[..., [0, 3]], "LA")), expected)
  np.testing.assert_array_equal(shown(Image.fromarray(rgba), 4)[..., 3], rgba[..., 3])


def test_pictures_are_turned_upright(tmp_path):
  """A white left edge, stored in each of the eight orientations of EXIF."""
  upright = np.zeros((16, 16), np.uint8)
  upright[:, :4] = 255
  upright[:4, 4:8] = 128  # no symmetry
  stored = {
    1: upright, 2: upright[:, ::-1], 3: upright[::-1, ::-1], 4: upright[::-1], 5: upright.T, 6: np.rot90(upright),
    7: np.rot90(upright.T, 2), 8: np.rot90(upright, -1),
  }  # fmt: skip
  for orientation, pixels in stored.items():
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / f"{orientation}.png", exif=exif)
    with Image.open(tmp_path / f"{orientation}.png") as image:
      np.testing.assert_array_equal(shown(image), upright, err_msg=str(orientation))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_folders_are_read_with_any_number_of_channels(tmp_path, channels):
  for i in range(12):
    Image.fromarray(RAMP).convert("RGBA").save(tmp_path / f"{i}.png")
  assert read_folder(tmp_path, channels).gather(np.array([0]))["image"].shape == (1, 16, 16, channels)


def test_a_class_that_the_held_out_part_lacks_is_still_a_class(tmp_path):
  """36 cats and 4 dogs, with what systems and notebooks leave beside them, and every suffix of an image."""
  for name, count in (("cat", 36), ("dog", 4), (".ipynb_checkpoints", 1), ("__MACOSX", 1)):
    (tmp_path / name).mkdir()
    for i in range(count):
      Image.fromarray(RAMP).save(tmp_path / name / f"{i}.{('png', 'bmp', 'tif', 'gif')[i % 4]}")
  (tmp_path / "cat" / "._0.png").write_bytes(b"resource fork")
  (tmp_path / "notes.txt").write_text("no image")
  parts = [read_folder(tmp_path, split=split) for split in ("train", "test")]
  assert [p.classes for p in parts] == [2, 2]
  assert sum(len(p) for p in parts) == 40


def test_arrays_of_every_type_become_bytes():
  """As tensorflow-datasets gives them: floats are not divided by 255 twice, and two axes are an image."""
  for values in (RAMP, RAMP.astype(np.uint16) * 257, (RAMP / 255).astype(np.float32), RAMP.astype(np.float64)):
    np.testing.assert_array_equal(as_bytes(values)[..., 0], RAMP)
  np.testing.assert_array_equal(as_bytes(RAMP > 127)[..., 0], np.where(RAMP > 127, 255, 0))


def test_a_tilde_is_the_home_folder(monkeypatch, tmp_path):
  monkeypatch.setenv("HOME", str(tmp_path))
  config = runs.tiny()
  config.eval.reference = "~/statistics.npz"
  assert resolve(config).eval.reference == os.path.join(tmp_path, "statistics.npz")
