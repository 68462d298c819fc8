"""Reports of an evaluation: JSON for programs, Markdown for people, a line for the terminal."""

import hashlib
import importlib.metadata
import json
import pathlib
import platform
from typing import Any

from ml_collections import ConfigDict

from score_sde.run.config import as_dict, sde_name
from score_sde.run.report.pictures import save_atomically
from score_sde.run.workdir import write_json

# How a likelihood is printed: bounds are from above.
BOUND = {"ode": "", "elbo": "at most ", "chain": "at most "}


def hash_of(settings: Any) -> str:
  """Twelve hexadecimal digits that tell settings apart, whatever the order of their keys."""
  return hashlib.sha256(json.dumps(settings, sort_keys=True, default=list).encode()).hexdigest()[:12]


def config_hash(config: ConfigDict) -> str:
  """Of the whole resolved config."""
  return hash_of(as_dict(config))


def versions() -> dict[str, str]:
  """Versions of Python and of the libraries that numbers depend on."""
  names = ("score_sde", "jax", "jaxlib", "flax", "optax", "diffrax", "numpy")
  return {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in names}


def write(path: pathlib.Path, name: str, report: dict[str, Any]) -> None:
  """Writes `name`.json and `name`.md into `path`."""
  write_json(path / f"{name}.json", report)
  save_atomically(path / f"{name}.md", lambda file: file.write(as_markdown(report).encode()))


def line(row: dict[str, Any], report: dict[str, Any]) -> str:
  """What a row of the report says, on one line."""
  parts = []
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
    where = f" in {row['samples_file']}" if row["samples_file"] else ""
    parts.append(f"{row['samples']} samples{where} ({row['sampling_nfe']:.0f} evaluations each)")
  for name in ("fid", "kid", "inception_score", "precision", "recall"):
    if name in row:
      parts.append(f"{name.replace('_', ' ')} {row[name]:.4g}")
  parts += [f"{name} {value:.4g}" for name, value in row.get("metrics", {}).items()]
  return f"{report['dataset']}, {sde_name(report['sde'])}, step {row['step']:,}: " + ", ".join(parts)


# --- Markdown -------------------------------------------------------------------------------------------------------


def table(head: list[str], rows: list[list[str]]) -> str:
  """A Markdown table."""
  return "\n".join("| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows))


def number(row: dict[str, Any], name: str, error: str = "", digits: str = ".3f") -> str:
  """The entry `name` of a row, with its `error` where it has one; "" where it is missing."""
  if row.get(name) is None:
    return ""
  spread = f" ± {row[error]:{digits}}" if row.get(error) is not None else ""
  return f"{row[name]:{digits}}{spread}"


def likelihood(row: dict[str, Any], name: str) -> str:
  """bits/dim or nats of a row, with "at most" before a bound."""
  value = number(row, name, f"{name}_error")
  return BOUND[row["likelihood"]] + value if value else ""


# What a report shows of a checkpoint: (name, how).
_SHOWN = (
  ("loss", lambda r: number(r, "loss", "loss_error", ".4f")),
  ("accuracy without noise", lambda r: number(r, "accuracy", digits=".1%")),
  ("bits/dim", lambda r: likelihood(r, "bits_per_dim")),
  ("nats", lambda r: likelihood(r, "nats")),
  ("examples of the likelihood", lambda r: f"{r['examples']:,}" if "examples" in r else ""),
  ("evaluations of the likelihood", lambda r: number(r, "likelihood_nfe", digits=".0f")),
  ("samples", lambda r: f"{r['samples']:,}" if "samples" in r else ""),
  ("samples that failed", lambda r: f"{r['samples_failed']:,}" if r.get("samples_failed") else ""),
  ("evaluations a sample (NFE)", lambda r: number(r, "sampling_nfe", digits=".0f")),
  ("seconds an image", lambda r: number(r, "seconds_per_image", digits=".3g")),
  ("FID", lambda r: number(r, "fid")),
  ("KID", lambda r: number(r, "kid", "kid_std", ".5f")),
  ("inception score", lambda r: number(r, "inception_score", "inception_score_std")),
  ("precision", lambda r: number(r, "precision")),
  ("recall", lambda r: number(r, "recall")),
  ("features", lambda r: r.get("features", "")),
  ("images compared with", lambda r: f"{r['reference_images']:,}" if "reference_images" in r else ""),
  ("wall time, s", lambda r: number(r, "seconds", digits=".1f")),
)  # fmt: skip


def as_markdown(report: dict[str, Any]) -> str:
  """The report for people: a column a checkpoint, then what was run, where."""
  rows = report["checkpoints"]
  shown = [[name, *map(show, rows)] for name, show in _SHOWN if any(map(show, rows))]
  own = dict.fromkeys(name for row in rows for name in row.get("metrics", {}))
  shown += [[name, *(number(row.get("metrics", {}), name, digits=".4g") for row in rows)] for name in own]
  settings = {
    "config": report["config_hash"],
    "seed": str(report["seed"]),
    "model": f"{report['model']}, {report['parameters']:,} parameters",
    "sampler": report["sampler"],
    "images made of samples by": report["quantization"],
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
