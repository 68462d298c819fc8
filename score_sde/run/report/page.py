"""Page: report.html, one file that shows a run, or several, in a browser. It needs no server and loads nothing else.

It is made from the files of the workdir alone, so it can be made again at any time, from a run of any age.
"""

import base64
import contextlib
import dataclasses
import datetime
import functools
import importlib.resources
import importlib.util
import io
import json
import logging
import math
import re
import shlex
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image

from score_sde.run.config import BadInput, as_dict, default_config, describe, get, sde_name
from score_sde.run.config.plugins import names_code
from score_sde.run.evaluate.measures import MEASURES, number
from score_sde.run.loading import parse_config
from score_sde.run.report import curves
from score_sde.run.storage import Path, arrays_of, files_in, path_of, save_atomically
from score_sde.run.stored import unfilled
from score_sde.run.workdir import commands

log = logging.getLogger(__name__)

# Pictures of a workdir, with their captions, in the order of the page.
PICTURES = {
  "samples.png": "Samples",
  "denoising.png": "One sample, from noise to data",
  "guided.png": "Guided samples: input, measurement, samples",
  "conditions.png": "Conditions of the samples, in the same order",
  "density.png": "Density of the model, with less and less noise",
  "paths.png": "Score and paths of samples",
  "accuracy.png": "Accuracy of the classifier over the noise",
  "ema.png": "FID over the width of the average of the parameters",
}

# At most so many snapshots of samples, evenly spaced, are put into a page.
SNAPSHOTS = 24

# Larger pictures are stored as WebP, with losses that one does not see.
LOSSLESS_BYTES = 300_000

# Titles of the charts of curves, and the columns of the metrics that they show, with their names.
CHARTS: dict[str, dict[str, str]] = {
  "Loss": {"loss": "training", "eval_loss": "test examples"},
  "Norms": {"grad_norm": "gradient", "update_norm": "update"},
  "FID of snapshots": {"fid": "FID"},
  "Images per second": {"images_per_second": "training"},
  "Learning rate": {"learning_rate": "learning rate"},
}


@dataclasses.dataclass(frozen=True)
class Page:
  """Contents of the files in a workdir that a page shows.

  Attributes:
    name: name of the folder.
    folder: the workdir.
    config: the resolved config, {section: {key: value}}.
    chosen: {key: (value, default)} of the settings that differ from the defaults.
    outline: plan.json.
    reports: {file: report} of all evaluations, the newest first.
    metrics: rows of the curves.
    names_code: whether the config names a FILE.py:FUNCTION.
  """

  name: str
  folder: Path
  config: dict[str, Any]
  chosen: dict[str, tuple[Any, Any]]
  outline: dict[str, Any]
  reports: dict[str, dict[str, Any]]
  metrics: list[dict[str, float]]
  names_code: bool = False

  @property
  def title(self) -> str:
    """Data and SDE of the run."""
    data = self.config["data"]
    named = next((r["dataset"] for r in self.reports.values()), data["dataset"])
    return f"{named}, {self.sde}"

  @property
  def sde(self) -> str:
    """Name of the SDE. Reports know the class of a user's own."""
    return sde_name(next((r["sde"] for r in self.reports.values()), self.config["training"]["sde"]))

  @property
  def summary(self) -> list[tuple[str, str]]:
    """(name, value) of the numbers that one wants to know first."""
    facts = [("SDE", self.sde), ("network", self.config["model"]["name"])]
    parameters = self.outline.get("parameters", {})
    count = parameters.get("total") if isinstance(parameters, dict) else None
    facts += [("parameters", f"{count:,}")] if count else []
    facts += [("data", self.title.split(",")[0])]
    if self.metrics:
      facts += [("steps", f"{self.metrics[-1]['step']:,} of {self.config['training']['n_iters']:,}")]
      seconds = [row["seconds"] for row in self.metrics if "seconds" in row]
      facts += [("training time", duration(seconds[-1]))] if seconds else []
    for measure in MEASURES:  # the newest evaluation that measured it
      rows = [row for report in self.reports.values() for row in reversed(report["checkpoints"])]
      value = next((measure.show(row) for row in rows if measure.show(row)), "")
      facts += [(measure.title, value)] if value and measure.short in ("bits/dim", "nats", "FID") else []
    return facts


