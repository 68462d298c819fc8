"""Averages of a run's parameters over other widths, after training: `python -m score_sde ema --std=0.05,0.1,0.15`."""

import json
import logging
from collections.abc import Sequence

import jax
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from score_sde import averaging
from score_sde.run import checkpoints, devices, train_step
from score_sde.run.checkpoints import published
from score_sde.run.config import BadInput, as_bad_input, sde_name, signature
from score_sde.run.evaluate.judge import make_judge
from score_sde.run.experiment import Experiment, Params, build
from score_sde.run.report import pictures
from score_sde.run.storage import path_of, save_atomically
from score_sde.run.workdir import IMPORTED, make_workdir

log = logging.getLogger(__name__)

# A combination of the stored averages whose profile differs by more than this share from the one wanted is refused.
FARTHEST = 1 / 3


def reconstruct(config: ConfigDict, workdir: str, widths: Sequence[str]) -> None:
  """Writes ema/std_WIDTH.safetensors in `workdir`, for `score_sde.load`, with the average of each of `widths`.

  They are combined from the averages of model.ema_widths in all checkpoints that are kept (training.snapshot_freq), for
  the newest of them. With training.fid_samples it also measures each average, and writes ema.json and ema.png, the FID
  against the width.

  Raises:
    BadInput: for widths that are no numbers in (0, 0.288], or too far from what the checkpoints can give; or if the
      run kept no averages.
  """
  experiment = build(config)
  config = experiment.config
  wanted = _numbers(widths)
  if not checkpoints.exists(workdir):
    raise BadInput(f"workdir {workdir!r} holds no checkpoints.")
  if not config.model.ema_widths:
    raise BadInput(
      "model.ema_widths=() keeps no averages to combine: train with --config.model.ema_widths='(0.05,0.1)'."
    )
  judge = make_judge(experiment)
  with checkpoints.manager(workdir) as manager:
    steps = sorted(step for step in manager.all_steps() if step)  # imported weights of step 0 are no average
    if not steps:
      raise BadInput(f"workdir {workdir!r} holds no checkpoint of a training that kept averages.")
    imported = path_of(workdir) / IMPORTED
    if imported.is_file():
      if steps == _imported_steps(imported.read_text()):
        raise BadInput(f"workdir {workdir!r} holds imported weights only, which are no average: train on first.")
      log.warning("The training before the import is unknown: the averages have the imported parameters in its place.")
    exponents = [averaging.exponent(width) for width in config.model.ema_widths]
    stored = [(step, gamma) for step in steps for gamma in exponents]
    of_width = {width: _weights(stored, steps[-1], width) for width in wanted}
    found: dict[float, Params] = {}
    for place, step in enumerate(steps):
      averages = _averages(experiment, manager, workdir, step)
      for width, parts in of_width.items():
        share = parts[place * len(exponents) : (place + 1) * len(exponents)]
        add = lambda total, *trees, share=share: total + sum(w * tree for w, tree in zip(share, trees, strict=True))
        zeros = jax.tree.map(lambda x: np.zeros(x.shape, np.float64), averages[0])
        found[width] = jax.tree.map(add, found.get(width, zeros), *averages)
  folder, fids = make_workdir(workdir), {}
  first = devices.is_first_host()
  for width, average in found.items():
    params = jax.tree.map(lambda x: np.asarray(x, np.float32), average)
    file = folder / "ema" / f"std_{width:.3f}.safetensors"
    if first:
      flat = {k: np.asarray(v) for k, v in flatten_dict(params, sep="/").items()}
      metadata = published.metadata_of(config, steps[-1]) | {"width": str(width)}
      published.export_safetensors(file, {}, flat, metadata)
    log.info("Wrote %s: the average of width %g at step %d, from %d checkpoints.", file, width, steps[-1], len(steps))
    if judge:
      fids[width] = judge(devices.run_once(lambda x: x, params))
      log.info("Width %g: FID %.3f.", width, fids[width]["fid"])
  if fids and first:
    text = json.dumps({f"{width:g}": row for width, row in fids.items()}, indent=2)
    save_atomically(folder / "ema.json", lambda handle: handle.write(text.encode()))
    curve = (np.array(list(fids)), np.array([row["fid"] for row in fids.values()]))
    title = f"{sde_name(config.training.sde)}, {config.model.name}, step {steps[-1]:,}: FID of averaged parameters"
    pictures.curves(folder / "ema.png", {"FID": curve}, title, xlabel="width of the average, share of the run")


def _imported_steps(text: str) -> list[int]:
  """Returns [step] of the import that a file IMPORTED describes; [] if it does not say."""
  return [int(line) for line in text.splitlines()[1:2] if line.isdigit()]


def _numbers(widths: Sequence[str]) -> list[float]:
  numbers = []
  for text in widths:
    try:
      numbers.append(float(text))
    except ValueError as error:
      raise BadInput(f"--std={text!r} must be numbers, separated by commas, such as 0.05,0.1.") from error
    with as_bad_input({"width": "--std"}):
      averaging.exponent(numbers[-1])
  names = [f"{width:.3f}" for width in set(numbers)]
  if len(set(names)) < len(names):
    raise BadInput(f"--std={','.join(widths)}: widths differ by 0.001 or more, the digits in the files' names.")
  return sorted(set(numbers))


def _weights(stored: Sequence[tuple[int, float]], step: int, width: float) -> np.ndarray:
  gamma = averaging.exponent(width)
  off = averaging.distance(stored, step, gamma)
  if off > FARTHEST:
    raise BadInput(
      f"--std={width:g} is too far from the averages that the run kept: the nearest combination of {len(stored)} is "
      f"off by {off:.0%}. Choose a width nearer to model.ema_widths, or train with a smaller training.snapshot_freq."
    )
  if off > 0.1:
    log.warning("The average of width %g is only approximate: its profile is off by %.0f%%.", width, 100 * off)
  return averaging.weights(stored, step, gamma)


def _averages(experiment: Experiment, manager, workdir: str, step: int) -> Sequence[Params]:
  """Returns the averages in the checkpoint of `step`, one per width."""
  targets = {"state": jax.eval_shape(train_step.saved_form, train_step.abstract_state(experiment))}
  found = checkpoints.restore(manager, targets, signature(experiment.config), workdir, step)
  assert found is not None
  return jax.tree.map(np.asarray, devices.local(found[1]["state"]["averages"]))
