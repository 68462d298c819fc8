"""Samples of a trained model: a few for a picture, or any number in batches that are kept if the run is killed."""

import io
import logging
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_sde.batch import Array
from score_sde.likelihood import normalize
from score_sde.run import data, devices
from score_sde.run.config import AUTOGUIDANCE, GIVEN_TASKS, BadInput, sde_name
from score_sde.run.config.errors import foreign
from score_sde.run.experiment import Experiment, Params
from score_sde.run.report import pictures
from score_sde.run.report.progress import Bar
from score_sde.run.storage import Folder, Path, arrays_of, save_atomically
from score_sde.run.workdir import class_names
from score_sde.sde import linear

log = logging.getLogger(__name__)

# Streams of the evaluation's key.
SAMPLES, LIKELIHOOD, LOSS, START = range(4)

# Samples in a picture.
SHOWN = 100


def title(experiment: Experiment, step: int, nfe: float) -> str:
  """Returns the two title lines of a picture: the data, the SDE and the step; the sampler and its nfe."""
  name = sde_name(experiment.config.training.sde, experiment.sde)
  number = f"{nfe:.0f} evaluation{'' if round(nfe) == 1 else 's'} per sample"
  return f"{data.name(experiment.config)} · {name} · step {step:,}\n{sampler_name(experiment)}, {number}"


# Names of samplers and grids in pictures and reports.
_WORDS = {
  "euler_maruyama": "Euler-Maruyama",
  "reverse_diffusion": "reverse diffusion",
  "ancestral_sampling": "ancestral sampling",
  "none": "no predictor",
  "langevin": "Langevin",
  "ald": "annealed Langevin",
  "ncsn": "annealed Langevin dynamics",
  "ddpm": "DDPM",
  "ddim": "DDIM",
  "dpm_solver": "DPM-Solver++(2M)",
  "dpm_solver_sde": "DPM-Solver++(2M) SDE",
  "unipc": "UniPC",
  "sa_solver": "SA-Solver",
  "heun": "Heun",
  "log_snr": "log-SNR",
  "karras": "Karras",
}


def sampler_name(experiment: Experiment) -> str:
  """Returns the sampler in words, e.g. "reverse diffusion with Langevin corrector, 1000 steps"."""
  s, g = experiment.config.sampling, experiment.config.guidance
  if s.method == "ode":
    how = f"probability-flow ODE ({s.solver})"
  elif s.method == "pc":
    corrected = f" with {_WORDS.get(s.corrector, s.corrector)} corrector" if s.corrector != "none" else ""
    how = f"{_WORDS.get(s.predictor, s.predictor)}{corrected}, {s.num_steps} steps"
  elif s.method == "adaptive_sde":
    how = f"adaptive SDE (rtol {s.sde_rtol:g})"
  elif s.method == "consistency":
    how = "consistency model"
  else:
    method = s.method.rpartition(":")[2]  # a user's own is named by its function
    how = f"{_WORDS.get(method, method)}, {_WORDS.get(s.grid, s.grid)} grid"
  guided = g.task in GIVEN_TASKS or g.method == AUTOGUIDANCE
  return how + (f", {g.method.removesuffix('guidance').replace('_', '-')} guidance {g.scale:g}" if guided else "")


def _sample(experiment: Experiment, params: Params, first: int, size: int, **options: Any) -> tuple[Array, dict]:
  """Draws samples `first` to first + size. Returns them on the scale of the data, and the sampler's `info`.

  With classes, all samples have guidance.label; if that is unset, they have the classes in turn.
  """
  config = experiment.config
  key = jax.random.fold_in(jax.random.key(config.seed), SAMPLES)
  condition = experiment.asked(first, size)
  x_T = experiment.start(jax.random.fold_in(key, START), first, size)
  shape = (size, *experiment.shape)
  x, info = experiment.draw(experiment.score(params), key, shape, first=first, condition=condition, x_T=x_T, **options)
  return experiment.scaling.inverse(x), info


def _warn_of_failures(first: int, info: dict, keep: int) -> np.ndarray:
  """Returns which of the first `keep` samples are finite. Warns of the others, with the times they reached."""
  finite = np.asarray(info["finite"])[:keep]
  reached = np.asarray(info["t"])[:keep] if "t" in info else None
  failed = np.flatnonzero(~finite)
  if len(failed):
    name = lambda i: str(first + i) if reached is None else f"{first + i} (t = {reached[i]:.3g})"
    some = ", ".join(name(i) for i in failed[:8]) + (", ..." if len(failed) > 8 else "")
    log.warning("%d of %d samples are not finite or exceeded sampling.max_steps: %s.", len(failed), len(finite), some)
  return finite


