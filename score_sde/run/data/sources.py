"""Sources: open data sets that return examples by index."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Arrays: a data set in memory, of images (N, H, W, C) uint8 or vectors (N, D) float32, and labels (N,).

  `known_classes` is the number of classes, if this part of the data may not hold them all.
  """

  image: np.ndarray
  label: np.ndarray
  known_classes: int | None = None

  def __len__(self) -> int:
    return len(self.image)

  @property
  def classes(self) -> int:
    """Number of classes: `known_classes`, or the largest label + 1."""
    return self.known_classes or int(self.label.max()) + 1

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": self.image[indices], "label": self.label[indices].astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Lazy:
  """Lazy: a data set that is read example by example. `read(i)` returns (image, label), a label of 0 to classes - 1."""

  size: int
  read: Callable[[int], tuple[np.ndarray, int]]
  classes: int

  def __len__(self) -> int:
    return self.size

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    images, labels = zip(*(self.read(int(i)) for i in indices), strict=True)
    return {"image": np.stack(images), "label": np.asarray(labels, np.int32)}


Source = Arrays | Lazy


def split_off(n: int, split: str) -> np.ndarray:
  """Returns the indices of a `split` of `n` examples, for data without splits. A fixed tenth, up to 1,000, is test."""
  order = np.random.default_rng(0).permutation(n)
  held_out = min(1000, n // 10)
  return order[:held_out] if split == "test" else order[held_out:]