def read(workdir: str | Path) -> Page:
  """Reads the files of a run. Raises BadInput if there is no config.json."""
  folder = path_of(workdir)
  file = folder / "config.json"
  if not file.is_file():
    raise BadInput(f"{str(workdir)!r} is no run: it has no config.json.")
  config = parse_config(file.read_text(), str(file), allowed=None)
  return Page(
    folder.name or str(folder), folder, as_dict(config), chosen_settings(config), _json(folder / "plan.json"),
    _reports(folder), curves.read_all(folder), bool(names_code(config)),
  )  # fmt: skip


def chosen_settings(config: Any) -> dict[str, tuple[Any, Any]]:
  """Returns {key: (value, default)} of the settings that differ from their defaults, as far as these are fixed.

  A default that follows other keys, such as the number of steps of a sampler, is None. Code that the config names is
  not run: of such a config, all values that differ from fixed defaults are returned.
  """
  default = default_config()
  found = {}
  plain = config if names_code(config) else unfilled(config)
  for key, value in _flat(as_dict(plain)).items():
    usual = get(default, key)
    if value is not None and _plain(value) != _plain(usual) and not (plain is config and usual is None):
      found[key] = (value, usual)
  return found


def _flat(config: dict[str, Any]) -> dict[str, Any]:
  """Returns {dotted key: value} of a config."""
  parts = ({f"{s}.{n}": v for n, v in its.items()} if isinstance(its, dict) else {s: its} for s, its in config.items())
  return {key: value for part in parts for key, value in part.items()}


def _plain(value: Any) -> Any:
  return list(value) if isinstance(value, tuple) else value


def _json(file: Path) -> dict[str, Any]:
  with contextlib.suppress(OSError, ValueError):
    return dict(json.loads(file.read_text()))
  return {}


def _reports(folder: Path) -> dict[str, dict[str, Any]]:
  found = {p.name: _json(p) for p in files_in(folder) if re.fullmatch(r"report.*\.json", p.name)}
  sound = {name: r for name, r in found.items() if r.get("checkpoints") and "dataset" in r and "sde" in r}
  return dict(sorted(sound.items(), key=lambda item: str(item[1].get("finished", "")), reverse=True))


def duration(seconds: float) -> str:
  """Returns a time in words: `duration(4000)` is "1 h 7 min"."""
  minutes = round(seconds / 60)
  if minutes < 2:
    return f"{seconds:.0f} s"
  return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# --- pictures ---------------------------------------------------------------------------------------------------------


def embedded(file: Path) -> str:
  """Returns a picture as a data URL. A large one is stored as WebP."""
  content, kind = file.read_bytes(), "png"
  if len(content) > LOSSLESS_BYTES:
    packed = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
      if max(image.size) < 16_000:  # WebP's limit
        image.convert("RGB").save(packed, "webp", quality=88)
        content, kind = packed.getvalue(), "webp"
  return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _pictures(page: Page) -> list[dict[str, str]]:
  shown = [
    {"url": embedded(page.folder / name), "caption": caption, "name": name}
    for name, caption in PICTURES.items()
    if (page.folder / name).is_file()
  ]
  for report in page.reports.values():
    for row in report["checkpoints"]:
      picture = row.get("picture")
      if picture and (page.folder / picture).is_file() and len(shown) < 6:
        sampler = f", {report['sampler']}" if report.get("sampler") else ""
        caption = f"Samples of step {row['step']:,}{sampler}"
        shown.append({"url": embedded(page.folder / picture), "caption": caption, "name": picture})
  return shown


def _snapshots(page: Page) -> list[dict[str, str]]:
  files = sorted(files_in(page.folder / "samples"), key=lambda p: p.name)
  files = [f for f in files if re.fullmatch(r"step_\d+\.png", f.name)]
  if len(files) > SNAPSHOTS:
    files = [files[i] for i in np.linspace(0, len(files) - 1, SNAPSHOTS).round().astype(int)]
  return [{"url": embedded(f), "step": f"{int(f.stem.removeprefix('step_')):,}"} for f in files]


# --- charts -----------------------------------------------------------------------------------------------------------


def _finite(rows: Sequence[dict[str, float]], column: str) -> tuple[list[float], list[float]]:
  found = [(row["step"], row[column]) for row in rows if math.isfinite(row.get(column, math.nan))]
  return [step for step, _ in found], [value for _, value in found]


