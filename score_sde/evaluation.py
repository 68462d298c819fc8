"""Evaluation of trained models: losses, bits/dim, samples; pictures and a report of them."""

import hashlib
import importlib.metadata
import json
import logging
import math
import pathlib
import platform
import shutil
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import checkpoints, data, features, metrics, parallel, pictures
from score_sde.batch import example_keys, fold
from score_sde.bounds import chain_bound, evidence_bound
from score_sde.config import BadInput, as_dict, sde_name, signature
from score_sde.experiment import Experiment, Params, build, make_workdir, write_json
from score_sde.likelihood import bits_per_dim, log_likelihood, normalize
from score_sde.progress import Bar
from score_sde.sde import LinearSDE

log = logging.getLogger(__name__)

# Streams of the evaluation's key.
SAMPLES, LIKELIHOOD, LOSS, START = range(4)

# Streams of an example's key.
DATA, PROBE = range(2)

# How a likelihood is printed: bounds are from above.
BOUND = {"ode": "", "elbo": "at most ", "chain": "at most "}

# Samples in a picture.
SHOWN = 100


def _title(experiment: Experiment, step: int, nfe: float) -> str:
  s = experiment.config.sampling
  if s.method == "ode":
    how = f"probability-flow ODE ({s.solver})"
  elif s.method != "pc":
    how = f"{s.method}, {s.grid} grid"
  else:
    how = f"{s.predictor}" + (f" + {s.corrector}" if s.corrector != "none" else "")
  g = experiment.config.guidance
  if g.task == "class":
    how += f", {g.method} guidance {g.scale:g}"
  name = sde_name(experiment.config.training.sde)
  return f"{data.name(experiment.config)} · {name} · step {step:,}\n{how}, {nfe:.0f} score evaluations"


def draw_samples(experiment: Experiment, params: Params, total: int, frames: int = 0) -> tuple[np.ndarray, float, list]:
  """Exactly `total` samples, in batches of eval.batch_size, the i-th from the i-th key whatever the batches.

  Where there are classes, samples take them in turn, or all guidance.label.

  Returns:
    the samples on the scale of the data, the mean number of score evaluations, and `frames` frames of the first batch.
  """
  config = experiment.config
  key = jax.random.fold_in(jax.random.key(config.seed), SAMPLES)
  size = min(config.eval.batch_size, total)
  collected, nfe, trajectory = [], [], []
  for first in range(0, total, size):
    name = f"sample {first + 1} to {min(first + size, total)} of {total}"
    with Bar(name, 1, " steps") as bar:
      shape = (size, *experiment.shape)
      options = {"first": first, "frames": 0 if first else frames, "progress": bar.step}
      options["condition"] = experiment.labels(first, size)
      options["start"] = experiment.start(jax.random.fold_in(key, START), first, size)
      x, info = experiment.sampler(experiment.score(params), key, shape, **options)
    trajectory = info.get("trajectory", trajectory)
    keep = min(size, total - first)
    finite = np.asarray(info["finite"])[:keep]
    if not finite.all():
      log.warning("%s", _what_failed(first, finite, np.asarray(info["t"])[:keep] if "t" in info else None))
    collected.append(np.asarray(data.inverse(config, x))[:keep])
    nfe.append(np.mean(info["nfe"]))
  return np.concatenate(collected), float(np.mean(nfe)), trajectory


def _what_failed(first: int, finite: np.ndarray, reached: np.ndarray | None) -> str:
  """Names the samples that are not `finite`, and the time where each of those stood that ran out of steps."""
  failed = np.flatnonzero(~finite)
  name = lambda i: str(first + i) if reached is None else f"{first + i} (t = {reached[i]:.3g})"
  some = ", ".join(name(i) for i in failed[:8]) + (", ..." if len(failed) > 8 else "")
  return f"{len(failed)} of {len(finite)} samples are not finite or exceeded sampling.max_steps: {some}."


def draw(experiment: Experiment, params: Params, step: int, path: pathlib.Path) -> None:
  """Writes the grid of sampling.num_samples samples to `path`."""
  samples, nfe, _ = draw_samples(experiment, params, experiment.config.sampling.num_samples)
  pictures.sample_grid(path, samples[:SHOWN], _title(experiment, step, nfe))


