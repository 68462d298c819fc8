"""Runs of `run.py --mode=sample` and `--mode=eval`: draw samples of checkpoints in a workdir, and measure them."""

import contextlib
import dataclasses
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde.errors import ScoreSDEError
from score_sde.run import checkpoints, data, devices
from score_sde.run.config import GIVEN_TASKS, BadInput, as_dict, distills_progressively, signature
from score_sde.run.config.plugins import is_plugin, load
from score_sde.run.evaluate import quality, reports, samples
from score_sde.run.evaluate.likelihoods import accuracy, keep_likelihoods, mean_bits_per_dim, mean_loss
from score_sde.run.evaluate.measures import MEASURES
from score_sde.run.evaluate.samples import LIKELIHOOD, LOSS, SHOWN
from score_sde.run.experiment import Experiment, Params, build
from score_sde.run.report import pictures
from score_sde.run.report.curves import add_evaluation, best_step
from score_sde.run.report.progress import wait
from score_sde.run.storage import Path, arrays_of, files_in, path_of, save_atomically
from score_sde.run.train_step import abstract_state, saved_form
from score_sde.run.workdir import IMPORTED, check_data, make_workdir, recalled, set_aside, write_json

log = logging.getLogger(__name__)

# Interval at which the workdir is checked for an awaited checkpoint.
POLL_SECONDS = 5.0

# States of each sample that are kept for sampling.show_paths, evenly spaced.
PATH_FRAMES = 60

# Keys of config.eval that do not change the numbers of a checkpoint.
_BESIDE = ("begin_ckpt", "end_ckpt", "checkpoint", "wait_minutes", "report", "save_samples")


def open_workdir(workdir: str) -> Path:
  """Returns the folder of a run. Raises BadInput if it has no checkpoints."""
  if not checkpoints.exists(workdir):
    official = files_in(path_of(workdir) / "checkpoints")
    if any(re.fullmatch(r"checkpoint_\d+(\.pth)?", p.name) for p in official):
      raise BadInput(
        f"workdir {workdir!r} is one of the official code. Import a checkpoint: python -m score_sde import "
        f"{official[-1]} --config=CONFIG --workdir=OTHER."
      )
    raise BadInput(f"workdir {workdir!r} holds no checkpoints. Train first: --mode=train with this config and workdir.")
  return make_workdir(workdir)


def restore(manager: Any, experiment: Experiment, workdir: str, step: int | None = None) -> tuple[int, Params]:
  """Returns (step, parameters by eval.weights) of the newest undamaged checkpoint, or of that of `step`."""
  raw = experiment.config.eval.weights == "raw"
  if raw:
    targets: dict[str, Any] = {"state": jax.eval_shape(saved_form, abstract_state(experiment))}
  else:
    targets = {"ema_params": experiment.abstract_params()}
  found = checkpoints.restore(manager, targets, signature(experiment.config), workdir, step)
  assert found is not None
  at, items = found
  if not raw:
    warn_of_short_run(experiment.config, at)
  return at, devices.local(items["state"]["params"] if raw else items["ema_params"])


def warn_of_short_run(config: ConfigDict, steps: int) -> None:
  """Logs a warning if the parameters' moving average spans more than the `steps` of the run."""
  rate = config.model.ema_rate
  if config.model.ema_warmup or not 0 < steps < 1 / (1 - rate):
    return
  log.warning(
    "The moving average of the parameters (model.ema_rate=%g) spans %s steps, and there are %s: the initial parameters "
    "still have a weight of %.0f%% in it. Evaluate with --config.eval.weights=raw, or train with "
    "--config.model.ema_warmup=True.",
    rate, f"{1 / (1 - rate):,.0f}", f"{steps:,}", 100 * rate**steps,
  )  # fmt: skip


def chosen_step(name: str, workdir: str) -> int | None:
  """Returns the step for a value of eval.checkpoint; None for the latest.

  Raises:
    BadInput: if `name` is not accepted, or is "best" but the run measured no FID.
  """
  if name == "latest":
    return None
  if name == "best":
    found = best_step(workdir)
    if found is None:
      raise BadInput(
        f"eval.checkpoint='best' of workdir {workdir!r}: its training measured no FID. Train with "
        "--config.training.fid_samples=1000 and eval.features, or name a step."
      )
    return found
  if not str(name).isdigit():
    raise BadInput(f"eval.checkpoint={name!r} is neither 'latest', nor 'best', nor a step.")
  return int(name)


