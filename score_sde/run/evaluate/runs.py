"""Runs of `run.py --mode=sample` and `--mode=eval`: draw samples of checkpoints in a workdir, and measure them."""

import contextlib
import dataclasses
import hashlib
import json
import logging
import math
import pathlib
import time
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde.errors import ScoreSDEError
from score_sde.run import checkpoints, data, devices, shipped
from score_sde.run.config import GIVEN_TASKS, BadInput, as_dict, distills_progressively
from score_sde.run.config.plugins import is_plugin, load, names_code
from score_sde.run.evaluate import quality, reports, samples
from score_sde.run.evaluate.chosen import chosen_step, open_workdir, restore, wait_for, wanted_steps
from score_sde.run.evaluate.earlier import (
  is_of_checkpoint,
  keep_arrays,
  keep_earlier_likelihoods,
  keep_earlier_report,
  keep_earlier_samples,
  read_report,
)
from score_sde.run.evaluate.likelihoods import accuracy, keep_likelihoods, mean_bits_per_dim, mean_loss
from score_sde.run.evaluate.measures import MEASURES
from score_sde.run.evaluate.samples import LIKELIHOOD, LOSS, SHOWN
from score_sde.run.experiment import Experiment, Params, build
from score_sde.run.report import pictures
from score_sde.run.report.curves import add_evaluation
from score_sde.run.storage import Path, path_of
from score_sde.run.workdir import check_data, make_workdir, recalled, write_json

log = logging.getLogger(__name__)

# States of each sample that are kept for sampling.show_paths, evenly spaced.
PATH_FRAMES = 60

# Keys of config.eval that do not change the numbers of a checkpoint.
_BESIDE = ("begin_ckpt", "end_ckpt", "checkpoint", "wait_minutes", "report", "save_samples")


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


def _need_some(finite: int, total: int, step: int) -> None:
  """Raises SolvesFailed if none of the `total` samples is finite."""
  if total and not finite:
    raise SolvesFailed(
      f"None of the {total} samples of step {step} is finite, or they all exceeded sampling.max_steps. Use more steps, "
      "another sampler, or another checkpoint."
    )


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
    | _contents(config)
    | ({"loss": _numbers(experiment.loss)} if e.enable_loss else {})
  )
  own = load("eval.metrics", e.metrics, "from (samples, test examples) to {name: number}") if e.metrics else None
  return _Plan(experiment, source, path, measure, extractor, own, reports.hash_of(depends))


def _contents(config: ConfigDict) -> dict[str, Any]:
  """Returns hashes of the files that the config names beside the data, and the checkpoints of models that guide."""
  g = config.guidance
  files = [shipped.find_plugin(name).rpartition(":")[0] for name in names_code(config)]
  files += [file for file in (config.sampling.condition, g.weak) if file]
  hashes = {f: hashlib.sha256(pathlib.Path(f).read_bytes()).hexdigest() for f in files if pathlib.Path(f).is_file()}
  guides = [folder for folder in (g.classifier, g.weak) if folder and (path_of(folder) / "checkpoints").is_dir()]
  whole = lambda folder: sorted(p.name for p in (path_of(folder) / "checkpoints").iterdir() if p.name.isdigit())
  steps = {folder: whole(folder) for folder in guides}
  return {name: found for name, found in (("files", hashes), ("guides", steps)) if found}


def _numbers(thing: Any) -> dict[str, Any]:
  """Returns the options of a loss that are numbers or texts."""
  values = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing)}
  return {name: value for name, value in values.items() if isinstance(value, bool | int | float | str | None)}


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
      keep_earlier_likelihoods(file, plan.fingerprint)
      keep_likelihoods(file, plan.fingerprint, step, values, unit, getattr(plan.source, "examples", ()))
  if e.enable_sampling:
    row |= _sampled(plan, step, params, unfinished / "samples")
  row["seconds"] = round(time.monotonic() - start, 1)
  if devices.is_first_host():
    write_json(kept, row)
  return row


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
  nfe, seconds, size = [], [], min(e.batch_size, e.num_samples)  # the last batch is drawn at full size, too
  for batch in map(samples.read_batch, files):
    nfe.append(batch["nfe"])
    seconds.append(float(batch["seconds"]) / size)
    row["samples_failed"] += int((~batch["finite"]).sum())
  row |= {
    "sampling_nfe": float(np.concatenate(nfe).mean()),
    "seconds_per_image": float(np.median(seconds[1:] or seconds)),
  }
  name = f"samples_{step:08d}{e.report.removeprefix('report')}"
  keep_earlier_samples(plan.path, name, plan.fingerprint)
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
  earlier: list[dict[str, Any]] = []
  with checkpoints.manager(workdir, create=waits) as manager:
    wanted = wanted_steps(config, workdir, manager)
    for step, params in _each(plan, manager, workdir, wanted):
      row = _row(plan, step, params, unfinished / f"step_{step:08d}_{checkpoints.digest(params)}")
      rows.append(row)
      if devices.is_first_host():
        if len(rows) == 1:
          steps = [row["step"], *(s for s in wanted if s is not None)]
          earlier = keep_earlier_report(path, config.eval.report, plan.fingerprint, steps)
        done = {r["step"] for r in rows}
        whole = sorted(rows + [r for r in earlier if r["step"] not in done], key=lambda r: r["step"])
        reports.write(path, config.eval.report, report := _report(experiment, whole, plan.fingerprint))
        print(reports.line(row, report), flush=True)
        numbers = {m.key: float(row[m.key]) for m in MEASURES if m.short and isinstance(row.get(m.key), float)}
        add_evaluation(path, row["step"], numbers)
  devices.wait_for_all("evaluation")
  if devices.is_first_host():
    with contextlib.suppress(Exception):  # the report is written: what is left is only in the way
      unfinished.rmtree(missing_ok=True)
  _need_success(rows, config)


def is_reported(experiment: Experiment, workdir: str) -> bool:
  """Returns whether a report in `workdir` has the newest checkpoint, measured with these settings.

  Raises:
    SolvesFailed: if it has, and all its samples or likelihoods failed.
  """
  path, config, name = open_workdir(workdir), experiment.config, experiment.config.eval.report
  with checkpoints.manager(workdir) as manager:
    step = max(manager.all_steps())
  report = read_report(path, name)
  found = [row for row in report["checkpoints"] if row.get("step") == step and is_of_checkpoint(path, name, row)]
  # The settings are compared last: for that, the data are read.
  if not found or report.get("evaluation") != _plan(experiment, path).fingerprint:
    return False
  _need_success(found, config)
  return True


def _need_success(rows: list[dict[str, Any]], config: ConfigDict) -> None:
  """Raises SolvesFailed if all samples or likelihoods of a checkpoint failed."""
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


def _each(plan: _Plan, manager: Any, workdir: str, wanted: list[int | None]) -> Iterator[tuple[int, Params]]:
  """Yields (step, parameters) of the wanted checkpoints, each as soon as it exists."""
  for step in wanted:
    wait_for(plan.experiment.config, workdir, manager, step)
    yield restore(manager, plan.experiment, workdir, step)


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
