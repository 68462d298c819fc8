"""Reports of an evaluation: as JSON, as Markdown, and as a line for the terminal."""

import hashlib
import importlib.metadata
import json
import platform
from typing import Any

from ml_collections import ConfigDict

from score_sde.run.config import as_dict, sde_name
from score_sde.run.evaluate.measures import MEASURES, number
from score_sde.run.storage import Path, save_atomically
from score_sde.run.workdir import write_json


def hash_of(settings: Any) -> str:
  """Returns twelve hexadecimal digits that identify settings, independent of the order of their keys."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode()).hexdigest()[:12]


def config_hash(config: ConfigDict) -> str:
  """Returns the hash of a whole resolved config."""
  return hash_of(as_dict(config))


def versions() -> dict[str, str]:
  """Returns the versions of Python and of the libraries that affect the numbers."""
  names = ("score_sde", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy")
  return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def write(path: Path, name: str, report: dict[str, Any]) -> None:
  """Writes `name`.json and `name`.md into `path`."""
  write_json(path / f"{name}.json", report)
  save_atomically(path / f"{name}.md", lambda file: file.write(as_markdown(report).encode()))


def line(row: dict[str, Any], report: dict[str, Any]) -> str:
  """Returns a row of the report in words, on one line."""
  shown = {m.key: m.line.format(m.show(row)) for m in MEASURES if m.line and m.show(row)}
  parts = [shown[key] for key in ("loss",) if key in shown]
  if "accuracy" in row:
    levels = ", ".join(f"{share:.1%} at {ratio}" for ratio, share in row["accuracies"].items())
    parts.append(f"{row['accuracy']:.1%} accuracy without noise (by sigma / alpha: {levels})")
  for measure in MEASURES:
    if measure.bound and measure.show(row):
      parts.append(
        f"{measure.show(row)} {measure.title} on {row['examples']} {report['split']} examples "
        f"({row['likelihood_nfe']:.0f} evaluations each)"
      )
  if "samples" in row:
    where = f" in {row['samples_file']}" if row["samples_file"] else ""
    parts.append(f"{row['samples']} samples{where} ({row['sampling_nfe']:.0f} evaluations each)")
  parts += [text for key, text in shown.items() if key != "loss"]
  metrics = row.get("metrics", {})
  parts += [f"{name} {number(metrics, name, digits='.4g') or 'nan'}" for name in metrics]
  return f"{report['dataset']}, {sde_name(report['sde'])}, step {row['step']:,}: " + ", ".join(parts)


# --- Markdown -------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
  """Returns a Markdown table."""
  return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def as_markdown(report: dict[str, Any]) -> str:
  """Returns the report as Markdown: a table with one column per checkpoint, pictures, and a table of settings."""
  rows = report["checkpoints"]
  shown = [[m.title, *map(m.show, rows)] for m in MEASURES if any(map(m.show, rows))]
  shown += [["features", *(row.get("features", "") for row in rows)]] * any("features" in row for row in rows)
  own = dict.fromkeys(name for row in rows for name in row.get("metrics", {}))
  shown += [[name, *(number(row.get("metrics", {}), name, digits=".4g") for row in rows)] for name in own]
  settings = {
    "config": report["config_hash"],
    "seed": str(report["seed"]),
    "model": f"{report['model']}, {report['parameters']:,} parameters",
    "weights": {"ema": "moving average of the parameters", "raw": "raw parameters"}.get(report.get("weights", ""), ""),
    "sampler": report["sampler"],
    "quantization of samples": report["quantization"],
    "split of losses and likelihoods": report["split"],
    "devices": report["devices"],
    "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    "finished": report["finished"],
  }
  pictures = "".join(f"\n![samples of step {r['step']:,}]({r['picture']})\n" for r in rows if r.get("picture"))
  return (
    f"# {report['dataset']}, {sde_name(report['sde'])}\n\n"
    + table(["", *(f"step {row['step']:,}" for row in rows)], shown)
    + f"\n{pictures}\n"
    + table(["setting", "value"], [[name, value] for name, value in settings.items() if value])
    + "\n"
  )