def _batch(
  experiment: Experiment, params: Params, first: int, total: int, bar: Bar, **options: Any
) -> tuple[dict[str, np.ndarray], dict]:
  """Draws the batch of `total` samples that begins at `first`.

  The last batch is drawn at full size, to avoid another compilation, and then cut.

  Returns:
    ({"samples", "finite" (n,), "nfe" (n,)}, the sampler's `info`).
  """
  size = min(experiment.config.eval.batch_size, total)
  keep = min(size, total - first)
  progress = lambda done, steps: bar.step(first + keep * done // steps, total)
  x, info = _sample(experiment, params, first, size, progress=progress, **options)
  finite = _warn_of_failures(first, info, keep)
  nfe = np.broadcast_to(np.asarray(info["nfe"], np.float32), size)[:keep]
  return {"samples": np.asarray(x)[:keep], "finite": finite, "nfe": nfe}, info


def draw_samples(
  experiment: Experiment, params: Params, total: int, frames: int = 0
) -> tuple[np.ndarray, float, np.ndarray, list]:
  """Draws exactly `total` samples in batches of eval.batch_size. Sample i has the i-th key for any size of batches.

  Returns:
    the samples on the scale of the data, the mean nfe, which samples are finite (n,), and `frames` frames of the first
      batch.
  """
  size = min(experiment.config.eval.batch_size, total)
  collected, nfe, finite, trajectory = [], [], [], []
  with Bar("samples", total, " images") as bar:
    for first in range(0, total, size):
      batch, info = _batch(experiment, params, first, total, bar, frames=0 if first else frames)
      trajectory = info.get("trajectory", trajectory)
      collected.append(batch["samples"])
      nfe.append(batch["nfe"])
      finite.append(batch["finite"])
  return np.concatenate(collected), float(np.mean(np.concatenate(nfe))), np.concatenate(finite), trajectory


def draw(experiment: Experiment, params: Params, step: int, path: Path, workdir: Path) -> None:
  """Draws sampling.num_samples samples and writes a grid of at most SHOWN of them to `path`."""
  samples, nfe, _, _ = draw_samples(experiment, params, experiment.config.sampling.num_samples)
  if devices.is_first_host():
    shown = samples[:SHOWN]
    names, bounded = captions(experiment, workdir, len(shown)), data.has_levels(experiment.config)
    pictures.sample_grid(path, shown, title(experiment, step, nfe), captions=names, bounded=bounded)


def captions(experiment: Experiment, workdir: Path, n: int) -> list[str] | None:
  """Returns the names of the classes of the first `n` samples; None for samples without a class."""
  labels = experiment.labels(0, n)
  if labels is None:
    return None
  names = experiment.class_names or class_names(workdir, experiment.sampled_classes)
  return [names[i] for i in labels]


def quantized(samples: np.ndarray, config: ConfigDict) -> np.ndarray:
  """Returns samples as they are stored: uint8 for up to 256 levels, uint16 for more, and floats as float32."""
  if not data.has_levels(config):
    return np.asarray(samples, np.float32)
  if config.data.levels <= 256:
    return to_uint8(samples, config.eval.quantization)
  scaled = np.clip(np.nan_to_num(samples, posinf=0, neginf=0), 0, 1) * (config.data.levels - 1)
  return (np.round(scaled) if config.eval.quantization == "round" else scaled).astype(np.uint16)


def to_uint8(samples: np.ndarray, quantization: str = "round") -> np.ndarray:
  """Quantizes images in [0, 1] to 256 gray levels: the nearest ("round"), or the one below ("truncate", official code).

  Values that are not finite become 0.
  """
  scaled = np.clip(np.nan_to_num(samples, posinf=0, neginf=0), 0, 1) * 255
  return (np.round(scaled) if quantization == "round" else scaled).astype(np.uint8)


def draw_denoising(path: Path, experiment: Experiment, params: Params, trajectory: list, heading: str) -> None:
  """Draws a picture of one sample (all samples, for points) at every frame, with E[x_0 | x_t] by Tweedie's formula."""
  config, model, scaling = experiment.config, experiment.score_model, experiment.scaling
  y: Any = experiment.given({"label": experiment.labels(0, 1), "condition": experiment.conditions(0, 1)})
  estimate = jax.jit(lambda params, x, t: model.data(params, x, t, y))
  kind = {1: "points", 2: "series"}.get(len(experiment.shape), "image")
  inverse = lambda a: np.asarray(scaling.inverse(a))
  frames: list[Any] = []
  for t, x, _ in trajectory:
    if kind == "points":
      frames.append((t, inverse(x), None))
      continue
    time = jnp.full((1,), max(t, config.sampling.eps), jnp.float32)
    expected = inverse(estimate(params, jnp.asarray(x[:1]), time)[0]) if experiment.sde.is_linear else None
    frames.append((t, inverse(x[0]), expected))
  if len(experiment.shape) == 4:  # the middle slices of a volume
    middle = lambda a: None if a is None else a[len(a) // 2]
    frames = [(t, middle(x), middle(expected)) for t, x, expected in frames]
  if kind == "image" and not scaling.has_levels:  # floats are drawn over the range of the last estimate
    last = frames[-1][2] if frames[-1][2] is not None else frames[-1][1]
    low, high = last.min(), last.max()
    scaled = lambda a: None if a is None else (a - low) / max(high - low, 1e-12)
    frames = [(t, x, scaled(expected)) for t, x, expected in frames]
  below = "\nabove: x(t), scaled to its own range; below: the model's estimate of x(0)"
  pictures.denoising(path, frames, heading + (below if kind == "image" else ""), kind)


def draw_paths(path: Path, experiment: Experiment, params: Params, trajectory: list, heading: str) -> None:
  """Draws the score at three times, as arrows, with the samples there; and the paths of samples from noise to data."""
  x = np.stack([np.asarray(experiment.scaling.inverse(frame)) for _, frame, _ in trajectory])  # (frames, N, 2)
  x = x[:, np.isfinite(x).all((0, 2))]
  times = [t for t, *_ in trajectory]
  score = jax.jit(lambda params, x, t: experiment.score_model.score(params, x, t, None))
  panels = []
  last = len(times) - 1
  for i in (last // 2, round(0.85 * last), last):
    ends = np.linspace(*pictures.limits(x[i]), 20)  # (20, 2)
    grid = np.stack(np.meshgrid(*ends.T), -1).reshape(-1, 2).astype(np.float32)
    t = jnp.full(len(grid), max(times[i], experiment.config.sampling.eps), jnp.float32)
    arrows = np.asarray(score(params, experiment.scaling.prepare(None, jnp.asarray(grid)), t))
    panels.append((times[i], grid, arrows, x[i]))
  pictures.paths(path, panels, x, heading)


def draw_density(path: Path, experiment: Experiment, params: Params, reference: np.ndarray, heading: str) -> None:
  """Draws the normalized density of an energy-based model of points, at three noise levels.

  With less noise, scores determine less well how the mass is divided among separate modes.
  """
  model, largest = experiment.score_model, np.abs(reference).max()
  log_density = jax.jit(lambda params, x, t: model.log_density(params, x, jnp.full(len(x), t, x.dtype)))
  panels = []
  for share in (0.5, 0.2, 0.05):
    scale = jnp.full(1, share * np.std(reference))
    x = jnp.zeros((1, 2))
    sde = experiment.sde
    if sde.is_linear:
      t = linear(sde, "A noise level").time_of_log_snr(-2 * jnp.log(scale))
    else:
      t = sde.time_of_scale(x, scale)
    level = model.level(t, x)
    limit = jnp.full(2, float(level.alpha[0] * largest + 2 * level.sigma[0]))
    points, log_p, _ = normalize(lambda x, t=t: log_density(params, x, t[0]), -limit, limit)
    panels.append((f"t = {float(t[0]):.2g}", np.asarray(points), np.asarray(log_p)))
  pictures.density(
    path, panels, reference, f"{heading}\ndensity exp(-energy) / Z, noise of 1/2, 1/5 and 1/20 of the data"
  )


# --- any number of samples, in files --------------------------------------------------------------------------------


def draw_batches(
  experiment: Experiment,
  params: Params,
  total: int,
  folder: Path,
  describe: Callable[[np.ndarray], dict[str, np.ndarray]] = lambda images: {},
  described: tuple[str, ...] = (),
) -> list[Path]:
  """Draws exactly `total` samples into files batch_NNNNNN.npz in `folder`. Hosts take the batches in turn.

  Files are written atomically, and batches with a sound file are not drawn again, so a killed run keeps its finished
  batches. A file holds "samples" (see `quantized`), "finite" (n,), "nfe" (n,), "seconds", and the arrays of
  describe(images), such as features; `described` are their names.

  Returns:
    the files of all hosts, in the order of the samples, once all exist.
  """
  config = experiment.config
  size = min(config.eval.batch_size, total)
  files = [folder / f"batch_{i:06d}.npz" for i in range(-(-total // size))]
  with Bar("samples", total, " images") as bar:
    for i in range(devices.host_index(), len(files), devices.host_count()):
      if _is_whole(files[i], min(size, total - i * size), experiment, described):
        bar.show(min((i + 1) * size, total))
        continue
      start = time.monotonic()
      batch, _ = _batch(experiment, params, i * size, total, bar)
      batch["seconds"] = np.asarray(time.monotonic() - start)
      batch["samples"] = quantized(batch["samples"], config)
      arrays: dict[str, Any] = batch | describe(batch["samples"])
      save_atomically(files[i], lambda file, arrays=arrays: np.savez(file, **arrays))
  devices.wait_for_all(f"samples in {folder}")
  return files


def read_batch(file: Path) -> dict[str, np.ndarray]:
  """Reads a file that `draw_batches` wrote. Raises BadInput if the file is damaged."""
  with foreign(str(file), "Repeat the command: it draws only this batch again."), arrays_of(file) as arrays:
    return dict(arrays)


def _is_whole(file: Path, n: int, experiment: Experiment, described: tuple[str, ...]) -> bool:
  """Returns whether the file of a batch of `n` samples exists and holds what `draw_batches` writes.

  Logs a warning if it exists but is damaged.
  """
  if not file.exists():
    return False
  kind = quantized(np.zeros(1), experiment.config).dtype
  try:
    found = read_batch(file)
    sound = found["samples"].shape == (n, *experiment.shape) and found["samples"].dtype == kind
    sound &= found["finite"].shape == found["nfe"].shape == (n,) and found["seconds"].shape == ()
    sound &= all(len(found[name]) == n for name in described)
  except (BadInput, KeyError, TypeError):
    sound = False
  if not sound:
    log.warning("%s is damaged; its samples are drawn again.", file)
  return sound


def save_samples(images: Iterator[np.ndarray], total: int, path: Path, kind: str) -> Path:
  """Writes `total` samples, given in batches, to path.npz, to path.array_record or as PNG files in the folder `path`.

  Only one batch is in memory at a time. Returns the path of the file or folder.
  """
  if kind == "npz":
    path = path.with_name(path.name + ".npz")
    save_atomically(path, lambda file: _write_npz(file, images, total))
  elif kind == "png":
    path.mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(_one_by_one(images)):
      content = _png(image)
      save_atomically(path / f"{i:06d}.png", lambda file, content=content: file.write(content))
  else:
    from array_record.python.array_record_module import ArrayRecordWriter

    path = path.with_name(path.name + ".array_record")
    folder = Folder(path.parent)
    unfinished = folder.local / f".{path.name}.unfinished"
    writer = ArrayRecordWriter(str(unfinished), "group_size:1")
    for image in _one_by_one(images):
      writer.write(_png(image))
    writer.close()
    unfinished.replace(folder.local / path.name)
    folder.close()
  return path


def _one_by_one(batches: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
  for batch in batches:
    yield from batch


def _png(image: np.ndarray) -> bytes:
  file = io.BytesIO()
  Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(file, "png")
  return file.getvalue()


def _write_npz(file: Any, batches: Iterator[np.ndarray], total: int) -> None:
  """Writes an NPZ of one array, "samples", batch by batch."""
  first = next(batches)
  header = {
    "descr": np.lib.format.dtype_to_descr(first.dtype),
    "fortran_order": False,
    "shape": (total, *first.shape[1:]),
  }
  with (
    zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive,
    archive.open("samples.npy", "w", force_zip64=True) as out,
  ):
    np.lib.format.write_array_header_2_0(out, header)
    out.write(first.tobytes())
    for batch in batches:
      out.write(batch.tobytes())
