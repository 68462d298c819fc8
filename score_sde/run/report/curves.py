"""Curves of a run over its steps: metrics.csv and TensorBoard; and the best snapshot by FID."""

import csv
import io
import math
import pathlib
import secrets
from typing import Any

from tensorboardX import SummaryWriter

from score_sde.run.report import pictures

FIELDS = ("step", "loss", "grad_norm", "update_norm", "eval_loss", "fid")


class Curves:
  """Curves: writes the metrics of a run. If the run resumes at `step`, later rows are removed. One host `writes`.

  `wandb` has the project and the config for Weights & Biases, which copies what TensorBoard gets; None for none.

  Attributes:
    measured: steps of the snapshots whose FID is already in metrics.csv.
  """

  def __init__(
    self, workdir: pathlib.Path, step: int, writes: bool = True, wandb: tuple[str, dict[str, Any]] | None = None
  ):
    self._path = workdir / "metrics.csv"
    rows = [row for row in read(workdir) if row["step"] <= step]
    self.measured = {row["step"] for row in rows if _has_fid(row)}
    self._tensorboard, self._wandb = None, None
    if not writes:
      return
    if wandb:
      self._wandb = _follow(workdir, *wandb)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(FIELDS))
    writer.writeheader()
    writer.writerows(_written(row) for row in rows)
    pictures.save_atomically(self._path, lambda file: file.write(text.getvalue().encode()))
    self._tensorboard = SummaryWriter(str(workdir.resolve() / "tensorboard"), purge_step=step + 1 if step else None)

  def write(self, step: int, **values: float) -> None:
    """Adds a row. Values that are no field of metrics.csv only go to TensorBoard."""
    if not self._tensorboard:
      return
    with self._path.open("a", newline="") as file:
      csv.DictWriter(file, list(FIELDS)).writerow(_written({"step": step} | values))
    for name, value in values.items():
      self._tensorboard.add_scalar(name, value, step)
    self._tensorboard.flush()

  def picture(self, name: str, path: pathlib.Path, step: int) -> None:
    """Adds a PNG to TensorBoard."""
    if not self._tensorboard:
      return
    import matplotlib.image

    self._tensorboard.add_image(name, matplotlib.image.imread(path)[..., :3], step, dataformats="HWC")
    self._tensorboard.flush()

  def close(self) -> None:
    if self._tensorboard:
      self._tensorboard.close()
    if self._wandb:
      self._wandb.finish()


def _follow(workdir: pathlib.Path, project: str, config: dict[str, Any]) -> Any:
  """Starts a run of Weights & Biases, or resumes that of the workdir, which follows its TensorBoard files."""
  import wandb
  import wandb.integration.tensorboard as following

  file = workdir / "wandb_id"
  if not file.exists():
    pictures.save_atomically(file, lambda f: f.write(secrets.token_hex(8).encode()))
  folder = str(workdir.resolve() / "tensorboard")
  if not wandb.patched["tensorboard"]:
    following.patch(root_logdir=folder, tensorboard_x=True)
  return wandb.init(
    project=project, name=workdir.resolve().name, id=file.read_text(), resume="allow", dir=str(workdir.resolve()),
    config=config,
  )  # fmt: skip


def _written(row: dict[str, float]) -> dict[Any, str]:
  return {k: str(row[k]) if k == "step" else repr(float(row.get(k, math.nan))) for k in FIELDS}


def read(workdir: str | pathlib.Path) -> list[dict[str, float]]:
  """Reads the rows of metrics.csv. Leaves out a last line that was cut short by a kill."""
  path = pathlib.Path(workdir) / "metrics.csv"
  if not path.exists():
    return []
  rows = []
  for row in csv.DictReader(path.read_text().splitlines()):
    try:
      rows.append({k: int(v) if k == "step" else float(v) for k, v in row.items()})
    except (TypeError, ValueError):
      break
  return rows


def _has_fid(row: dict[str, float]) -> bool:
  return math.isfinite(row.get("fid", math.nan))


def best_step(workdir: str | pathlib.Path) -> int | None:
  """Returns the step of the snapshot with the least FID; None if no FID was measured."""
  rows = [row for row in read(workdir) if _has_fid(row)]
  return int(min(rows, key=lambda row: row["fid"])["step"]) if rows else None
