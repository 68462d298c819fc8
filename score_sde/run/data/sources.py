"""Sources: open data sets that return examples by index."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """Arrays: a data set in memory.

  Attributes:
    image: images (N, H, W, C) uint8, or vectors (N, D) float32.
    label: classes (N,).
    names: names of all classes. This part of the data may not hold them all.
    examples: a name for each example, such as its file; empty if they have none.
    identity: a text that changes if the data do; "" to compute it from the arrays.
  """

  image: np.ndarray
  label: np.ndarray
  names: tuple[str, ...] = ()
  examples: tuple[str, ...] = ()
  identity: str = ""

  def __len__(self) -> int:
    return len(self.image)

  @property
  def classes(self) -> int:
    """Number of classes: that of `names`, or the largest label + 1."""
    return len(self.names) or int(self.label.max()) + 1

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": self.image[indices], "label": self.label[indices].astype(np.int32)}


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
  """Lazy: a data set that is read example by example.

  Attributes:
    size: number of examples.
    read: from an index to (image, label), a label of 0 to classes - 1.
    classes: number of classes.
    names, examples, identity: see `Arrays`.
  """

  size: int
  read: Callable[[int], tuple[np.ndarray, int]]
  classes: int
  names: tuple[str, ...] = ()
  examples: tuple[str, ...] = ()
  identity: str = ""

  def __len__(self) -> int:
    return self.size

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    images, labels = zip(*(self.read(int(i)) for i in indices), strict=True)
    return {"image": np.stack(images), "label": np.asarray(labels, np.int32)}


Source = Arrays | Lazy


def held_out_count(n: int) -> int:
  """Returns how many of `n` examples without splits are held out: a tenth, at most 1,000."""
  return min(1000, n // 10)


def split_off(n: int, split: str) -> np.ndarray:
  """Returns the indices of a `split` of `n` examples, for data without splits. A fixed tenth, up to 1,000, is test."""
  order = np.random.default_rng(0).permutation(n)
  held_out = held_out_count(n)
  return order[:held_out] if split == "test" else order[held_out:]


# Examples that stand for a source of a user's own class, which has no identity.
_SAMPLED = 64


def identity(source: Any) -> str:
  """Returns 16 hexadecimal digits or more that identify the examples of a source and their order.

  In memory they are those of all bytes, of files those of names and sizes. Of a source of a user's own class they are
  those of its length and of 64 examples.
  """
  if getattr(source, "identity", ""):
    return source.identity
  n = len(source)
  arrays = [source.image, source.label] if isinstance(source, Arrays) else []
  if not arrays and n:
    arrays = list(source.gather(np.unique(np.linspace(0, n - 1, _SAMPLED).astype(int))).values())
  found = hashlib.sha256(str(n).encode())
  for array in arrays:
    found.update(f"{array.dtype}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()[:16]