def _chart(name: str, lines: list[tuple[str, list[float], list[float]]], x: str, y: str) -> dict[str, Any]:
  """Returns a chart for the template: a figure of plotly.js, with a description for screen readers."""
  mode = lambda values: "lines" if len(values) > 40 else "lines+markers"
  traces = [{"type": "scatter", "x": a, "y": b, "name": label, "mode": mode(b)} for label, a, b in lines]
  last = "; ".join(f"{label}: {b[-1]:.4g} at the end, least {min(b):.4g}" for label, _, b in lines)
  return {"name": name, "figure": _figure(traces, x, y), "described": last, "log": all(min(b) > 0 for *_, b in lines)}


def _figure(traces: list[dict[str, Any]], x: str, y: str, **layout: Any) -> dict[str, Any]:
  axes = {"xaxis": {"title": {"text": x}}, "yaxis": {"title": {"text": y}}}
  return {"data": traces, "layout": axes | layout}


def _curves(pages: Sequence[Page]) -> Iterator[dict[str, Any]]:
  """Yields a chart for each of CHARTS that a run has values for. Several runs lie in the same chart."""
  for name, columns in CHARTS.items():
    lines = []
    for page in pages:
      for column, label in columns.items():
        steps, values = _finite(page.metrics, column)
        of = f"{page.name}: {label}" if len(pages) > 1 else label
        lines += [(of, steps, values)] if values else []
    if lines:
      reduction = loss_unit(pages[0].config) if name == "Loss" and len(pages) == 1 else name
      yield _chart(name, lines, "step", reduction)


def loss_unit(config: dict[str, Any]) -> str:
  """Returns the name of the loss with its reduction: losses with other weights or reductions cannot be compared."""
  training = config["training"]
  if training["task"] == "classifier":
    return "cross-entropy, nats"
  over = "mean" if training["reduce_mean"] else "half the sum"
  weighted = training.get("weighting") or ("likelihood" if training.get("likelihood_weighting") else "simple")
  name = training["task"] if training["task"] == "consistency" else training["objective"]
  return f"{name} loss, {over} over dimensions, weighting {weighted}"


def _histograms(pages: Sequence[Page]) -> Iterator[dict[str, Any]]:
  """Yields a chart of the likelihoods of single examples, of the newest step of each eval/likelihood*.npz."""
  for unit, label in (("bits_per_dim", "bits/dim"), ("nats", "nats")):
    traces, described = [], []
    for page in pages:
      for file in sorted(files_in(page.folder / "eval"), key=lambda p: p.name):
        if not re.fullmatch(r"likelihood.*\.npz", file.name):
          continue
        with contextlib.suppress(Exception), arrays_of(file) as arrays:  # one that is damaged is left out
          values = np.asarray(arrays[unit][-1], float)
          values = values[np.isfinite(values)]
          of = [page.name] * (len(pages) > 1) + [file.stem.replace("_", " "), f"step {int(arrays['step'][-1]):,}"]
          traces.append(
            {"type": "histogram", "x": values.tolist(), "name": ", ".join(of), "nbinsx": 40, "opacity": 0.7}
          )
          described.append(f"{of[-2]}: mean {values.mean():.4g}, standard deviation {values.std():.4g}")
    if traces:
      figure = _figure(traces, f"{label} of an example", "examples", barmode="overlay")
      yield {"name": "Likelihood of examples", "figure": figure, "described": "; ".join(described), "log": False}


# --- tables -----------------------------------------------------------------------------------------------------------


def _evaluations(pages: Sequence[Page]) -> dict[str, Any]:
  """Returns {"head": names, "rows": cells}: one row per evaluation of a checkpoint."""
  rows = []
  for page in pages:
    for name, report in page.reports.items():
      for row in report["checkpoints"]:
        own = {key: number(row["metrics"], key, digits=".4g") for key in row.get("metrics", {})}
        shown = {m.title: m.show(row) for m in MEASURES if m.show(row)} | own
        origin = {"run": page.name} if len(pages) > 1 else {}
        sampler = report.get("sampler", "") if "samples" in row else ""
        rows.append(
          origin | {"report": name.removesuffix(".json"), "step": f"{row['step']:,}", "sampler": sampler} | shown
        )
  head = list(dict.fromkeys(name for row in rows for name in row if any(r.get(name) for r in rows)))
  return {"head": head, "rows": [[row.get(name, "") for name in head] for row in rows]}


