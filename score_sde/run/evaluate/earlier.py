"""Earlier results of other settings: they stay under other names when new ones are written.

Each result has a mark of the settings that made it: a hash in the file, or in a file beside it.
"""

import contextlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.run.config import as_dict
from score_sde.run.evaluate import reports
from score_sde.run.storage import Path, arrays_of, changed, save_atomically
from score_sde.run.workdir import set_aside


def keep_arrays(
  path: Path, name: str, config: ConfigDict, step: int, arrays: dict[str, Any], beside: Sequence[str]
) -> None:
  """Writes samples as the NPZ file `name` into the workdir `path`, with a hash of the "settings" that made them.

  If there is one of other settings, it and the results `beside` it are kept under other names.
  """
  evaluated = [config.eval.weights, config.eval.quantization]
  made = reports.hash_of([step, config.seed, *evaluated, as_dict(config.sampling), as_dict(config.guidance)])
  if _mark(path / name, "settings") != made:
    set_aside(path, (name, *beside))
  arrays = arrays | {"settings": np.array(made)}
  save_atomically(path / name, lambda file: np.savez_compressed(file, **arrays))


def keep_earlier_likelihoods(file: Path, fingerprint: str) -> None:
  """Renames the likelihoods of an evaluation with other settings."""
  if _mark(file, "fingerprint") not in ("", fingerprint):
    set_aside(file.parent, (file.name,))


def _mark(file: Path, name: str) -> str:
  """Returns the mark `name` of an NPZ file; "" if there is no file, or a damaged one."""
  with contextlib.suppress(Exception), arrays_of(file) as arrays:
    return str(arrays[name])
  return ""


def keep_earlier_samples(path: Path, name: str, fingerprint: str) -> None:
  """Renames the samples eval/NAME.* of an evaluation with other settings; a file beside them has its fingerprint."""
  folder = path / "eval"
  mark = folder / f"{name}.evaluation"
  made = mark.read_text() if mark.is_file() else ""
  if made != fingerprint:
    set_aside(folder, (f"{name}.npz", f"{name}.png", f"{name}.array_record", name, mark.name))
    save_atomically(mark, lambda file: file.write(fingerprint.encode()))


def keep_earlier_report(path: Path, name: str, fingerprint: str, steps: Sequence[int]) -> list[dict[str, Any]]:
  """Returns the rows of the report `name`, if it is one of these settings and only of `steps`. Else renames it."""
  kept = read_report(path, name)
  rows = kept["checkpoints"]
  if kept.get("evaluation") == fingerprint and rows and {row.get("step") for row in rows} <= set(steps):
    return [row for row in rows if is_of_checkpoint(path, name, row)]
  set_aside(path, (f"{name}.json", f"{name}.md"), str(kept.get("finished", "")))
  return []


def read_report(path: Path, name: str) -> dict[str, Any]:
  """Returns the report `name`, with its rows as "checkpoints": [] if there is none, or a damaged one."""
  kept: dict[str, Any] = {}
  with contextlib.suppress(OSError, ValueError):
    kept = json.loads((path / f"{name}.json").read_text())
  return kept | {"checkpoints": [row for row in kept.get("checkpoints", ()) if isinstance(row, dict)]}


def is_of_checkpoint(path: Path, name: str, row: dict[str, Any]) -> bool:
  """Returns whether a row of the report `name` measures the checkpoint that is there, and not an earlier one."""
  checkpoint = path / "checkpoints" / str(row.get("step"))
  return checkpoint.exists() and changed(checkpoint) <= changed(path / f"{name}.json")
