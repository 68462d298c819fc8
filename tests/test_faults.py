"""Situations in which a run once answered wrongly or not at all, each with the right answer."""

import errno
import json
import os
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import runs
from PIL import Image
from runs import tiny

import score_sde as ss
from score_sde import metrics
from score_sde.run import checkpoints, data, evaluate, guide, noise_scales, storage, training
from score_sde.run.checkpoints import transfer
from score_sde.run.config import BadInput, make_sde, networks, resolve, why_unread
from score_sde.run.data.files import as_shown
from score_sde.run.data.records import as_bytes
from score_sde.run.experiment import make_sampler
from score_sde.run.sampler import stepping as sampler_of
from score_sde.run.workdir import claimed

FEW = {"training__batch_size": 8, "training__final_report": False, "training__snapshot_sampling": False}


def blocks_of(n, total):
  """Settings of a run of `total` steps that dispatches `n` steps at a time."""
  return tiny(
    **FEW, training__n_iters=total, training__n_jitted_steps=n, training__log_freq=n, training__eval_freq=2 * n,
    training__snapshot_freq=2 * n, training__snapshot_freq_for_preemption=n, model__nf=8, optim__decay="none",
  )  # fmt: skip


@pytest.mark.thorough
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


@pytest.mark.thorough
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
  with pytest.raises(evaluate.SolvesFailed, match=r"exceeded sampling\.max_steps=2\. Raise it"):
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


# --- grids and SDEs ---------------------------------------------------------------------------------------------------


class Vanishing(ss.LinearSDE):
  """A user's SDE with no signal left at T."""

  def alpha(self, t):
    return 1 - t

  def sigma(self, t):
    return t


@pytest.mark.parametrize(
  ("sde", "reason"),
  [
    (Vanishing(), r"Vanishing\(\) has alpha=0 at t=1 in float32"),
    (ss.VP(beta_max=1000.0), r"beta_max=1000.* has alpha=0 at t=1"),
    (ss.VE(sigma_max=1e30), r"sigma_max=1e\+30\) has sigma\^2=inf at t=1"),
    (ss.VE(sigma_min=1e-30), r"has sigma\^2=0 at t=1e-05"),
  ],
  ids=["alpha", "beta", "overflow", "underflow"],
)
@pytest.mark.parametrize("solver", [ss.UniPC(), ss.AdaptiveODE(), ss.PredictorCorrector()], ids=["steps", "ode", "pc"])
def test_an_sde_without_signal_or_with_infinite_noise_is_named(sde, reason, solver):
  with pytest.raises(ss.InvalidArgument, match=reason):
    ss.sample(jax.random.key(0), sde, lambda x, t: -x, (2, 2), solver=solver)


def test_what_float32_cannot_hold_is_checked_in_the_dtype_of_the_run(x64):
  x = ss.sample(
    jax.random.key(0), ss.VP(beta_max=1000.0), lambda x, t: -x, (2, 2), solver=ss.UniPC(), dtype=jnp.float64
  )
  assert np.isfinite(x).all()


@pytest.mark.parametrize("steps", [[(0.0, 0.5), (0.5, 1.0)], [(1.0, 0.5), (0.5, 0.5)]])
def test_grids_of_steps_that_do_not_go_from_noise_to_data_are_refused(steps):
  start, stop = np.array(steps).T
  with pytest.raises(ss.InvalidArgument, match="each step must go from a later time to an earlier one"):
    ss.TimeGrid(start, start, stop)


@pytest.mark.thorough
@pytest.mark.parametrize("solver", [ss.UniPC(), ss.DPMSolver()], ids=["unipc", "dpm_solver"])
@pytest.mark.parametrize("sde", [ss.VP(), ss.SubVP()], ids=["vp", "subvp"])
def test_a_steep_end_of_the_grid_lowers_the_order(sde, solver, monkeypatch):
  """The flow of a Gaussian, on the uniform grid, whose last step spans most of the log-SNR."""
  from score_sde import analytic
  from score_sde.sampling import multistep

  score = analytic.gaussian([0.3, -0.2], np.diag([0.01, 0.5])).score(sde)
  draw = lambda solver, steps, grid: np.asarray(
    ss.sample(jax.random.key(0), sde, score, (64, 2), solver=solver, steps=steps, grid=grid)
  )
  exact = draw(ss.UniPC(), 100, "log_snr")
  error = np.abs(draw(solver, 10, "uniform") - exact).mean()
  monkeypatch.setattr(multistep, "STEEPEST", np.inf)
  assert error < 0.6 * np.abs(draw(solver, 10, "uniform") - exact).mean()