def _settings(page: Page) -> list[dict[str, Any]]:
  """Returns the sections of the config: {"name", "chosen": number, "keys": [{"key", "value", "default", ...}]}."""
  sections = []
  for section, values in page.config.items():
    keys = []
    for key, value in _flat({section: values}).items():
      chosen = page.chosen.get(key)
      keys.append({"key": key, "value": _shown(value), "chosen": chosen is not None, "meaning": _meaning(key),
                   "default": _shown(chosen[1]) if chosen else ""})  # fmt: skip
    sections.append({"name": section, "keys": keys, "chosen": sum(k["chosen"] for k in keys)})
  return sections


def _shown(value: Any) -> str:
  return "" if value is None else str(value)


def _meaning(key: str) -> str:
  with contextlib.suppress(Exception):
    return " ".join(describe(key).split())
  return ""


def differing(pages: Sequence[Page]) -> dict[str, list[str]]:
  """Returns {key: value of each run} of the settings in which the runs differ."""
  flat = [_flat(page.config) for page in pages]
  keys = dict.fromkeys(key for values in flat for key in values)
  return {
    key: [_shown(values.get(key)) for values in flat]
    for key in keys
    if len({str(_plain(values.get(key))) for values in flat}) > 1
  }


# --- the file ---------------------------------------------------------------------------------------------------------


@functools.lru_cache
def _template() -> Any:
  import jinja2

  text = importlib.resources.files("score_sde.run.report").joinpath("page.html.jinja").read_text()
  environment = jinja2.Environment(
    autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
  )
  return environment.from_string(text)


def _plotly() -> str:
  """Returns plotly.js, without importing plotly, which takes a second."""
  found = importlib.util.find_spec("plotly")
  assert found is not None
  assert found.origin
  return (path_of(found.origin).parent / "package_data" / "plotly.min.js").read_text()


def as_html(pages: Sequence[Page]) -> str:
  """Returns the page of a run, or of several with their curves in the same charts and the settings that differ."""
  first = pages[0]
  several = len(pages) > 1
  charts = [*_curves(pages), *_histograms(pages)]
  settings = [] if several else _settings(first)
  finished = (report.get("versions") for report in first.reports.values())
  return _template().render(
    title=f"{len(pages)} runs" if several else first.title,
    names=[page.name for page in pages],
    summaries=[page.summary for page in pages],
    several=several,
    evaluations=_evaluations(pages),
    pictures=[[p | {"caption": f"{page.name}: {p['caption']}"} for p in _pictures(page)[:2]] for page in pages]
    if several
    else [_pictures(first)],
    snapshots=[] if several else _snapshots(first),
    charts=charts,
    plotly=_plotly() if charts else "",
    differing=differing(pages) if several else {},
    settings=settings,
    chosen=[key for section in settings for key in section["keys"] if key["chosen"]],
    commands=[] if several else commands(first.folder),
    resume="" if several else _resume(first),
    versions={} if several else next((v for v in finished if v), {}),
    written=datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
  )


def _resume(page: Page) -> str:
  """Returns the command that resumes a run. A config that names code must be given again."""
  other = re.compile(r"--?mode[= ](sample|eval|plan)\b|score_sde (sample|eval|plan)\b")
  training = [line.partition("  ")[2] for line in commands(page.folder) if not other.search(line)]
  if page.names_code and training:
    return training[-1]
  return f"python -m score_sde train --workdir={shlex.quote(str(page.folder))}"


def write_page(workdir: str | Path) -> None:
  """Writes report.html into the workdir of a run."""
  page = read(workdir)
  save_atomically(page.folder / "report.html", lambda file: file.write(as_html([page]).encode()))


def refresh(workdir: Path) -> None:
  """Writes report.html anew. A page that cannot be written is a warning: it must not end the work that it shows."""
  try:
    write_page(workdir)
  except Exception as error:
    log.warning("report.html was not written (%s: %s).", type(error).__name__, error)


def write_comparison(runs: Sequence[str], output: Path) -> None:
  """Writes a page that shows several runs. Raises BadInput if one has no config.json."""
  runs = [str(path_of(run).parent) if path_of(run).is_file() else run for run in runs]  # reports are of their folders
  pages = [read(run) for run in dict.fromkeys(runs)]
  names = [page.name for page in pages]
  if len(set(names)) < len(names):  # a/run and b/run
    pages = [dataclasses.replace(p, name=str(path_of(run))) for p, run in zip(pages, dict.fromkeys(runs), strict=True)]
  save_atomically(output, lambda file: file.write(as_html(pages).encode()))