def to_uint8(samples: np.ndarray) -> np.ndarray:
  """Images in [0, 1], rounded to 256 levels."""
  return np.round(np.clip(np.nan_to_num(samples), 0, 1) * 255).astype(np.uint8)


def open_workdir(workdir: str) -> pathlib.Path:
  """The folder of a run that has checkpoints. Raises BadInput where there are none."""
  if not checkpoints.exists(workdir):
    raise BadInput(f"workdir {workdir!r} holds no checkpoints. Train first: --mode=train with this config and workdir.")
  return make_workdir(workdir)


def restore(opened: Any, experiment: Experiment, workdir: str, step: int | None = None) -> tuple[int, Params]:
  """(step, EMA parameters) of the newest sound checkpoint, or that of `step`."""
  targets = {"ema_params": experiment.abstract_params()}
  step, items = checkpoints.restore(opened, targets, signature(experiment.config), workdir, step)
  return step, items["ema_params"]


def sample(config: ConfigDict, workdir: str, experiment: Experiment | None = None) -> None:
  """Draws sampling.num_samples samples of the newest checkpoint in `workdir`; `experiment` is `build(config)`, if made.

  Writes samples.png (a grid), samples.npz ("samples": uint8 images, or points) and denoising.png (one sample from
  noise to data).

  Raises:
    BadInput: where there is no checkpoint, or one of another model.
    Interrupted: when asked to stop.
  """
  experiment = experiment or build(config)
  config = experiment.config
  if config.training.task == "classifier":
    raise BadInput("training.task='classifier' draws no samples. It guides those of another run: guidance.classifier.")
  path = open_workdir(workdir)
  with checkpoints.manager(workdir) as opened:
    step, params = restore(opened, experiment, workdir)
  samples, nfe, trajectory = draw_samples(experiment, params, config.sampling.num_samples, frames=9)
  if not parallel.is_first_host():
    return
  title = _title(experiment, step, nfe)
  reference = None
  if not data.is_image(config):
    reference = data.load(config, "test").gather(np.arange(min(len(samples), 2000)))["image"]
  shown = samples if reference is not None else samples[:SHOWN]
  pictures.sample_grid(path / "samples.png", shown, title, reference)
  stored = to_uint8(samples) if data.is_image(config) else samples
  pictures.save_atomically(path / "samples.npz", lambda file: np.savez_compressed(file, samples=stored))
  _draw_denoising(path / "denoising.png", experiment, params, trajectory, title)
  if reference is not None and experiment.model.potential:
    _draw_density(path / "density.png", experiment, params, reference, title)
  log.info("Wrote samples.png, samples.npz and denoising.png to %s.", path)


def _draw_denoising(path, experiment, params, trajectory, title):
  """One sample (all of them, for points) at every frame, with E[x_0 | x_t] by Tweedie's formula below."""
  estimate = parallel.map_batch(lambda params, x, t: experiment.model.data(params, x, t, y), (None, 0, 0))
  y = experiment.labels(0, 1) if experiment.config.model.num_classes else None
  frames = []
  for t, x, _ in trajectory:
    if not data.is_image(experiment.config):
      frames.append((t, x, None))
      continue
    time_of = jnp.full((1,), max(t, experiment.config.sampling.eps), jnp.float32)
    inverse = lambda a: np.asarray(data.inverse(experiment.config, a))
    expected = None
    if isinstance(experiment.sde, LinearSDE):
      expected = inverse(parallel.unshard(estimate(params, *parallel.shard((jnp.asarray(x[:1]), time_of))), 1)[0])
    frames.append((t, inverse(x[0]), expected))
  below = "\nabove: x(t), scaled to its own range; below: what the model expects it to become"
  pictures.denoising(path, frames, title + (below if data.is_image(experiment.config) else ""))