# --- clipping ---------------------------------------------------------------------------------------------------------


def test_clipping_is_that_of_the_paper():
  """Static: into the range. Dynamic: to the quantile where it is above 1, and divided by it (Saharia et al. 2022)."""
  x = jnp.array([[0.5, -3.0, 0.2, 2.0, 0.0], [0.5, -0.3, 0.2, 0.9, 0.0]])
  np.testing.assert_allclose(ss.Clip().clipped(x), np.clip(x, -1, 1))
  dynamic = ss.Clip(quantile=0.75).clipped(x)
  np.testing.assert_allclose(dynamic[0], np.clip(x[0], -2, 2) / 2)
  np.testing.assert_allclose(dynamic[1], x[1])  # the quantile lies within the range
  np.testing.assert_allclose(ss.Clip(0.0, 1.0, 0.75).clipped((x + 1) / 2), (dynamic + 1) / 2, atol=1e-6)


@pytest.mark.parametrize("solver", [ss.UniPC(), ss.DPMSolverSDE(), ss.PredictorCorrector(corrector="none")])
def test_clipped_samples_lie_in_the_range_and_others_are_not_changed(solver):
  """Data N(0, 4) clipped to [-1, 1]; and a range that no estimate leaves changes nothing."""
  sde = ss.VP()
  score = lambda x, t: -x / (4 * sde.alpha(t) ** 2 + sde.sigma(t) ** 2)[:, None]
  draw = lambda solver: np.asarray(ss.sample(jax.random.key(0), sde, score, (64, 3), solver=solver, steps=30))
  assert np.abs(draw(solver)).max() > 3
  assert np.abs(draw(ss.Clip()(solver))).max() <= 1.1
  np.testing.assert_allclose(draw(ss.Clip(-99.0, 99.0)(solver)), draw(solver), atol=1e-3)
  with pytest.raises(ss.InvalidArgument, match="needs a solver with steps on a grid, not AdaptiveODE"):
    ss.Clip()(ss.AdaptiveODE())


class Simulated(ss.SDE):
  """An SDE without a known kernel, whose stationary law is N(0, I)."""

  def drift(self, x, t):
    return -10 * x

  def diffusion(self, x, t):
    return jnp.full_like(t, np.sqrt(20.0))


def test_langevin_without_sigma_needs_norms_of_the_batch():
  x_T = jax.random.normal(jax.random.key(1), (4096, 2))
  draw = lambda norms: ss.sample(
    jax.random.key(0), Simulated(), lambda x, t: -x, (4096, 2), x_T=x_T, eps=0.6, steps=50,
    solver=ss.PredictorCorrector(predictor="euler_maruyama", norms=norms, noise_removal=False),
  )  # fmt: skip
  with pytest.raises(ss.InvalidArgument, match=r"from sigma\(t\), which Simulated does not have\. Use norms='batch'"):
    draw("sample")
  assert np.std(draw("batch")) == pytest.approx(1, abs=0.15)  # Euler-Maruyama's own error is 4%