def sample(config: ConfigDict, workdir: str, experiment: Experiment | None = None) -> None:
  """Draws sampling.num_samples samples of the checkpoint eval.checkpoint.

  Writes samples.png (a grid), samples.npz ("samples": uint8 images, or points; "labels": their classes) and
  denoising.png (one sample from noise to data); for energy-based models of points also density.png, and with
  sampling.show_paths paths.png. Earlier ones that were made with other settings, such as another class or sampler,
  stay under names with their time.
  `experiment` replaces `build(config)`.

  Raises:
    BadInput: if there is no checkpoint, or one of another model.
    SolvesFailed: if no sample is finite, after the files are written.
    Interrupted: after a signal to stop.
  """
  experiment = experiment or build(recalled(config, workdir))
  config = experiment.config
  if config.training.task == "classifier":
    raise BadInput(
      "training.task='classifier' draws no samples. Give its workdir as guidance.classifier to guide a score model."
    )
  if config.sampling.show_paths and experiment.shape != (2,):
    raise BadInput(f"sampling.show_paths=True needs points in the plane, not examples of the shape {experiment.shape}.")
  path = open_workdir(workdir)
  with checkpoints.manager(workdir) as manager:
    step, params = restore(manager, experiment, workdir, chosen_step(config.eval.checkpoint, workdir))
  frames = PATH_FRAMES if config.sampling.show_paths else 9
  drawn, nfe, finite, trajectory = samples.draw_samples(experiment, params, config.sampling.num_samples, frames=frames)
  if devices.is_first_host():
    _write_samples(experiment, path, step, params, drawn, nfe, trajectory)
  _need_some(int(finite.sum()), len(drawn), step)


def _write_samples(
  experiment: Experiment, path: Path, step: int, params: Params, drawn: np.ndarray, nfe: float, trajectory: list
) -> None:
  """Writes the files of `sample`."""
  config = experiment.config
  title = samples.title(experiment, step, nfe)
  stored = samples.quantized(drawn, config)
  pictured = ("samples.png", "denoising.png", "conditions.png", "density.png", "paths.png")
  labels = experiment.labels(0, len(drawn))
  arrays = {"samples": stored} | ({} if labels is None else {"labels": np.asarray(labels)})
  keep_arrays(path, "samples.npz", config, step, arrays, pictured)
  if config.sampling.show_paths:
    samples.draw_paths(path / "paths.png", experiment, params, trajectory, title)
    trajectory = [trajectory[i] for i in np.linspace(0, len(trajectory) - 1, 10).round().astype(int)]
  reference = None
  if not data.has_levels(config):
    try:
      source = data.load(config, "test")
      reference = source.gather(np.arange(min(len(drawn), len(source), 2000)))["image"]
    except BadInput:
      log.warning("The data cannot be read; the samples are drawn without them.")
  captions = samples.captions(experiment, path, SHOWN)
  bounded = data.has_levels(config)
  shown = drawn[:SHOWN] if bounded else drawn
  pictures.sample_grid(path / "samples.png", shown, title, reference, captions, bounded)
  conditions = experiment.conditions(0, len(shown))
  if conditions is not None and conditions.ndim == 4:
    low, high = conditions.min(), conditions.max()
    scaled = (conditions - low) / max(high - low, 1e-12)
    pictures.sample_grid(path / "conditions.png", scaled, f"{title}\nconditions of the samples, in the same order")
  samples.draw_denoising(path / "denoising.png", experiment, params, trajectory, title)
  if reference is not None and experiment.score_model.potential:
    samples.draw_density(path / "density.png", experiment, params, reference, title)
  log.info("Wrote samples.png, samples.npz and denoising.png to %s.", path)