def _draw_density(path, experiment, params, reference, title):
  """The normalized density of an energy-based model of points, at three levels of noise.

  The less noise, the less scores tell of how much mass lies here and how much there, with nothing in between.
  """
  model, largest = experiment.model, np.abs(reference).max()
  log_density = jax.jit(lambda params, x, t: model.log_density(params, x, jnp.full(len(x), t, x.dtype)))
  panels = []
  for share in (0.5, 0.2, 0.05):
    scale = jnp.full(1, share * np.std(reference))
    x = jnp.zeros((1, 2))
    linear = isinstance(experiment.sde, LinearSDE)
    t = experiment.sde.time_of_log_snr(-2 * jnp.log(scale)) if linear else experiment.sde.time_of_scale(x, scale)
    level = model.level(t, x)
    limit = np.full(2, float(level.alpha[0] * largest + 2 * level.sigma[0]))
    points, log_p, _ = normalize(lambda x, t=t: log_density(params, x, t[0]), -limit, limit)
    panels.append((f"t = {float(t[0]):.2g}", np.asarray(points), np.asarray(log_p)))
  pictures.density(
    path, panels, reference, f"{title}\ndensity exp(-energy) / Z, noise of 1/2, 1/5 and 1/20 of the data"
  )


# --- numbers ------------------------------------------------------------------------------------------------------


def mean_loss(experiment: Experiment, params: Params, source: data.Source, key: jax.Array) -> dict[str, float]:
  """The training loss on all of `source`, one noise and time an example, with its standard error."""
  config = experiment.config
  total = min(len(source), config.eval.num_examples or len(source))

  def losses(params, key, batch):
    keys = example_keys(key, batch["index"])
    x = data.prepare(config, fold(keys, DATA), batch["image"], train=False)
    y = experiment.classes(batch["label"])
    return experiment.loss(params, fold(keys, PROBE), x, batch["index"], total, train=False, y=y)

  run = parallel.map_batch(losses, (None, None, 0))
  values = _over_batches("loss", config, source, lambda batch, _: run(params, key, parallel.shard(batch)), None)
  return _mean_and_error("loss", values)


def accuracy(
  experiment: Experiment, params: Params, source: data.Source, key: jax.Array, picture: pathlib.Path, step: int
) -> dict[str, float]:
  """The share of `source` that a classifier names rightly at ten noise levels, from little noise to the most.

  Returns:
    "accuracy" at the least noise, and "accuracies" {sigma / alpha: share}; `picture` gets their curve.
  """
  config, sde = experiment.config, experiment.sde
  last, first = (float(sde.log_snr(jnp.asarray(t))) for t in (config.training.eps, sde.T))
  ratios = np.geomspace(max(np.exp(-last / 2), 0.01), np.exp(-first / 2), 10)
  times = np.asarray(sde.time_of_log_snr(jnp.asarray(-2 * np.log(ratios), jnp.float32)))

  def right(params, key, t, batch):
    keys = example_keys(key, batch["index"])
    x = data.prepare(config, fold(keys, DATA), batch["image"], train=False)
    logits = experiment.model.at_time(params, fold(keys, PROBE), x, jnp.full(keys.shape, t))
    return jnp.argmax(logits, axis=1) == batch["label"]

  run = parallel.map_batch(right, (None, None, None, 0))
  at = lambda t: _over_batches("accuracy", config, source, lambda b, _: run(params, key, t, parallel.shard(b)), None)
  shares = [float(at(t).mean()) for t in times]
  if parallel.is_first_host():
    title = f"{data.name(config)} · classifier under {sde_name(config.training.sde)} · step {step:,}"
    pictures.curves(picture, {"accuracy": (ratios, np.array(shares))}, title, xlabel="sigma / alpha", log=True)
  return {"accuracy": shares[0], "accuracies": {f"{r:.3g}": s for r, s in zip(ratios, shares, strict=True)}}


