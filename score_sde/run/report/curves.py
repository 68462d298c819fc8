"""Curves of a run over its steps: metrics.csv, metrics.jsonl and TensorBoard; and the best snapshot by FID."""

import csv
import io
import json
import math
import secrets
import time
from typing import Any

from tensorboardX import SummaryWriter

from score_sde.run.storage import Folder, Path, absolute, in_bucket, path_of, save_atomically

FIELDS = ("step", "loss", "grad_norm", "update_norm", "eval_loss", "fid")


class Curves:
  """Curves: writes the metrics of a run. If the run resumes at `step`, later rows are removed. One host `writes`.

  metrics.csv has the columns FIELDS. metrics.jsonl has one JSON object per row with all values, such as images per
  second and the learning rate, and the "seconds" of training until then, over all starts of the run.

  `wandb` has the project and the config for Weights & Biases, which copies what TensorBoard gets; None for none.

  Attributes:
    measured: steps of the snapshots whose FID is already in metrics.csv.
  """

  def __init__(self, workdir: Path, step: int, writes: bool = True, wandb: tuple[str, dict[str, Any]] | None = None):
    rows = [row for row in read(workdir) if row["step"] <= step]
    self.measured = {row["step"] for row in rows if _has_fid(row)}
    self._tensorboard, self._wandb = None, None
    if not writes:
      return
    # In a bucket, nothing can be added to the end of a file: these files are written here and copied.
    self._folder = Folder(workdir)
    self._folder.keep_in_sync()
    self._path = self._folder.local / "metrics.csv"
    if wandb:
      self._wandb = _follow(workdir, self._folder, *wandb)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(FIELDS))
    writer.writeheader()
    writer.writerows(_written(row) for row in rows)
    save_atomically(self._path, lambda file: file.write(text.getvalue().encode()))
    kept = [row for row in read_all(workdir) if row["step"] <= step]
    self._lines = self._folder.local / "metrics.jsonl"
    save_atomically(self._lines, lambda file: file.write("".join(json.dumps(row) + "\n" for row in kept).encode()))
    self._began = time.monotonic() - max((row.get("seconds", 0.0) for row in kept), default=0.0)
    self._tensorboard = SummaryWriter(str(self._folder.local / "tensorboard"), purge_step=step + 1 if step else None)

  def write(self, step: int, **values: float) -> None:
    """Adds a row. Values that are no field of metrics.csv only go to metrics.jsonl and TensorBoard."""
    if not self._tensorboard:
      return
    with self._path.open("a", newline="") as file:
      csv.DictWriter(file, list(FIELDS)).writerow(_written({"step": step} | values))
    row = {"step": step, "seconds": round(time.monotonic() - self._began, 3)} | {k: float(v) for k, v in values.items()}
    with self._lines.open("a") as file:
      file.write(json.dumps({k: v for k, v in row.items() if math.isfinite(v)}) + "\n")
    self._to_tensorboard(step, values)

  def _to_tensorboard(self, step: int, values: dict[str, float]) -> None:
    assert self._tensorboard is not None
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)
    self._tensorboard.flush()

  def sync(self) -> None:
    """Copies the curves to the bucket of the workdir, if it lies in one. Called before each checkpoint is saved."""
    if self._tensorboard:
      self._folder.sync()

  def text(self, name: str, text: str) -> None:
    """Adds a text, in Markdown, to TensorBoard."""
    if self._tensorboard:
      self._tensorboard.add_text(name, text)
      self._tensorboard.flush()

  def picture(self, name: str, path: Path, step: int) -> None:
    """Adds a PNG to TensorBoard."""
    if not self._tensorboard:
      return
    import matplotlib.image

    with path.open("rb") as file:
      content: Any = file
      self._tensorboard.add_image(name, matplotlib.image.imread(content)[..., :3], step, dataformats="HWC")
    self._tensorboard.flush()

  def close(self) -> None:
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()
    if self._tensorboard:
      self._folder.close()


def add_evaluation(workdir: Path, step: int, values: dict[str, float]) -> None:
  """Adds the numbers of an evaluation to TensorBoard, as a run named `evaluation` beside that of the training."""
  folder = Folder(workdir)
  writer = SummaryWriter(str(folder.local / "tensorboard" / "evaluation"))
  for name, value in values.items():
    writer.add_scalar(name, value, step)
  writer.close()
  folder.close()


def _follow(workdir: Path, written: Folder, project: str, config: dict[str, Any]) -> Any:
  """Starts a run of Weights & Biases, or resumes that of the workdir, which follows its TensorBoard files."""
  import wandb
  import wandb.integration.tensorboard as following

  file = workdir / "wandb_id"
  if not file.exists():
    save_atomically(file, lambda f: f.write(secrets.token_hex(8).encode()))
  folder = str(written.local / "tensorboard")
  # Beside a bucket, in the current folder: its files stay on this machine, for `wandb sync`.
  own = None if in_bucket(workdir) else str(written.local)
  if not wandb.patched["tensorboard"]:
    following.patch(root_logdir=folder, tensorboard_x=True)
  return wandb.init(
    project=project, name=absolute(workdir).name, id=file.read_text(), resume="allow", dir=own,
    config=config,
  )  # fmt: skip


def _written(row: dict[str, float]) -> dict[Any, str]:
  return {k: str(row[k]) if k == "step" else repr(float(row.get(k, math.nan))) for k in FIELDS}


def read(workdir: str | Path) -> list[dict[str, float]]:
  """Reads the rows of metrics.csv. Leaves out a last line that was cut short by a kill."""
  path = path_of(workdir) / "metrics.csv"
  if not path.exists():
    return []
  rows = []
  for row in csv.DictReader(path.read_text().splitlines()):
    try:
      rows.append({k: int(v) if k == "step" else float(v) for k, v in row.items()})
    except (TypeError, ValueError):
      break
  return rows


def _read_lines(workdir: str | Path) -> list[dict[str, float]]:
  """Reads the rows of metrics.jsonl. Leaves out lines that are damaged, or were cut short by a kill."""
  path = path_of(workdir) / "metrics.jsonl"
  rows = []
  for line in path.read_text().splitlines() if path.exists() else ():
    try:
      row = json.loads(line)
      rows.append({"step": int(row["step"])} | {k: float(v) for k, v in row.items() if k != "step"})
    except (TypeError, ValueError, LookupError, AttributeError):
      continue
  return rows


def read_all(workdir: str | Path) -> list[dict[str, float]]:
  """Returns the rows of the run with all values: those of metrics.jsonl, after those that only metrics.csv has."""
  rows = _read_lines(workdir)
  first = rows[0]["step"] if rows else math.inf
  finite = lambda row: {k: v for k, v in row.items() if math.isfinite(v)}
  return [finite(row) for row in read(workdir) if row["step"] < first] + rows


def _has_fid(row: dict[str, float]) -> bool:
  return math.isfinite(row.get("fid", math.nan))


def best_step(workdir: str | Path) -> int | None:
  """Returns the step of the snapshot with the least FID; None if no FID was measured."""
  rows = [row for row in read(workdir) if _has_fid(row)]
  return int(min(rows, key=lambda row: row["fid"])["step"]) if rows else None