def keep_arrays(
  path: Path, name: str, config: ConfigDict, step: int, arrays: dict[str, Any], beside: Sequence[str]
) -> None:
  """Writes samples as the NPZ file `name` into the workdir `path`, with a hash of the "settings" that made them.

  If there is one of other settings, it and the results `beside` it are kept under other names.
  """
  made = reports.hash_of([step, config.seed, config.eval.weights, as_dict(config.sampling), as_dict(config.guidance)])
  earlier = ""
  with contextlib.suppress(Exception), arrays_of(path / name) as kept:  # there is none, or a damaged one
    earlier = str(kept["settings"])
  if earlier != made:
    set_aside(path, (name, *beside))
  arrays = arrays | {"settings": np.array(made)}
  save_atomically(path / name, lambda file: np.savez_compressed(file, **arrays))


def _need_some(finite: int, total: int, step: int) -> None:
  """Raises SolvesFailed if none of the `total` samples is finite."""
  if total and not finite:
    raise SolvesFailed(
      f"None of the {total} samples of step {step} is finite, or they all exceeded sampling.max_steps. Use more steps, "
      "another sampler, or another checkpoint."
    )


# --- which checkpoints ----------------------------------------------------------------------------------------------


def _wanted(config: ConfigDict, workdir: str, manager: Any) -> list[int | None]:
  """Returns the steps of snapshots begin_ckpt to end_ckpt (snapshot k is step k * snapshot_freq), or [eval.checkpoint].

  Raises:
    BadInput: if a checkpoint is missing and eval.wait_minutes is 0.
  """
  begin, end, waits = config.eval.begin_ckpt, config.eval.end_ckpt, config.eval.wait_minutes > 0
  if (begin is None and end is None) or config.eval.checkpoint != "latest":
    return [chosen_step(config.eval.checkpoint, workdir)]
  steps, frequency = list(manager.all_steps()), config.training.snapshot_freq
  begin = 1 if begin is None else begin
  if end is None:
    end = (config.training.n_iters if waits else max(steps, default=0)) // frequency
  wanted = [k * frequency for k in range(begin, end + 1)]
  missing = [s for s in wanted if s not in steps]
  if len(steps) == 1 and missing == wanted and (path_of(workdir) / IMPORTED).is_file():
    log.warning("The workdir has none of the snapshots %s to %s, only step %d: it is evaluated.", begin, end, steps[0])
    return steps
  if not wanted or (missing and not waits):
    raise BadInput(
      f"eval.begin_ckpt={begin} to eval.end_ckpt={end} ask for steps {wanted}, and the workdir has {sorted(steps)} "
      f"(snapshot k is step k * {frequency}). If a training run still writes them, wait for it with "
      "--config.eval.wait_minutes."
    )
  return wanted


def _wait_for(config: ConfigDict, workdir: str, manager: Any, step: int | None) -> None:
  """Waits until the checkpoint of `step` exists.

  Raises:
    BadInput: if it does not come within eval.wait_minutes, or the training run is past `step` and has not kept it.
    Interrupted: after a signal to stop.
  """
  minutes = config.eval.wait_minutes
  if step is None or not minutes or step in manager.all_steps():
    return
  log.info("Waiting up to %g minutes for the checkpoint of step %d in %s.", minutes, step, workdir)
  deadline = time.monotonic() + 60 * minutes
  while step not in manager.all_steps():
    newer = [s for s in manager.all_steps() if s > step]
    if newer:
      raise BadInput(
        f"The checkpoint of step {step} was waited for, and vanished from workdir {workdir!r} or was never written: "
        f"there is one of step {newer[0]}. The training keeps multiples of training.snapshot_freq; use its value here."
      )
    if time.monotonic() > deadline:
      raise BadInput(
        f"No checkpoint of step {step} came into workdir {workdir!r} within eval.wait_minutes={minutes:g}; it has "
        f"{sorted(manager.all_steps()) or 'none'}. Is its training still running?"
      )
    wait(min(POLL_SECONDS, max(deadline - time.monotonic(), 0.01)))
    manager.reload()


# --- their evaluation -----------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class _Plan:
  """Plan: the parts of an evaluation that are the same for all checkpoints."""

  experiment: Experiment
  source: data.Source
  path: Path
  measure: quality.Measure | None
  extractor: Any
  own_metrics: Any
  fingerprint: str