def mean_bits_per_dim(
  experiment: Experiment, params: Params, source: data.Source, key: jax.Array, cache: pathlib.Path | None = None
) -> dict[str, Any]:
  """Bits/dim of `source` (nats of points) over eval.num_repeats dequantizations, as eval.likelihood says.

  "ode" is the likelihood of the probability-flow ODE; "elbo" and "chain" bound that of the reverse-time SDE and of the
  discrete chain, from above. With a folder `cache` the batches that are done are kept there, and not done again.

  Returns:
    "bits_per_dim" and its standard error over examples, the mean number of evaluations, and how many solves failed.
  """
  config, e = experiment.config, experiment.config.eval
  dims = math.prod(experiment.shape)
  log_p, score = _likelihood(experiment), experiment.score(params)
  # Likelihoods are those of dequantized data, however the model was trained; the chain's is of the images themselves.
  dequantized = ConfigDict(config).unlock()
  dequantized.data.uniform_dequantization = e.likelihood != "chain"
  prepare = jax.jit(lambda keys, image: data.prepare(dequantized, fold(keys, DATA), image, train=False))

  def run(batch, repeat):
    keys = example_keys(jax.random.fold_in(key, repeat), batch["index"])
    y = experiment.condition(batch["label"])
    return jnp.stack(log_p(score, fold(keys, PROBE), prepare(keys, batch["image"]), y), axis=1)[None]

  name = f"bits/dim ({e.likelihood})"
  repeats = [_over_batches(name, config, source, run, repeat, cache) for repeat in range(e.num_repeats)]
  log_density = np.mean([r[:, 0] for r in repeats], axis=0)
  nfe, reached = np.concatenate(repeats)[:, 1].mean(), np.concatenate(repeats)[:, 2]
  if not data.is_image(config):
    result = _mean_and_error("nats", -log_density)
  elif e.likelihood == "chain":
    result = _mean_and_error("bits_per_dim", -log_density / (dims * math.log(2)))
  else:
    scale = 0.5 if config.data.centered else 1.0
    result = _mean_and_error("bits_per_dim", np.asarray(bits_per_dim(log_density, dims, config.data.levels, scale)))
  failed = np.flatnonzero(~(reached >= experiment.sde.T))
  if len(failed):
    some = ", ".join(f"{i % len(log_density)} (t = {reached[i]:.3g})" for i in failed[:8])
    log.warning("%d of %d likelihood solves exceeded sampling.max_steps: %s.", len(failed), len(reached), some)
  counts = {"likelihood_nfe": float(nfe), "likelihood_failed": len(failed), "examples": len(log_density)}
  return {"likelihood": e.likelihood} | result | counts


def _likelihood(experiment: Experiment) -> Callable[..., tuple[jax.Array, jax.Array, jax.Array]]:
  """(score, keys, x, y) -> (log-density or log-probability, evaluations, time reached), each (B,)."""
  config, e, sde = experiment.config, experiment.config.eval, experiment.sde
  if e.likelihood == "ode":
    log_p = log_likelihood(
      sde, eps=e.eps, rtol=e.rtol, atol=e.atol, probe=e.probe, num_probes=e.num_probes,
      max_steps=config.sampling.max_steps,
    )  # fmt: skip

    def by_ode(score, keys, x, y):
      log_density, _, nfe, t = log_p(score, keys, x, y)
      return log_density, nfe.astype(jnp.float32), t

    return by_ode
  if e.likelihood == "elbo":
    bound, evaluations = evidence_bound(sde, eps=e.eps, num_times=e.num_times), e.num_times + 1
  else:
    bound = chain_bound(
      sde, num_scales=config.model.num_scales, low=-1.0 if config.data.centered else 0.0, high=1.0,
      levels=config.data.levels, posterior_variance=config.sampling.posterior_variance is not False,
    )  # fmt: skip
    evaluations = config.model.num_scales

  def by_bound(score, keys, x, y):
    constant = lambda value: jnp.full(x.shape[:1], value, jnp.float32)
    return bound(score, keys, x, y), constant(evaluations), constant(sde.T)

  return by_bound


