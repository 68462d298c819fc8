"""Pictures of a run: grids of samples, one sample from noise to data, densities, posteriors, curves."""

from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from cycler import cycler
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from score_sde.run.storage import Path, save_atomically

# One style for all pictures. The colours are those of Okabe and Ito, which colour-blind people can tell apart.
STYLE: Any = {
  "axes.prop_cycle": cycler(color=["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"]),
  "axes.spines.top": False,
  "axes.spines.right": False,
  "font.size": 10,
  "axes.titlesize": 10,
  "legend.frameon": False,
  "savefig.dpi": 200,
}
matplotlib.rcParams.update(STYLE)


def save(figure: Figure, path: str | Path) -> None:
  save_atomically(path, lambda file: figure.savefig(file, format="png", bbox_inches="tight", pad_inches=0.15))


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


def limits(points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """Returns the (low, high) ends (2,) of axes that show points (N, 2): a square where both ranges are similar."""
  low, high = np.quantile(points, (0.001, 0.999), axis=0)
  half = 0.55 * (high - low) + 1e-6
  if half.max() < 3 * half.min():
    half = np.full(2, half.max())
  return (low + high) / 2 - half, (low + high) / 2 + half


def _frame(axes, low: np.ndarray, high: np.ndarray, **more: Any) -> None:
  """Gives axes their `limits`."""
  equal = {"aspect": "equal"} if np.isclose(*(high - low)) else {}
  axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), **equal, **more)


def sample_grid(
  path: str | Path,
  samples: np.ndarray,
  title: str,
  reference: np.ndarray | None = None,
  captions: Sequence[str] | None = None,
  bounded: bool = True,
) -> None:
  """Writes a PNG of samples under a title.

  It is a grid of images in [0, 1] (N, H, W, C), or of the middle slices of volumes (N, D, H, W, C); the lines of series
  (N, L, C); a scatter plot of points (N, 2), or histograms and scatter plots of the columns of others (N, D).
  `reference`, data of the same kind, is drawn beside the samples. The range of images and volumes is then that of the
  data and not [0, 1]; without data it is their own, unless they are `bounded`. `captions`, one per image, are written
  above them.
  """
  samples = np.nan_to_num(np.asarray(samples, np.float64))
  if samples.ndim == 2 and samples.shape[1] != 2:
    return _histograms(path, samples, title, reference)
  panels = [("samples", samples)] + ([("data", np.asarray(reference))] if reference is not None else [])
  if samples.ndim == 3:
    return _lines(path, panels, title)
  figure = Figure(figsize=(6 * len(panels), 6.2))
  colours = None
  if samples.ndim > 3:
    scaled_by = panels[-1][1] if len(panels) == 1 else panels[-1][1][:64]  # as in _as_images
    colours = None if bounded else _range(_first_channels(_slices(scaled_by)))
    panels = _as_images(panels, bounded)
  for i, (name, values) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels), i + 1)
    if values.ndim == 4:
      _grid(axes, values, captions)
    else:
      axes.plot(*values.T, ".", markersize=2, alpha=0.5)
      _frame(axes, *limits(panels[-1][1]))
    if len(panels) > 1:
      axes.set_title(name, fontsize=10)
  if colours and panels[0][1].shape[-1] == 1:
    scale = ScalarMappable(Normalize(*colours), "gray")
    figure.colorbar(scale, ax=figure.axes, shrink=0.6, pad=0.02, label="value")
  figure.suptitle(title, fontsize=11)
  save(figure, path)


def _grid(axes, images: np.ndarray, captions: Sequence[str] | None, inches: float = 4.6) -> None:
  """Draws images (N, H, W, C) in [0, 1] as a grid, about square. Captions above them fit into its `inches`."""
  height, width = images.shape[1:3]
  n = len(images)
  square = max(1, min(n, round((n * height / width) ** 0.5)))
  # As few places of the last row as possible are empty.
  columns = min(range(square, min(2 * square, n) + 1), key=lambda c: (-n % c, c))
  above = max(3, round(0.28 * images.shape[1])) if captions else 1
  sheet, corners = _tile(np.clip(images, 0, 1), columns, above=above)
  _show(axes, sheet)
  if captions:
    inches *= min(1.0, sheet.shape[1] / sheet.shape[0])  # a tall sheet is as high as wide ones are wide
    width = inches * 72 / columns  # of an image, in points
    size = min(9.0, width / max(0.62 * max(map(len, captions)), 2.0), 0.16 * width)
    for (left, top), text in zip(corners, captions, strict=False):
      axes.text(left - 0.5, top - 0.7, text, fontsize=size, va="bottom", ha="left", clip_on=True, parse_math=False)