def _plan(experiment: Experiment, path: Path) -> _Plan:
  """Checks the config before long work begins, and returns the plan. Raises BadInput if the config is wrong."""
  config, e = experiment.config, experiment.config.eval
  if config.guidance.task not in ("none", *GIVEN_TASKS):
    raise BadInput(
      f"guidance.task={config.guidance.task!r} needs --mode=sample; --mode=eval only accepts "
      f"{' and '.join(map(repr, GIVEN_TASKS))}."
    )
  if not (e.enable_loss or e.enable_bpd or e.enable_sampling):
    raise BadInput("Nothing to evaluate: set eval.enable_loss, eval.enable_bpd or eval.enable_sampling.")
  if e.enable_loss and experiment.loss is None:
    raise BadInput(
      f"The loss of this model needs its teacher, and training.teacher={config.training.teacher!r} does not exist: "
      "give its new place, or --config.eval.enable_loss=False."
    )
  if e.enable_sampling and config.training.task == "classifier":
    raise BadInput("training.task='classifier' draws no samples: set --config.eval.enable_sampling=False.")
  drawable = data.is_image(config) and experiment.shape[-1] in (1, 3, 4)
  if e.enable_sampling and e.save_samples in ("png", "array_record") and not drawable:
    raise BadInput(f"eval.save_samples={e.save_samples!r} needs images, not {config.data.dataset!r}. Use 'npz'.")
  source = data.load(config, e.bpd_dataset)
  found = check_data(config, path, {e.bpd_dataset: source}, trains=False)
  measure, extractor = None, None
  if e.enable_sampling and e.fidelity_engine == "torch-fidelity":
    measure = quality.by_torch_fidelity(config)
  elif e.enable_sampling and e.features:
    extractor, reference = quality.compared_with(config, e.num_samples)
    measure = quality.of_files(config, extractor, reference)
  settings = {name: as_dict(config[name]) for name in ("data", "model", "sampling", "eval", "guidance")}
  settings["data"].pop("accept_changes")
  settings["eval"] = {k: v for k, v in settings["eval"].items() if k not in _BESIDE}
  trained = {"sde": config.training.sde, "continuous": config.training.continuous, "eps": config.training.eps}
  depends = (
    settings
    | trained
    | {"seed": config.seed, "examples": found[e.bpd_dataset]["identity"], "features": getattr(extractor, "name", "")}
  )
  own = load("eval.metrics", e.metrics, "from (samples, test examples) to {name: number}") if e.metrics else None
  return _Plan(experiment, source, path, measure, extractor, own, reports.hash_of(depends))


def _row(plan: _Plan, step: int, params: Params, unfinished: Path) -> dict[str, Any]:
  """Returns the row of one checkpoint: all measurements of config.eval. `unfinished` keeps finished parts."""
  experiment, config, e = plan.experiment, plan.experiment.config, plan.experiment.config.eval
  # A row holds file names, which depend on the report and the format.
  kept = unfinished / f"row_{e.report}_{e.save_samples}.json"
  found = _kept_row(kept, step)
  if found is not None:
    return found
  key = jax.random.key(config.seed + 1)
  row: dict[str, Any] = {"step": step}
  start = time.monotonic()
  if e.enable_loss and distills_progressively(config.training):
    log.info(
      "The loss of progressive distillation compares with the stage before, and is not measured: see the curves."
    )
  elif e.enable_loss:
    row |= mean_loss(experiment, params, plan.source, jax.random.fold_in(key, LOSS), unfinished / "loss")
  if config.training.task == "classifier":
    picture = plan.path / "accuracy.png"
    cache = unfinished / "accuracy"
    row |= accuracy(experiment, params, plan.source, jax.random.fold_in(key, LOSS), picture, step, cache)
  if e.enable_bpd:
    cache = unfinished / "likelihood"
    found, values = mean_bits_per_dim(experiment, params, plan.source, jax.random.fold_in(key, LIKELIHOOD), cache)
    row |= found
    if devices.is_first_host():
      file = plan.path / "eval" / f"likelihood{e.report.removeprefix('report')}.npz"
      unit = "bits_per_dim" if data.has_levels(config) else "nats"
      _keep_earlier_likelihoods(file, plan.fingerprint)
      keep_likelihoods(file, plan.fingerprint, step, values, unit, getattr(plan.source, "examples", ()))
  if e.enable_sampling:
    row |= _sampled(plan, step, params, unfinished / "samples")
  row["seconds"] = round(time.monotonic() - start, 1)
  if devices.is_first_host():
    write_json(kept, row)
  return row