def test_clipping_reaches_the_runner_with_the_range_of_the_data():
  """[-1, 1] for VP, [0, 1] for VE; with DDRM and a constraint, and checked before anything is compiled."""
  score = jax.tree_util.Partial(lambda x, t: -0.01 * x)  # far too flat: nothing is pulled into the range
  for sde, low in (("vpsde", -1.0), ("vesde", 0.0)):
    config = resolve(tiny(training__sde=sde, sampling__clip="static", sampling__method="unipc", sampling__num_steps=5))
    sampler = make_sampler(config, make_sde(config))
    x, _ = sampler(score, jax.random.key(0), (4, 8, 8, 1))
    assert (float(jnp.min(x)), float(jnp.max(x))) == (pytest.approx(low, abs=1e-5), pytest.approx(1.0, abs=1e-5))
  dynamic = resolve(tiny(sampling__clip="dynamic", sampling__clip_quantile=0.9, sampling__method="unipc"))
  assert make_sampler(dynamic, make_sde(dynamic)).clip == ss.Clip(-1.0, 1.0, 0.9)
  for method in ("ddrm", "replacement"):
    config = resolve(tiny(
      guidance__task="inpaint", guidance__method=method, sampling__clip="static", sampling__method="dpm_solver",
      sampling__num_steps=5,
    ))  # fmt: skip
    measured = ss.guidance.inpaint(jnp.ones((8, 8, 1)).at[:4].set(0), jnp.zeros((8, 8, 1)))
    measured = jax.tree.map(lambda a: jnp.repeat(a, 4, axis=0), measured)
    x, _ = make_sampler(config, make_sde(config))(score, jax.random.key(0), (4, 8, 8, 1), condition=measured)
    assert np.abs(x[:, :4]).max() <= 1.1
  with pytest.raises(ss.InvalidArgument, match="Clipping of x_0 needs a linear SDE"):
    sampler_of(ss.PredictorCorrector(corrector="none"), Simulated(), 5, clip=ss.Clip())


def test_a_grid_that_ends_at_zero_can_be_clipped():
  grid = ss.TimeGrid.through([1.0, 0.5, 0.1, 0.0])
  for solver in (ss.DDIM(noise_removal=False), ss.PredictorCorrector(corrector="none")):
    x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.Clip()(solver), grid=grid)
    assert np.isfinite(x).all()


# --- runs that go on with other settings or data ----------------------------------------------------------------------


def steps_of(workdir):
  return sorted(int(p.name) for p in (pathlib.Path(workdir) / "checkpoints").iterdir() if p.name.isdigit())


def short(total, **values):
  return runs.changed(blocks_of(2, total), **values)


@pytest.mark.parametrize(
  "values",
  [
    {"training__batch_size": 24, "optim__lr": 1e-4, "optim__grad_clip": 0.0},
    {"training__accumulation": 2, "optim__weight_decay": 0.1, "training__log_freq": 4, "training__eval_freq": 8},
    {"training__n_jitted_steps": 1, "training__snapshot_freq": 6, "training__snapshot_freq_for_preemption": 6},
  ],
  ids=lambda values: next(iter(values)),
)  # fmt: skip
@pytest.mark.slow
def test_settings_may_change_between_two_starts_and_the_end_is_saved(tmp_path, values):
  training.train(short(4), str(tmp_path))
  training.train(short(8, **values), str(tmp_path))
  assert steps_of(tmp_path)[-1] == 8


@pytest.mark.thorough
def test_a_disk_that_is_away_is_no_damage_and_nothing_is_deleted(tmp_path, monkeypatch):
  training.train(short(4), str(tmp_path))

  def away(*arguments):
    raise OSError(errno.EIO, os.strerror(errno.EIO))

  with monkeypatch.context() as patch:
    patch.setattr(checkpoints, "_manifest", away)
    with pytest.raises(ss.ScoreSDEError, match=r"Checkpoint 4 .* cannot be read now \(Input/output error\)"):
      training.train(short(8), str(tmp_path))
  assert 4 in steps_of(tmp_path)


@pytest.mark.thorough
def test_another_optimizer_is_refused_with_what_differs_and_a_finished_run_says_so(tmp_path, caplog):
  training.train(short(4), str(tmp_path))
  with pytest.raises(BadInput, match=r"Checkpoint 4 .* lacks \d+ arrays, .*nu_max.*optim\.amsgrad"):
    training.train(short(8, optim__amsgrad=True), str(tmp_path))
  assert not json.loads((tmp_path / "config.json").read_text())["optim"]["amsgrad"]  # the run keeps its config
  with caplog.at_level("INFO", "score_sde"):
    training.train(short(2), str(tmp_path))
  assert "step 4, and training.n_iters=2: nothing is left to train" in caplog.text
  # A checkpoint whose manifest is empty is damaged, whatever its arrays: the run resumes from the one before it.
  for manifest in (tmp_path / "checkpoints" / "4" / "manifest").iterdir():
    manifest.write_text("{}")
  training.train(short(4), str(tmp_path))
  assert re.search(r"Checkpoint 4 .* cannot be used: ValueError: its manifest is empty or damaged", caplog.text)
  assert steps_of(tmp_path) == [2, 4]


