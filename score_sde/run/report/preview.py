"""Preview of a data set, `python -m score_sde data show`: examples as the network will see them, with statistics."""

import dataclasses
import logging
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from ml_collections import ConfigDict

from score_sde.augmentation import Augmentation
from score_sde.batch import example_keys, fold
from score_sde.run import data
from score_sde.run.config import resolve
from score_sde.run.report import pictures
from score_sde.run.storage import path_of

log = logging.getLogger(__name__)

# Examples that are drawn, and those whose values and classes are counted.
SHOWN, COUNTED = 36, 2000
# Stream of an example's key, beside those of its flip and dequantization.
AUGMENT = 2


@dataclasses.dataclass(frozen=True)
class Preview:
  """Preview: statistics of a data set.

  Attributes:
    name: the name of the data.
    examples: {split: number}.
    shape: shape of one example.
    kind: what the values are, in words.
    classes: {name of a class: number of training examples among those counted}.
    low, high, mean, std: of the values on the scale of the network, over the training examples counted.
    counted: number of training examples that were counted.
  """

  name: str
  examples: dict[str, int]
  shape: tuple[int, ...]
  kind: str
  classes: dict[str, int]
  low: float
  high: float
  mean: float
  std: float
  counted: int

  def lines(self) -> list[str]:
    """Returns the statistics in words."""
    splits = " and ".join(f"{n:,} {split}" for split, n in self.examples.items())
    found = [
      f"{self.name}: {splits} examples of {' x '.join(map(str, self.shape))}, {self.kind}",
      f"to the network: {self.low:.3g} to {self.high:.3g}, mean {self.mean:.3g}, standard deviation {self.std:.3g} "
      f"({self.counted:,} examples)",
    ]
    if len(self.classes) > 1:
      some = list(self.classes.items())
      more = f", ... ({len(some)} classes)" if len(some) > 12 else ""
      found.append("classes: " + ", ".join(f"{name} {n:,}" for name, n in some[:12]) + more)
    return found


def show(config: ConfigDict, output: str = "data.png") -> Preview:
  """Draws training examples as the network will see them into the PNG `output`, and prints their statistics.

  They are cropped, flipped, dequantized and augmented (training.augment) at random, as in training.

  Raises:
    BadInput: if the data cannot be read.
  """
  config = resolve(config)
  sources: dict[str, Any] = {split: data.load(config, split) for split in ("train", "test")}
  source, scaling = sources["train"], data.scaling_of(config)
  place = np.arange(min(SHOWN, len(source)))
  chosen = data.shuffled(config.seed, len(source), place)
  batch = source.gather(chosen, *((place,) if getattr(source, "random", False) else ()))
  keys = example_keys(jax.random.key(config.seed), jnp.asarray(place))
  inputs = scaling.prepare(keys, jnp.asarray(batch["image"]), train=True)
  if config.training.augment:
    inputs, _ = Augmentation(config.training.augment)(fold(keys, AUGMENT), inputs)
  seen = np.asarray(scaling.inverse(inputs))

  index = np.arange(min(COUNTED, len(source)))
  counted = source.gather(data.shuffled(config.seed, len(source), index))
  its_keys = example_keys(jax.random.key(config.seed), jnp.asarray(index))
  values = np.asarray(scaling.prepare(its_keys, jnp.asarray(counted["image"])))
  names: list[str] = list(getattr(source, "names", ())) or [str(i) for i in range(getattr(source, "classes", 1))]
  counts = np.bincount(counted["label"], minlength=len(names))
  levels = scaling.levels
  found = Preview(
    data.name(config), {split: len(its) for split, its in sources.items()}, data.example_shape(config),
    "floats" if levels is None else f"{levels} levels", dict(zip(names, map(int, counts), strict=False)),
    float(values.min()), float(values.max()), float(values.mean()), float(values.std()), len(values),
  )  # fmt: skip
  captions = [names[i] for i in batch["label"]] if len(names) > 1 else None
  shown = seen if seen.ndim != 2 else np.asarray(scaling.inverse(values))  # points are drawn in numbers
  _draw(output, found, shown, values, captions)
  print("\n".join([*found.lines(), f"Wrote {output}."]), flush=True)
  return found


def _draw(output: str, found: Preview, seen: np.ndarray, values: np.ndarray, captions: list[str] | None) -> None:
  several = len(found.classes) > 1
  figure = Figure(figsize=(11, 6.8))
  grid = figure.add_gridspec(2 if several else 1, 2, width_ratios=(1.7, 1), hspace=0.45, wspace=0.2)
  bounded = found.kind != "floats"
  pictures.examples(figure, grid[:, 0], seen, captions, bounded)
  axes = figure.add_subplot(grid[0, 1])
  axes.hist(values.ravel()[:200_000], bins=60, color="tab:blue")
  axes.set(xlabel="value to the network", ylabel="number")
  axes.set_yticks([])
  if several:
    axes = figure.add_subplot(grid[1, 1])
    some = list(found.classes.items())[:20]
    axes.barh([name[:24] for name, _ in some], [n for _, n in some], color="tab:blue")
    axes.invert_yaxis()
    axes.tick_params(labelsize=8)
    axes.set_xlabel("examples")
  figure.suptitle("\n".join(line if len(line) < 120 else line[:117] + "..." for line in found.lines()[:2]), fontsize=10)
  pictures.save(figure, path_of(output))