def _keep_earlier_likelihoods(file: Path, fingerprint: str) -> None:
  """Renames the likelihoods of an evaluation with other settings."""
  with contextlib.suppress(Exception), arrays_of(file) as arrays:  # there is none, or a damaged one
    if str(arrays["fingerprint"]) != fingerprint:
      set_aside(file.parent, (file.name,))


def _kept_row(file: Path, step: int) -> dict[str, Any] | None:
  """Returns the row that an evaluation of this step left, or None if there is none, or a damaged one."""
  if not file.exists():
    return None
  try:
    row = json.loads(file.read_text())
    if row["step"] == step and row["seconds"] >= 0:
      return row
  except (OSError, ValueError, LookupError, TypeError):
    pass
  log.warning("%s is damaged; its row is measured again.", file)
  return None


def _sampled(plan: _Plan, step: int, params: Params, folder: Path) -> dict[str, Any]:
  """Draws exactly eval.num_samples samples into `folder`, saves them by eval.save_samples and returns their metrics."""
  config, e = plan.experiment.config, plan.experiment.config.eval
  describe, more = lambda images: {}, ()
  if plan.extractor:
    describe, more = quality.describe(plan.extractor), ("features", "logits")
  files = samples.draw_batches(plan.experiment, params, e.num_samples, folder, describe, more)
  row: dict[str, Any] = {"samples": e.num_samples, "samples_file": "", "samples_failed": 0}
  if not devices.is_first_host():
    return row
  nfe, seconds = [], []
  for batch in map(samples.read_batch, files):
    nfe.append(batch["nfe"])
    seconds.append(float(batch["seconds"]) / len(batch["nfe"]))
    row["samples_failed"] += int((~batch["finite"]).sum())
  row |= {"sampling_nfe": float(np.concatenate(nfe).mean()), "seconds_per_image": float(np.median(seconds))}
  name = f"samples_{step:08d}{e.report.removeprefix('report')}"
  _keep_earlier_samples(plan, name)
  if e.save_samples != "none":
    stored = (samples.read_batch(file)["samples"] for file in files)
    row["samples_file"] = str(samples.save_samples(stored, e.num_samples, plan.path / "eval" / name, e.save_samples))
  first = samples.read_batch(files[0])["samples"][:SHOWN]
  picture = f"eval/{name}.png"
  levels = data.has_levels(config)
  shown = first / max(255, config.data.levels - 1) if levels else first
  reference = None if levels else plan.source.gather(np.arange(min(len(first), len(plan.source))))["image"]
  heading = samples.title(plan.experiment, step, row["sampling_nfe"])
  captions = samples.captions(plan.experiment, plan.path, len(shown))
  pictures.sample_grid(plan.path / picture, shown, heading, reference, captions)
  row["picture"] = picture
  if plan.measure and row["samples_failed"] == e.num_samples:
    log.warning("None of the %d samples of step %d is finite: they have no FID.", e.num_samples, step)
  elif plan.measure:
    row |= plan.measure(files)
  if plan.own_metrics:
    drawn = np.concatenate([samples.read_batch(file)["samples"] for file in files])
    row["metrics"] = quality.own_metrics(plan.own_metrics, drawn, plan.experiment, plan.source)
  return row


def _keep_earlier_samples(plan: _Plan, name: str) -> None:
  """Renames the samples eval/NAME.* of an evaluation with other settings; a file beside them has its fingerprint."""
  folder = plan.path / "eval"
  mark = folder / f"{name}.evaluation"
  made = mark.read_text() if mark.is_file() else ""
  if made != plan.fingerprint:
    set_aside(folder, (f"{name}.npz", f"{name}.png", f"{name}.array_record", name, mark.name))
    save_atomically(mark, lambda file: file.write(plan.fingerprint.encode()))


class SolvesFailed(ScoreSDEError):
  """Error: all samples, or all likelihoods, failed. Files and reports are written before it is raised."""