def folder_of(path, first, last):
  rng = np.random.default_rng(0)
  for i in range(last):
    pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
    if i >= first:
      (path / ("cat" if i % 2 else "dog")).mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(path / ("cat" if i % 2 else "dog") / f"{i}.png")


@pytest.mark.thorough
def test_other_data_than_the_run_began_with_need_a_flag(tmp_path):
  """Added files would move held-out images into training, and other images of the same names are other data."""
  folder_of(tmp_path / "set", 0, 40)
  values = {"data__dataset": "folder", "data__path": str(tmp_path / "set"), "data__num_channels": 3}
  workdir = str(tmp_path / "run")
  training.train(short(4, **values), workdir)
  kept = json.loads((tmp_path / "run" / "data.json").read_text())
  assert kept["classes"] == ["cat", "dog"]
  assert kept["splits"]["train"]["examples"] == 36
  folder_of(tmp_path / "set", 40, 60)
  evaluation = runs.changed(short(4, **values), eval__num_examples=4, eval__batch_size=4)
  for go_on in (lambda: training.train(short(8, **values), workdir), lambda: evaluate.evaluate(evaluation, workdir)):
    with pytest.raises(BadInput, match=r"test had 4 examples and has 6.*--config\.data\.accept_changes=True"):
      go_on()
  training.train(short(8, **values, data__accept_changes=True), workdir)
  assert steps_of(workdir)[-1] == 8
  assert json.loads((tmp_path / "run" / "data.json").read_text())["splits"]["train"]["examples"] == 54
  moved = tmp_path / "moved"
  (tmp_path / "set").rename(moved)
  training.train(short(8, **(values | {"data__path": str(moved)})), workdir)  # the same data elsewhere


# --- weights, and what is kept of an evaluation -----------------------------------------------------------------------


def test_raw_weights_are_those_of_training_and_a_long_average_is_warned_of(trained, caplog):
  folder, config = trained
  config = runs.changed(config.copy_and_resolve_references(), model__ema_rate=0.9999, model__ema_warmup=False)
  with caplog.at_level("WARNING", "score_sde"):
    evaluate.sample(config, str(folder))
  assert "spans 10,000 steps, and there are 40: the initial parameters still have a weight of 100%" in caplog.text
  assert "--config.eval.weights=raw" in caplog.text
  ema = np.load(folder / "samples.npz")["samples"]
  evaluate.sample(runs.changed(config, eval__weights="raw"), str(folder))
  raw = np.load(folder / "samples.npz")["samples"]
  assert (raw != ema).any()


@pytest.mark.thorough
def test_likelihoods_of_all_images_are_kept_with_their_names(trained):
  folder, config = trained
  config = runs.changed(
    config.copy_and_resolve_references(), eval__enable_loss=False, eval__enable_bpd=True, eval__num_examples=8,
    eval__rtol=1e-2, eval__atol=1e-2,
  )  # fmt: skip
  for step in ("20", "40"):
    evaluate.evaluate(runs.changed(config, eval__checkpoint=step), str(folder))
  kept = np.load(folder / "eval" / "likelihood.npz")
  assert kept["step"].tolist() == [20, 40]
  assert kept["name"].tolist() == [str(i) for i in range(8)]
  row = json.loads((folder / "report.json").read_text())["checkpoints"][0]
  assert kept["bits_per_dim"].shape == (2, 8)
  assert kept["bits_per_dim"][1].mean() == pytest.approx(row["bits_per_dim"], rel=1e-5)


