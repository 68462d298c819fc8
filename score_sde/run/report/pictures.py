"""Pictures of a run: grids of samples, one sample from noise to data, densities, posteriors, curves."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from score_sde.run.storage import Path, save_atomically


def _save(figure: Figure, path: str | Path) -> None:
  save_atomically(path, lambda file: figure.savefig(file, format="png", dpi=110, bbox_inches="tight", pad_inches=0.15))


def _tile(
  images: np.ndarray, columns: int, border: int = 1, above: int = 1
) -> tuple[np.ndarray, list[tuple[int, int]]]:
  """Arranges images (N, H, W, C) in [0, 1] on white, with `border` pixels between columns and `above` each row.

  Returns the sheet and the (left, top) corner of each image.
  """
  n, height, width, channels = images.shape
  rows = -(-n // columns)
  sheet = np.ones((rows * (height + above) + border, columns * (width + border) + border, channels))
  corners = [(border + i % columns * (width + border), above + i // columns * (height + above)) for i in range(n)]
  for (left, top), image in zip(corners, images, strict=True):
    sheet[top : top + height, left : left + width] = image
  return sheet, corners


def _show(axes, image: np.ndarray) -> None:
  axes.imshow(
    image.squeeze(-1) if image.shape[-1] == 1 else image, cmap="gray", vmin=0, vmax=1, interpolation="nearest"
  )
  axes.set_axis_off()


def _limits(points: np.ndarray) -> float:
  return float(1.1 * np.quantile(np.abs(points), 0.999) + 1e-6)


def sample_grid(
  path: str | Path,
  samples: np.ndarray,
  title: str,
  reference: np.ndarray | None = None,
  captions: Sequence[str] | None = None,
) -> None:
  """Writes a PNG of samples under a title: a grid of images in [0, 1] (N, H, W, C), or a scatter plot of points (N, 2).

  `reference`, data of the same kind, is drawn beside the samples. `captions`, one per image, are written above them.
  """
  samples = np.nan_to_num(np.asarray(samples, np.float64))
  panels = [("samples", samples)] + ([("data", np.asarray(reference))] if reference is not None else [])
  figure = Figure(figsize=(6 * len(panels), 6.2))
  for i, (name, values) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels), i + 1)
    if values.ndim == 4:
      columns = max(1, round(len(values) ** 0.5))
      above = max(3, round(0.28 * values.shape[1])) if captions else 1
      sheet, corners = _tile(np.clip(values, 0, 1), columns, above=above)
      _show(axes, sheet)
      if captions:
        width = 5.5 * 72 / columns  # of an image, in points
        size = min(9.0, width / max(0.62 * max(map(len, captions)), 2.0), 0.16 * width)
        for (left, top), text in zip(corners, captions, strict=False):
          axes.text(left - 0.5, top - 0.7, text, fontsize=size, va="bottom", ha="left", clip_on=True, parse_math=False)
    else:
      limit = _limits(panels[-1][1])
      axes.plot(*values.T, ".", markersize=2, alpha=0.5)
      axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    if len(panels) > 1:
      axes.set_title(name, fontsize=10)
  figure.suptitle(title, fontsize=11)
  _save(figure, path)


def denoising(path: str | Path, frames: Sequence[tuple[float, np.ndarray, np.ndarray | None]], title: str) -> None:
  """Writes a PNG of one sample from noise to data.

  `frames` are (t, x_t, E[x_0 | x_t]) in time order. Each column shows the noisy image, scaled to its own range, and
  below it the model's estimate of x_0. Points (N, 2) are drawn as one scatter plot per frame.
  """
  points = frames[0][1].ndim == 2
  rows = 1 if points else 2
  figure = Figure(figsize=(1.4 * len(frames), 1.45 * rows))
  for i, (t, x, expected) in enumerate(frames):
    axes = figure.add_subplot(rows, len(frames), i + 1)
    axes.set_title(f"t = {t:.2g}", fontsize=9)
    if points:
      limit = _limits(x)
      axes.plot(*x.T, ".", markersize=1, alpha=0.5)
      axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal", xticks=[], yticks=[])
      continue
    low, high = x.min(), x.max()
    _show(axes, (x - low) / max(high - low, 1e-6))
    if expected is not None:
      _show(figure.add_subplot(rows, len(frames), len(frames) + i + 1), np.clip(expected, 0, 1))
  lines = title.count("\n")
  figure.suptitle(title, fontsize=10, y=1.08 + 0.08 * lines if rows > 1 else 1.05 + 0.14 * lines)
  _save(figure, path)


def density(
  path: str | Path, panels: Sequence[tuple[str, np.ndarray, np.ndarray]], data: np.ndarray, title: str
) -> None:
  """Writes a PNG of densities in two dimensions beside `data` (N, 2).

  Each panel is a name, points (n, n, 2), and the log-density (n, n) at them.
  """
  figure = Figure(figsize=(3.6 * (len(panels) + 1), 4.6))
  for i, (name, points, log_p) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels) + 1, i + 1)
    axes.pcolormesh(points[..., 0], points[..., 1], np.exp(log_p), shading="nearest", rasterized=True)
    axes.set(aspect="equal")
    axes.set_title(name, fontsize=10)
  axes = figure.add_subplot(1, len(panels) + 1, len(panels) + 1)
  axes.plot(*data.T, ".", markersize=1.5, alpha=0.5)
  limit = _limits(data)
  axes.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
  axes.set_title("data", fontsize=10)
  figure.suptitle(title, fontsize=11)
  _save(figure, path)


def posteriors(path: str | Path, rows: Sequence[dict[str, np.ndarray]], title: str) -> None:
  """Writes a PNG of images (H, W, C) in [0, 1] in named columns, with one row per input."""
  figure = Figure(figsize=(1.3 * len(rows[0]), 1.3 * len(rows) + 0.3))
  for i, row in enumerate(rows):
    for j, (name, image) in enumerate(row.items()):
      axes = figure.add_subplot(len(rows), len(row), i * len(row) + j + 1)
      _show(axes, np.clip(np.nan_to_num(image), 0, 1))
      if i == 0:
        axes.set_title(name, fontsize=8)
  figure.suptitle(title, fontsize=9, y=0.93 + 0.35 / (1.3 * len(rows) + 0.3))
  _save(figure, path)


def curves(
  path: str | Path,
  series: dict[str, tuple[np.ndarray, np.ndarray]],
  title: str,
  xlabel: str = "step",
  log: bool = False,
) -> None:
  """Writes a PNG of curves {name: (step, value)}. Smooths curves of 100 points or more over 1/50 of their points."""
  figure = Figure(figsize=(7, 4))
  axes = figure.add_subplot()
  for name, (step, value) in series.items():
    step, value = np.asarray(step), np.asarray(value)
    width = max(1, len(value) // 50)
    if width > 1:
      value = np.convolve(value, np.ones(width) / width, mode="valid")
      step = step[width - 1 :]
    axes.plot(step, value, label=name)
  axes.set(xlabel=xlabel, title=title, xscale="log" if log else "linear")
  axes.grid(alpha=0.3)
  axes.legend()
  _save(figure, path)