def evaluate(config: ConfigDict, workdir: str, experiment: Experiment | None = None) -> None:
  """Evaluates checkpoints in `workdir` by config.eval. Prints the results and writes report.json and report.md.

  A report.json of other settings stays, as report_TIME.json; `compare` reads it, too.
  `experiment` replaces `build(config)`. If an evaluation is killed, its finished parts stay in eval/unfinished_* until
  the same evaluation runs to its end.

  Raises:
    BadInput: if there is no checkpoint, or one of another model, or if no measurement is enabled.
    SolvesFailed: if all samples or likelihood solves of a checkpoint failed, after the reports are written.
    Interrupted: after a signal to stop.
  """
  experiment = experiment or build(recalled(config, workdir))
  config = experiment.config
  waits = config.eval.wait_minutes > 0 and not (config.eval.begin_ckpt is None and config.eval.end_ckpt is None)
  path = make_workdir(workdir) if waits else open_workdir(workdir)
  plan = _plan(experiment, path)
  unfinished = path / "eval" / f"unfinished_{plan.fingerprint}"
  rows: list[dict[str, Any]] = []
  with checkpoints.manager(workdir, create=waits) as manager:
    for step, params in _each(plan, manager, workdir):
      row = _row(plan, step, params, unfinished / f"step_{step:08d}_{checkpoints.digest(params)}")
      rows.append(row)
      if devices.is_first_host():
        if len(rows) == 1:
          _keep_earlier_report(path, config.eval.report, plan.fingerprint, row["step"])
        reports.write(path, config.eval.report, report := _report(experiment, rows, plan.fingerprint))
        print(reports.line(row, report), flush=True)
        numbers = {m.key: float(row[m.key]) for m in MEASURES if m.short and isinstance(row.get(m.key), float)}
        add_evaluation(path, row["step"], numbers)
  devices.wait_for_all("evaluation")
  if devices.is_first_host():
    with contextlib.suppress(Exception):  # the report is written: what is left is only in the way
      unfinished.rmtree(missing_ok=True)
  for row in rows:
    _need_some(row.get("samples", 0) - row.get("samples_failed", 0), row.get("samples", 0), row["step"])
  failed = [row["step"] for row in rows if row.get("likelihood_failed") and not row["examples"]]
  if failed:
    steps = ", ".join(map(str, failed))
    advice = (
      f", or their solves exceeded sampling.max_steps={config.sampling.max_steps}. Raise it, or eval.rtol and atol."
    )
    raise SolvesFailed(
      f"All likelihoods of step {steps} failed: they are not finite"
      + (advice if config.eval.likelihood == "ode" else ". Evaluate another checkpoint.")
    )


def _each(plan: _Plan, manager: Any, workdir: str) -> Iterator[tuple[int, Params]]:
  """Yields (step, parameters) of the wanted checkpoints, each as soon as it exists."""
  config = plan.experiment.config
  for step in _wanted(config, workdir, manager):
    _wait_for(config, workdir, manager, step)
    yield restore(manager, plan.experiment, workdir, step)


def _keep_earlier_report(path: Path, name: str, fingerprint: str, step: int) -> None:
  """Renames the report `name` if it is one of other settings, or begins with another step than `step`."""
  file = path / f"{name}.json"
  if not file.is_file():
    return
  kept: dict[str, Any] = {}
  with contextlib.suppress(OSError, ValueError):
    kept = json.loads(file.read_text())
  steps = [row.get("step") for row in kept.get("checkpoints", ()) if isinstance(row, dict)]
  if kept.get("evaluation") != fingerprint or steps[:1] != [step]:
    set_aside(path, (f"{name}.json", f"{name}.md"), str(kept.get("finished", "")))


def _report(experiment: Experiment, rows: list[dict[str, Any]], fingerprint: str) -> dict[str, Any]:
  config = experiment.config
  return {
    "dataset": data.name(config),
    "split": config.eval.bpd_dataset,
    "sde": type(experiment.sde).__name__ if is_plugin(config.training.sde) else config.training.sde,
    "model": config.model.name,
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(experiment.abstract_params())),
    "config_hash": reports.config_hash(config),
    "evaluation": fingerprint,
    "seed": config.seed,
    "weights": config.eval.weights,
    "sampler": samples.sampler_name(experiment) if config.eval.enable_sampling else "",
    "sampling": as_dict(config.sampling) if config.eval.enable_sampling else {},
    "quantization": config.eval.quantization if config.eval.enable_sampling and data.has_levels(config) else "",
    "devices": devices.describe(),
    "versions": reports.versions(),
    "finished": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
    "checkpoints": rows,
  }