def _over_batches(name, config, source, run, repeat, cache=None):
  """Concatenated results of `run` on all batches of `source`, each filled up to the same size.

  A batch whose results are in the folder `cache` is read from there, and every other written to it.
  """
  readers = data.in_order(source, config.eval.batch_size, config.eval.num_examples)
  total = min(len(source), config.eval.num_examples or len(source))
  size = min(config.eval.batch_size, -(-total // parallel.device_count()) * parallel.device_count())
  results = []
  with Bar(name, total, " examples") as bar:
    for i, read in enumerate(readers):
      file = cache and cache / f"repeat_{repeat}_batch_{i:06d}.npy"
      if file and file.exists():
        results.append(np.load(file))
        bar.show(min((i + 1) * config.eval.batch_size, total))
        continue
      batch = read()
      n = len(batch["label"])
      batch["index"] = np.arange(n, dtype=np.int32) + i * config.eval.batch_size
      batch = {k: np.concatenate([v, np.repeat(v[-1:], size - n, axis=0)]) for k, v in batch.items()}
      out = np.asarray(run(batch, repeat))
      results.append(out.reshape(-1, *out.shape[2:])[:n])
      if file and parallel.is_first_host():
        pictures.save_atomically(file, lambda handle, done=results[-1]: np.save(handle, done))
      bar.step(min((i + 1) * config.eval.batch_size, total), total)
  return np.concatenate(results)


def _mean_and_error(name: str, values: np.ndarray) -> dict[str, float]:
  values = np.asarray(values, np.float64)
  return {name: float(values.mean()), f"{name}_error": float(values.std(ddof=1) / math.sqrt(len(values)))}


def _fingerprint(config: ConfigDict, source: data.Source) -> str:
  """Of everything that the likelihood of a checkpoint depends on: another one begins with other batches."""
  settings = {name: as_dict(config[name]) for name in ("data", "model", "sampling", "eval", "guidance")}
  trained = {"sde": config.training.sde, "continuous": config.training.continuous}
  depends = {"seed": config.seed, "examples": len(source)} | trained | settings
  return hashlib.sha256(json.dumps(depends, sort_keys=True, default=list).encode()).hexdigest()[:8]


def versions() -> dict[str, str]:
  """Versions of Python and of the libraries that numbers depend on."""
  names = ("score_sde", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy")
  return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def _checkpoints_to_evaluate(config: ConfigDict, steps: list[int]) -> list[int | None]:
  """Snapshots begin_ckpt to end_ckpt (snapshot k is step k * snapshot_freq), or [None], the latest."""
  begin, end = config.eval.begin_ckpt, config.eval.end_ckpt
  if begin is None and end is None:
    return [None]
  frequency = config.training.snapshot_freq
  begin = 1 if begin is None else begin
  end = max(steps, default=0) // frequency if end is None else end
  wanted = [k * frequency for k in range(begin, end + 1)]
  missing = [s for s in wanted if s not in steps]
  if missing or not wanted:
    raise BadInput(
      f"eval.begin_ckpt={begin} to eval.end_ckpt={end} ask for steps {wanted}, and the workdir has {sorted(steps)} "
      f"(snapshot k is step k * {frequency})."
    )
  return wanted


def evaluate(config: ConfigDict, workdir: str, experiment: Experiment | None = None) -> None:
  """Evaluates checkpoints in `workdir` as config.eval says; prints and writes report.json.

  `experiment` is `build(config)`, where that was made before.

  Raises:
    BadInput: where there is no checkpoint, or one of another model, or nothing to evaluate is enabled.
    Interrupted: when asked to stop.
  """
  experiment = experiment or build(config)
  path = open_workdir(workdir)
  config, e = experiment.config, experiment.config.eval
  if config.guidance.task not in ("none", "class"):
    raise BadInput(f"guidance.task={config.guidance.task!r} is of --mode=sample; an evaluation knows 'class' alone.")
  if not (e.enable_loss or e.enable_bpd or e.enable_sampling):
    raise BadInput("Nothing to evaluate: set eval.enable_loss, eval.enable_bpd or eval.enable_sampling.")
  source = data.load(config, e.bpd_dataset)
  compared = _reference(config) if e.enable_sampling and e.features else None
  key = jax.random.key(config.seed + 1)
  rows = []
  with checkpoints.manager(workdir) as opened:
    wanted = _checkpoints_to_evaluate(config, list(opened.all_steps()))
    for step in wanted:
      step, params = restore(opened, experiment, workdir, step)
      row: dict[str, Any] = {"step": step}
      start = time.monotonic()
      if e.enable_loss:
        row |= mean_loss(experiment, params, source, jax.random.fold_in(key, LOSS))
      if config.training.task == "classifier":
        row |= accuracy(experiment, params, source, jax.random.fold_in(key, LOSS), path / "accuracy.png", step)
      if e.enable_bpd:
        cache = path / "eval" / f"likelihood_{step:08d}_{_fingerprint(config, source)}"
        row |= mean_bits_per_dim(experiment, params, source, jax.random.fold_in(key, LIKELIHOOD), cache)
      if e.enable_sampling:
        row |= _write_samples(experiment, params, step, path, compared)
      row["seconds"] = round(time.monotonic() - start, 1)
      rows.append(row)
  report = {
    "dataset": data.name(config),
    "split": e.bpd_dataset,
    "sde": config.training.sde,
    "model": config.model.name,
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(experiment.abstract_params())),
    "seed": config.seed,
    "devices": parallel.describe(),
    "versions": versions(),
    "checkpoints": rows,
  }
  if parallel.is_first_host():
    write_json(path / "report.json", report)
    for done in (path / "eval").glob("likelihood_*"):
      shutil.rmtree(done)
    for row in rows:
      print(_line(row, report), flush=True)


def _line(row: dict[str, Any], report: dict[str, Any]) -> str:
  parts = [f"{report['dataset']}, {sde_name(report['sde'])}, step {row['step']:,}:"]
  if "loss" in row:
    parts.append(f"loss {row['loss']:.4f} ± {row['loss_error']:.4f}")
  if "accuracy" in row:
    levels = ", ".join(f"{share:.1%} at {ratio}" for ratio, share in row["accuracies"].items())
    parts.append(f"{row['accuracy']:.1%} right without noise (by sigma / alpha: {levels})")
  for name, unit in (("bits_per_dim", "bits/dim"), ("nats", "nats")):
    if name in row:
      parts.append(
        f"{BOUND[row['likelihood']]}{row[name]:.3f} ± {row[name + '_error']:.3f} {unit} "
        f"on {row['examples']} {report['split']} examples "
        f"({row['likelihood_nfe']:.0f} evaluations each)"
      )
  if "samples" in row:
    parts.append(f"{row['samples']} samples in {row['samples_file']} ({row['sampling_nfe']:.0f} evaluations each)")
  for name in ("fid", "kid", "inception_score", "precision", "recall"):
    if name in row:
      parts.append(f"{name.replace('_', ' ')} {row[name]:.4g}")
  return " ".join(parts[:1]) + " " + ", ".join(parts[1:])


def _reference(config: ConfigDict) -> tuple[features.Extractor, features.Reference]:
  """What samples are compared with: eval.reference, or the training images themselves.

  Raises:
    BadInput: for vectors, or features and a reference that cannot be had or do not belong together.
  """
  if not data.is_image(config):
    raise BadInput(f"eval.features={config.eval.features!r} are of images, not of {config.data.dataset!r}.")
  extractor = features.make(config)
  if config.eval.reference:
    return extractor, features.read(config.eval.reference, extractor)
  return extractor, features.of_data(config, extractor, "train")


def sample_metrics(
  config: ConfigDict, samples: np.ndarray, extractor: features.Extractor, reference: features.Reference
) -> dict[str, float]:
  """FID, inception score, and, where the reference keeps features, KID, precision and recall, of uint8 samples."""
  parts = np.split(samples, range(config.eval.batch_size, len(samples), config.eval.batch_size))
  found, logits = features.collect(extractor, parts, config.eval.num_features)
  a, b = found.moments, reference.moments
  score, spread = metrics.inception_score(logits)
  row = {
    "features": extractor.name,
    "fid": metrics.frechet_distance(a.mean, a.covariance, b.mean, b.covariance),
    "inception_score": score,
    "inception_score_std": spread,
  }
  if reference.features is not None:
    size = min(1000, len(found.features), len(reference.features))
    row["kid"], row["kid_std"] = metrics.kid(found.features, reference.features, subset_size=size)
    row["precision"], row["recall"] = metrics.precision_recall(found.features, reference.features)
  return row


def _write_samples(
  experiment: Experiment, params: Params, step: int, path: pathlib.Path, compared: tuple | None
) -> dict[str, Any]:
  """Exactly eval.num_samples samples to eval/samples_<step>.npz, and their metrics against what they are `compared`."""
  config, total = experiment.config, experiment.config.eval.num_samples
  samples, nfe, _ = draw_samples(experiment, params, total)
  samples = to_uint8(samples) if data.is_image(config) else samples
  file = path / "eval" / f"samples_{step:08d}.npz"
  if parallel.is_first_host():
    pictures.save_atomically(file, lambda handle: np.savez_compressed(handle, samples=samples))
  row = {"samples": total, "samples_file": str(file), "sampling_nfe": nfe}
  return row | (sample_metrics(config, samples, *compared) if compared else {})