def examples(figure: Figure, cell, values: np.ndarray, captions: Sequence[str] | None, bounded: bool) -> None:
  """Draws examples of any shape into a cell of a figure's grid.

  Images and volumes in [0, 1] if `bounded`, else scaled to their range; series as lines, points as histograms of their
  columns, or a scatter plot of two columns.
  """
  if values.ndim > 3:
    images = _first_channels(_slices(values))
    images = images if bounded else _scaled(images, images)
    return _grid(figure.add_subplot(cell), images, captions, 4.2)
  if values.ndim == 2 and values.shape[1] == 2:
    figure.add_subplot(cell).plot(*values.T, ".", markersize=3)
    return None
  series = values.ndim == 3
  count = min(9, len(values) if series else values.shape[1])
  inner = cell.subgridspec(3, 3, hspace=0.5)
  for i in range(count):
    axes = figure.add_subplot(inner[i // 3, i % 3])
    axes.tick_params(labelsize=6)
    if series:
      axes.plot(values[i], lw=0.9)
      axes.set_title(captions[i] if captions else "", fontsize=7)
    else:
      axes.hist(values[:, i], bins=30)
      axes.set_title(f"column {i}", fontsize=7)
  return None


def _first_channels(images: np.ndarray) -> np.ndarray:
  """Returns the channels of images (..., C) that can be drawn: all of 1, 3 or 4, or else the first 3 or 1."""
  channels = images.shape[-1]
  return images if channels in (1, 3, 4) else images[..., : 3 if channels > 3 else 1]


def _slices(values: np.ndarray) -> np.ndarray:
  """Returns the middle slices (..., H, W, C) of volumes (N, D, H, W, C), and images as they are."""
  return values[:, values.shape[1] // 2] if values.ndim == 5 else values


def _as_images(panels: list[tuple[str, np.ndarray]], bounded: bool) -> list[tuple[str, np.ndarray]]:
  """Returns panels of images in [0, 1]: at most 64 of each, scaled to the range of the data if these are there."""
  if len(panels) == 1:
    values = _first_channels(_slices(panels[0][1]))
    return [("samples", values if bounded else _scaled(values, values))]
  panels = [(name, _first_channels(_slices(values[:64]))) for name, values in panels]
  return [(name, _scaled(values, panels[1][1])) for name, values in panels]


def _scaled(values: np.ndarray, data: np.ndarray) -> np.ndarray:
  """Returns values on a scale on which most of `data` lie in [0, 1]."""
  low, high = _range(data)
  return np.clip((values - low) / max(high - low, 1e-12), 0, 1)


def _range(data: np.ndarray) -> tuple[float, float]:
  """Returns values between which most of `data` lie."""
  low, high = np.quantile(data, (0.002, 0.998))
  return float(low), float(high)


# Series that are drawn of each set, and columns of points.
_SERIES, _COLUMNS = 12, 5


def _lines(path: str | Path, panels: list[tuple[str, np.ndarray]], title: str) -> None:
  figure = Figure(figsize=(6 * len(panels), 9))
  shown = panels[-1][1]
  low, high = np.min(shown), np.max(shown)
  for i, (name, values) in enumerate(panels):
    for j, series in enumerate(values[:_SERIES]):
      axes = figure.add_subplot(_SERIES, len(panels), j * len(panels) + i + 1)
      axes.plot(series, lw=0.9)
      axes.set(ylim=(low - 0.1 * (high - low), high + 0.1 * (high - low)))
      if j < min(len(values), _SERIES) - 1:
        axes.set_xticks([])
      else:
        axes.set_xlabel("position in the series")
      axes.tick_params(labelsize=6)
      if not j:
        axes.set_title(name, fontsize=10)
  figure.suptitle(title, fontsize=11)
  save(figure, path)


def _histograms(path: str | Path, samples: np.ndarray, title: str, reference: np.ndarray | None) -> None:
  """Writes histograms of the first columns on the diagonal, and scatter plots of pairs of them below it."""
  sets = [("data", np.asarray(reference), "tab:gray")] if reference is not None else []
  sets.append(("samples", samples, "tab:blue"))
  count = min(samples.shape[1], _COLUMNS)
  figure = Figure(figsize=(2.2 * count + 1.5, 2.2 * count + 0.8))
  for row in range(count):
    for column in range(row + 1):
      axes = figure.add_subplot(count, count, row * count + column + 1)
      axes.tick_params(labelsize=6)
      low, high = np.quantile(sets[0][1][:, column], (0.001, 0.999))
      limits = (low - 0.15 * (high - low), high + 0.15 * (high - low))
      for name, values, color in sets:
        if row == column:
          axes.hist(values[:, row], bins=40, range=limits, density=True, alpha=0.5, color=color, label=name)
        else:
          axes.plot(values[:2000, column], values[:2000, row], ".", ms=1.5, alpha=0.4, color=color)
      axes.set_xlim(*limits)
      if row == count - 1:
        axes.set_xlabel(f"column {column}", fontsize=8)
  figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="upper right", fontsize=9)
  figure.suptitle(title, fontsize=11)
  save(figure, path)


def denoising(
  path: str | Path, frames: Sequence[tuple[float, np.ndarray, np.ndarray | None]], title: str, kind: str = "image"
) -> None:
  """Writes a PNG of one sample from noise to data.

  `frames` are (t, x_t, E[x_0 | x_t]) in time order. Each column shows the noisy image, scaled to its own range, and
  below it the model's estimate of x_0. For `kind` "series", arrays (L, C) are drawn as lines. For "points", x_t (N, D)
  are all samples, one scatter plot per frame of their first two columns.
  """
  if kind == "series":
    return _denoised_series(path, frames, title)
  points = kind == "points"
  rows = 1 if points else 2
  figure = Figure(figsize=(1.4 * len(frames), 1.45 * rows))
  for i, (t, x, expected) in enumerate(frames):
    axes = figure.add_subplot(rows, len(frames), i + 1)
    axes.set_title(f"t = {t:.2g}", fontsize=9)
    if points and x.shape[1] == 1:
      axes.hist(x[:, 0], bins=40)
      axes.set(xticks=[], yticks=[])
      continue
    if points:
      axes.plot(*x[:, :2].T, ".", markersize=1, alpha=0.5)
      _frame(axes, *limits(x[:, :2]), xticks=[], yticks=[])
      continue
    low, high = x.min(), x.max()
    _show(axes, (_first_channels(x) - low) / max(high - low, 1e-6))
    if expected is not None:
      _show(figure.add_subplot(rows, len(frames), len(frames) + i + 1), np.clip(_first_channels(expected), 0, 1))
  lines = title.count("\n")
  figure.suptitle(title, fontsize=10, y=1.08 + 0.08 * lines if rows > 1 else 1.05 + 0.14 * lines)
  save(figure, path)


def _denoised_series(
  path: str | Path, frames: Sequence[tuple[float, np.ndarray, np.ndarray | None]], title: str
) -> None:
  figure = Figure(figsize=(7, 0.9 * len(frames) + 1))
  for i, (t, x, expected) in enumerate(frames):
    axes = figure.add_subplot(len(frames), 1, i + 1)
    axes.plot(x[:, 0], lw=0.8, label="x(t)")
    if expected is not None:
      axes.plot(expected[:, 0], lw=1, label="estimate of x(0)")
    axes.set_ylabel(f"t = {t:.2g}", fontsize=8)
    axes.tick_params(labelsize=6)
    axes.set_xticks([])
  figure.axes[0].legend(fontsize=7, loc="upper right", ncols=2)
  figure.suptitle(title, fontsize=10)
  save(figure, path)


def paths(
  path: str | Path, panels: Sequence[tuple[float, np.ndarray, np.ndarray, np.ndarray]], x: np.ndarray, title: str
) -> None:
  """Writes a PNG of score fields and of paths of points in the plane.

  `panels` are (t, grid (M, 2), score (M, 2), samples (N, 2)): arrows of one length per panel show the direction of the
  score, their colour its size. `x` (frames, N, 2) are the paths, from noise to data; 40 of them are drawn.
  """
  figure = Figure(figsize=(4.2 * (len(panels) + 1), 4.6))
  for i, (t, grid, score, samples) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels) + 1, i + 1)
    size = np.linalg.norm(score, axis=1) + 1e-12
    axes.plot(*samples.T, ".", markersize=3, color="0.75")
    arrows = axes.quiver(*grid.T, *(score / size[:, None]).T, np.log10(size), cmap="viridis", scale=28, width=0.004)
    bar = figure.colorbar(arrows, ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("log10 of the size of the score")
    _frame(axes, grid.min(0), grid.max(0), title=f"score and samples at t = {t:.2g}")
  axes = figure.add_subplot(1, len(panels) + 1, len(panels) + 1)
  for line in np.swapaxes(x, 0, 1)[:40]:
    axes.plot(*line.T, lw=0.6, alpha=0.7)
  axes.plot(*x[0, :40].T, ".", color="0.6", markersize=4, label="noise")
  axes.plot(*x[-1, :40].T, ".", color="black", markersize=4, label="samples")
  low, high = limits(x[0])
  _frame(axes, low, high, title="paths of samples")
  axes.legend(loc="upper right")
  figure.suptitle(title, fontsize=11)
  figure.tight_layout()
  save(figure, path)


def density(
  path: str | Path, panels: Sequence[tuple[str, np.ndarray, np.ndarray]], data: np.ndarray, title: str
) -> None:
  """Writes a PNG of densities in two dimensions beside `data` (N, 2).

  Each panel is a name, points (n, n, 2), and the log-density (n, n) at them.
  """
  figure = Figure(figsize=(3.6 * (len(panels) + 1), 4.6))
  for i, (name, points, log_p) in enumerate(panels):
    axes = figure.add_subplot(1, len(panels) + 1, i + 1)
    shown = axes.pcolormesh(points[..., 0], points[..., 1], np.exp(log_p), shading="nearest", rasterized=True)
    bar = figure.colorbar(shown, ax=axes, location="bottom", shrink=0.9, pad=0.1, label="density")
    bar.locator = MaxNLocator(3)
    axes.set(aspect="equal")
    axes.set_title(name, fontsize=10)
  axes = figure.add_subplot(1, len(panels) + 1, len(panels) + 1)
  axes.plot(*data.T, ".", markersize=1.5, alpha=0.5)
  _frame(axes, *limits(data))
  axes.set_title("data", fontsize=10)
  figure.suptitle(title, fontsize=11, y=0.98, va="bottom")  # of any number of lines
  save(figure, path)


def posteriors(path: str | Path, rows: Sequence[dict[str, np.ndarray]], title: str) -> None:
  """Writes a PNG of images (H, W, C) in [0, 1] in named columns, with one row per input."""
  figure = Figure(figsize=(1.3 * len(rows[0]), 1.3 * len(rows) + 0.3))
  for i, row in enumerate(rows):
    for j, (name, image) in enumerate(row.items()):
      axes = figure.add_subplot(len(rows), len(row), i * len(row) + j + 1)
      _show(axes, _first_channels(np.clip(np.nan_to_num(image), 0, 1)))
      if i == 0:
        axes.set_title(name, fontsize=8)
  figure.suptitle(title, fontsize=9, y=0.93 + 0.35 / (1.3 * len(rows) + 0.3))
  save(figure, path)


def curves(
  path: str | Path,
  series: dict[str, tuple[np.ndarray, np.ndarray]],
  title: str,
  xlabel: str = "step",
  log: bool = False,
  ylabel: str = "",
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
  axes.set(xlabel=xlabel, ylabel=ylabel, title=title, xscale="log" if log else "linear")
  axes.grid(alpha=0.3)
  axes.legend()
  save(figure, path)