def _reshape(file, whole):
  """Writes arrays of another shape."""
  if file.suffix == ".npy":
    np.save(file, np.zeros((1, 7)))
  else:
    np.savez(file.with_suffix(".npz"), samples=np.zeros((3, 2)), finite=np.ones(3), nfe=np.ones(3), seconds=1)


DAMAGES = {
  "empty": lambda file, whole: file.write_bytes(b""),
  "half": lambda file, whole: file.write_bytes(whole[: len(whole) // 2]),
  "text": lambda file, whole: file.write_text("nothing of the kind"),
  "another shape": _reshape,
  "other keys": lambda file, whole: np.savez(file.with_suffix(".npz"), a=np.zeros(3)),
  "a broken row": lambda file, whole: file.write_text('{"step": 3}'),
}


@pytest.mark.thorough
@pytest.mark.parametrize("damage", [d if d == "half" else pytest.param(d, marks=pytest.mark.slow) for d in DAMAGES])
def test_damaged_parts_of_an_unfinished_evaluation_are_measured_again(trained, tmp_path, monkeypatch, damage):
  folder, config = trained
  config = runs.changed(
    config.copy_and_resolve_references(), eval__enable_sampling=True, eval__num_samples=6, eval__batch_size=4,
    eval__num_examples=6,
  )  # fmt: skip
  kept = tmp_path / "unfinished"
  kind = type(storage.path_of(folder))
  remove = kind.rmtree
  monkeypatch.setattr(kind, "rmtree", lambda path, **options: os.rename(path, kept))
  evaluate.evaluate(config, str(folder))
  whole = json.loads((folder / "report.json").read_text())["checkpoints"]
  for file in [p for p in kept.rglob("*") if p.is_file()]:
    DAMAGES[damage](file, file.read_bytes())
  (unfinished,) = [
    folder / "eval" / f"unfinished_{evaluate.runs._plan(evaluate.runs.build(config), folder).fingerprint}"
  ]
  os.rename(kept, unfinished)
  monkeypatch.setattr(kind, "rmtree", remove)
  evaluate.evaluate(config, str(folder))
  again = json.loads((folder / "report.json").read_text())["checkpoints"]
  timed = ("seconds", "seconds_per_image")
  plain = lambda rows: [{k: v for k, v in row.items() if k not in timed} for row in rows]
  assert plain(again) == plain(whole)


@pytest.mark.thorough
def test_latents_of_failed_solves_are_not_numbers():
  network = lambda params, x, labels, keys: params * x
  model = ss.Model(ss.ScoreModel(ss.VP(), network), -1.0, ss.Scaling(levels=None), (2,))
  x = jnp.ones((3, 2))
  assert np.isfinite(model.encode(x)).all()
  failing = ss.AdaptiveODE(max_steps=2)
  latent, info = ss.encode(ss.VP(), model.score, x, ode=failing)
  assert not info["finite"].any()
  _, info = ss.decode(ss.VP(), model.score, latent, ode=failing)
  assert not info["finite"].any()
  broken = ss.Model(ss.ScoreModel(ss.VP(), network), jnp.nan, ss.Scaling(levels=None), (2,))
  assert np.isnan(broken.encode(x)).all()
  assert np.isnan(broken.decode(x)).all()


@pytest.mark.slow
def test_failed_interpolations_are_counted_on_the_picture_and_fail_if_all_do(trained, caplog):
  folder, config = trained
  config = runs.changed(
    config.copy_and_resolve_references(), guidance__task="interpolate", guidance__num_inputs=3, sampling__rtol=1e-2,
    sampling__atol=1e-2,
  )  # fmt: skip
  guide.sample(config, str(folder))
  assert np.load(folder / "guided.npz")["finite"].all()
  with pytest.raises(evaluate.SolvesFailed, match=r"All 18 images failed: .*sampling\.max_steps=3"):
    guide.sample(runs.changed(config, sampling__max_steps=3), str(folder))
  kept = np.load(folder / "guided.npz")
  assert not kept["finite"].any()
  assert kept["samples"].max() == 0
  assert "18 of 18 images failed" in caplog.text


# --- one line instead of a traceback ----------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize(
  ("flags", "line"),
  [
    (["--config.seed=-1"], "seed=-1 must lie in"),
    (["--config.data={}"], "--config.data is a section of the config: set one of its keys, such as"),
    (["--flagfile=/nowhere"], "Unable to open flagfile"),
    (["--flagfile=MISSPELT"], "config has no key 'trainig.sde'. Did you mean training?"),
    (["--flagfile=UNREAD"], "--config.sampling.churn has no effect here"),
  ],
)
def test_flags_that_are_wrong_get_one_line(tmp_path, capsys, monkeypatch, flags, line):
  (tmp_path / "MISSPELT").write_text("--config.trainig.sde=vesde\n")
  (tmp_path / "UNREAD").write_text("--config.sampling.churn=3\n")
  flags = [flag.replace("=MIS", f"={tmp_path}/MIS").replace("=UNR", f"={tmp_path}/UNR") for flag in flags]
  code, _, err = runs.finish(tmp_path / "run", *flags)
  assert code == 2
  assert err.startswith("run.py: ")
  assert len(err.splitlines()) == 1
  assert line in err


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(30, "Read-only file system")])
def test_a_checkpoints_folder_that_cannot_be_written_any_more_is_one_line(tmp_path, monkeypatch, error):
  def save(self, step, **options):
    raise type(error)(error.errno, error.strerror, str(tmp_path / "checkpoints" / str(step)))

  monkeypatch.setattr(checkpoints.ocp.CheckpointManager, "save", save)
  with pytest.raises(checkpoints.CannotSave, match=rf"can no longer be written to \({error.strerror}\).*resumes from"):
    training.train(short(4), str(tmp_path))


