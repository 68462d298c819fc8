"""Checkpoints of an evaluation: which ones, and their parameters."""

import logging
import re
import time
from typing import Any

import jax
from ml_collections import ConfigDict

from score_sde.run import checkpoints, devices
from score_sde.run.config import BadInput, signature
from score_sde.run.experiment import Experiment, Params
from score_sde.run.report.curves import best_step
from score_sde.run.report.progress import wait
from score_sde.run.storage import Path, files_in, path_of
from score_sde.run.train_step import abstract_state, saved_form
from score_sde.run.workdir import IMPORTED, make_workdir

log = logging.getLogger(__name__)

# Interval at which the workdir is checked for an awaited checkpoint.
POLL_SECONDS = 5.0


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
  if message := short_run(config, steps):
    log.warning("%s Evaluate with --config.eval.weights=raw, or train with --config.model.ema_warmup=True.", message)


def short_run(config: ConfigDict, steps: int) -> str:
  """Returns a warning if the parameters' moving average spans more than the `steps` of the run, else ""."""
  rate = config.model.ema_rate
  if config.model.ema_warmup or not 0 < steps < 1 / (1 - rate):
    return ""
  return (
    f"The moving average of the parameters (model.ema_rate={rate:g}) spans {1 / (1 - rate):,.0f} steps, and there are "
    f"{steps:,}: the initial parameters still have a weight of {100 * rate**steps:.0f}% in it."
  )


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


def wanted_steps(config: ConfigDict, workdir: str, manager: Any) -> list[int | None]:
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


def wait_for(config: ConfigDict, workdir: str, manager: Any, step: int | None) -> None:
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
