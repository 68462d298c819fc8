"""Sources: open data sets that return examples by index."""

import dataclasses
import hashlib
from collections.abc import Callable
from typing import Any

import numpy as np


def as_stored(x: np.ndarray) -> np.ndarray:
  """Returns examples in the type in which batches hold them: uint8 and uint16 as they are, anything else as float32."""
  return np.asarray(x) if x.dtype in (np.uint8, np.uint16) else np.asarray(x, np.float32)


@dataclasses.dataclass(frozen=True, eq=False)
class Arrays:
  """Arrays: a data set in memory.

  Attributes:
    image: the examples (N, ..., C): integers with levels such as images (N, H, W, C) uint8, or floats.
    label: classes (N,).
    condition: a vector or an image for each example, (N, ...), or None.
    columns: names of the columns of a table.
    names: names of all classes. This part of the data may not hold them all.
    examples: a name for each example, such as its file; empty if they have none.
    identity: a text that changes if the data do; "" to compute it from the arrays.
  """

  image: np.ndarray
  label: np.ndarray
  names: tuple[str, ...] = ()
  examples: tuple[str, ...] = ()
  identity: str = ""
  condition: np.ndarray | None = None
  columns: tuple[str, ...] = ()

  def __len__(self) -> int:
    return len(self.image)

  @property
  def classes(self) -> int:
    """Number of classes: that of `names`, or the largest label + 1."""
    return len(self.names) or int(self.label.max()) + 1

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    found = {"image": as_stored(self.image[indices]), "label": self.label[indices].astype(np.int32)}
    return found if self.condition is None else found | {"condition": as_stored(self.condition[indices])}


@dataclasses.dataclass(frozen=True, eq=False)
class Lazy:
  """Lazy: a data set that is read example by example.

  Attributes:
    size: number of examples.
    read: from an index to (image, label), a label of 0 to classes - 1.
    classes: number of classes.
    names, examples, identity: see `Arrays`.
    random: True if `read` also takes a generator, and gives another part of an example with each.
  """

  size: int
  read: Callable[..., tuple[np.ndarray, int]]
  classes: int
  names: tuple[str, ...] = ()
  examples: tuple[str, ...] = ()
  identity: str = ""
  random: bool = False

  def __len__(self) -> int:
    return self.size

  def gather(self, indices: np.ndarray, places: np.ndarray | None = None) -> dict[str, np.ndarray]:
    """Reads the examples `indices`. A random source takes their `places` in the stream of training as seeds."""
    if self.random and places is not None:
      read = (self.read(int(i), np.random.default_rng(int(place))) for i, place in zip(indices, places, strict=True))
    else:
      read = (self.read(int(i)) for i in indices)
    images, labels = zip(*read, strict=True)
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
  arrays = []
  if isinstance(source, Arrays):
    arrays = [source.image, source.label] + ([] if source.condition is None else [source.condition])
  if not arrays and n:
    arrays = list(source.gather(np.unique(np.linspace(0, n - 1, _SAMPLED).astype(int))).values())
  found = hashlib.sha256(str(n).encode())
  for array in arrays:
    found.update(f"{array.dtype}{array.shape}".encode())
    found.update(np.ascontiguousarray(array).data)
  return found.hexdigest()[:16]