@pytest.mark.parametrize(("resolutions", "said"), [((16,), True), ((16, 4), False), ((), False)])
def test_attention_at_no_resolution_of_the_network_is_said(caplog, resolutions, said):
  config = tiny(model__name="ncsnpp", model__attn_resolutions=resolutions, model__ch_mult=(1, 2))
  networks.warn_of_attention(resolve(config), (8, 8, 1))
  assert ("(16,) names none of the network's resolutions (8, 4)" in caplog.text) == said


def test_suggested_noise_levels_are_on_the_scale_of_ve_and_are_accepted(capsys):
  """VP trains on [-1, 1] and VE on [0, 1]: the largest distance is that of VE's, whatever the config's SDE."""
  found = noise_scales.suggest_sigmas(tiny())
  flags = capsys.readouterr().out.splitlines()[-1].split()
  images = data.load(resolve(tiny()), "train").image.reshape(1437, -1) / 16.0
  largest = max(np.linalg.norm(images - row, axis=1).max() for row in images)
  assert found["model.sigma_max"] == pytest.approx(largest, abs=0.01)
  assert flags == [f"--config.{key}={value}" for key, value in found.items()]
  config = resolve(tiny(**{key.replace(".", "__"): value for key, value in found.items()}))
  assert not any(why_unread(config, key) for key in found)


@pytest.mark.parametrize(
  ("name", "content", "line"),
  [
    ("checkpoint_8", b"<!DOCTYPE html><html>Virus scan warning</html>", "is a web page, not the file"),
    ("checkpoint_8.pth", b"\n<html><body>", "is a web page, not the file"),
    ("model/config.json", b'{"block_out_channels": [32, 64],', "config.json' cannot be read (JSONDecodeError"),
    (
      "edm.pkl",
      b"\x80\x05\x95\x10\x00\x00\x00\x00\x00\x00\x00cbuiltins\neval\n.",
      "is refused as a PyTorch checkpoint",
    ),
    ("empty.pth", b"", "cannot be read"),
  ],
)
def test_files_that_are_no_weights_are_named_in_one_line(tmp_path, name, content, line):
  path = tmp_path / name
  path.parent.mkdir(exist_ok=True)
  path.write_bytes(content)
  source = path.parent if path.suffix == ".json" else path
  with pytest.raises(BadInput) as error:
    transfer.import_weights(tiny(model__name="ncsnpp"), str(tmp_path / "run"), str(source))
  assert line in str(error.value)
  assert len(str(error.value).splitlines()) == 1
