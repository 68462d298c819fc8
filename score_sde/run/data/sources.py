"""What a data set is once it is open: examples by their number."""

import dataclasses
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Arrays:
  """A data set in memory: images (N, H, W, C) uint8 or vectors (N, D) float32, and labels (N,)."""

  image: np.ndarray
  label: np.ndarray

  def __len__(self) -> int:
    return len(self.image)

  @property
  def classes(self) -> int:
    """Classes that labels 0, 1, ... name."""
    return int(self.label.max()) + 1

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": self.image[indices], "label": self.label[indices].astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A data set read example by example; `read(i)` returns (image, label), one of `classes` labels."""

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
  """Which of `n` examples make up a `split` where the data has none: a fixed tenth, 1,000 at most, is test."""
  order = np.random.default_rng(0).permutation(n)
  held_out = min(1000, n // 10)
  return order[:held_out] if split == "test" else order[held_out:]
