"""Comparison of runs: a table of their evaluations, the settings that differ, and published numbers on CIFAR-10."""

import fnmatch
import json
import logging
import math
from typing import Any

from score_sde.run.config import BadInput, sde_name
from score_sde.run.evaluate.measures import MEASURES
from score_sde.run.evaluate.reports import table
from score_sde.run.report import page
from score_sde.run.storage import Path, files_in, path_of

log = logging.getLogger(__name__)

# CIFAR-10: {config: (FID (best snapshot of a training), inception score, FID of the probability-flow ODE, bits/dim)}.
# Song et al. 2021, Tables 2 and 3, as listed by config in the README of yang-song/score_sde_pytorch.
PUBLISHED_SOURCE = "Song et al. 2021, Tables 2 and 3; README of github.com/yang-song/score_sde_pytorch"
PUBLISHED = {
  "ve/cifar10_ncsnpp": (2.45, 9.73, None, None),
  "ve/cifar10_ncsnpp_continuous": (2.38, 9.83, None, None),
  "ve/cifar10_ncsnpp_deep_continuous": (2.20, 9.89, None, None),
  "vp/ddpm/cifar10": (3.24, None, 3.37, 3.28),
  "vp/ddpm/cifar10_continuous": (None, None, 3.69, 3.21),
  "vp/cifar10_ddpmpp": (2.78, 9.64, None, None),
  "vp/cifar10_ddpmpp_continuous": (2.55, 9.58, 3.93, 3.16),
  "vp/cifar10_ddpmpp_deep_continuous": (2.41, 9.68, 3.08, 3.13),
  "subvp/cifar10_ddpm_continuous": (None, None, 3.56, 3.05),
  "subvp/cifar10_ddpmpp_continuous": (2.61, 9.56, 3.16, 3.02),
  "subvp/cifar10_ddpmpp_deep_continuous": (2.41, 9.57, 2.92, 2.99),
}


def _files_of(run: str) -> list[Path]:
  """Returns the reports of a run, or the report itself."""
  path = path_of(run)
  if path.is_file():
    return [path] if path.suffix == ".json" else []
  return sorted(p for p in files_in(path) if fnmatch.fnmatch(p.name, "report*.json"))


def with_reports(*runs: str) -> tuple[str, ...]:
  """Returns those of several runs that have a report, if there are any, and names the others in a warning.

  Raises:
    BadInput: if one of them does not exist.
  """
  missing = [run for run in runs if not path_of(run).exists()]
  if missing and len(runs) > 1:
    raise BadInput(f"{', '.join(map(repr, missing))} does not exist.")
  kept = tuple(run for run in runs if _files_of(run))
  if not kept or kept == runs:
    return runs
  log.warning("Without a report, and left out: %s.", ", ".join(run for run in runs if run not in kept))
  return kept


def read(run: str) -> list[dict[str, Any]]:
  """Reads the reports of a run as rows, one per checkpoint. A row includes the settings of its report.

  `run` is a workdir or a single report.

  Raises:
    BadInput: if there is no report, or a report cannot be read.
  """
  path, files = path_of(run), _files_of(run)
  if not files:
    raise BadInput(
      f"{run!r} is no report and no workdir with one. Write it: python run.py --mode=eval --workdir={run}."
    )
  rows = []
  for file in files:
    try:
      report = json.loads(file.read_text())
      common = {k: v for k, v in report.items() if k != "checkpoints"}
      rows += [common | row | {"run": path.name if path.is_file() else f"{path.name}/{file.stem}"}
               for row in report["checkpoints"]]  # fmt: skip
    except (ValueError, KeyError, TypeError, AttributeError) as error:
      raise BadInput(f"{str(file)!r} is no report of --mode=eval ({type(error).__name__}: {error}).") from error
  return rows


def _cells(r: dict[str, Any]) -> dict[str, str]:
  """Returns {column title: cell} of a row."""
  described = {"run": r["run"], "data": r["dataset"], "SDE": sde_name(r["sde"]), "step": f"{r['step']:,}"}
  described["sampler"] = r.get("sampler", "") if "samples" in r else ""
  described["loss"] = MEASURES[0].brief(r)
  measured = {m.short: m.brief(r) for m in MEASURES if m.short}
  return described | measured | {"features": r.get("features", "")}


def _settings_that_differ(*runs: str) -> str:
  """Returns a Markdown table of the settings in which the configs of `runs` differ; "" if there is nothing to show."""
  folders = [run for run in runs if (path_of(run) / "config.json").is_file()]
  if len(folders) < 2:
    return ""
  found = page.differing([page.read(run) for run in folders])
  names = [path_of(run).name for run in folders]
  names = names if len(set(names)) == len(names) else folders
  return table(["setting", *names], [[f"`{key}`", *values] for key, values in found.items()]) if found else ""


def compare(*runs: str) -> str:
  """Returns Markdown: a table of all reports of `runs`, one of the settings that differ, and, if a run is on CIFAR-10,
  the published numbers.

  Of several runs, those without a report are left out, see `with_reports`.

  Raises:
    BadInput: if no run has a report.
  """
  runs = with_reports(*runs)
  rows = [row for run in runs for row in read(run)]
  filled = [_cells(row) for row in rows]
  used = [title for title in filled[0] if any(cells[title] for cells in filled)]
  ours = table(used, [[cells[title] for title in used] for cells in filled])
  differing = _settings_that_differ(*runs)
  parts = [ours] + ([f"Settings that differ:\n\n{differing}"] if differing else [])
  if not any(str(row["dataset"]).lower() == "cifar10" for row in rows):
    return "\n\n".join(parts)
  show = lambda value: "" if value is None or math.isnan(value) else f"{value:.2f}"
  papers = table(
    ["config", "FID", "IS", "FID of the ODE", "bits/dim"],
    [[f"`{name}`", *map(show, values)] for name, values in PUBLISHED.items()],
  )
  note = "50,000 samples, Inception features, statistics of the training images"
  return "\n\n".join([*parts, f"Published, CIFAR-10 ({note}): {PUBLISHED_SOURCE}", papers])
