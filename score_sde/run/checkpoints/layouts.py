"""Weights of other programs: what a source holds, and the layout of its arrays."""

import collections
import dataclasses
from collections.abc import Iterable

import numpy as np

Flat = dict[str, np.ndarray]


@dataclasses.dataclass
class Weights:
  """Weights: the content of a source.

  Attributes:
    params: the parameters.
    ema: their moving average; the parameters if the source has none.
    moments: Adam's first and second moments, in the form of `params`; None if the source has none.
    step: number of training steps; 0 if the source does not give it.
    origin: the kind of source, in words.
  """

  params: Flat
  ema: Flat
  moments: tuple[Flat, Flat] | None = None
  step: int = 0
  origin: str = ""


# --- layouts ------------------------------------------------------------------------------------------------------


def conv(w: np.ndarray) -> np.ndarray:
  """Transposes PyTorch's (out, in, height, width) to (height, width, in, out)."""
  return w.transpose(2, 3, 1, 0)


def as_leaf(name: str, w: np.ndarray) -> tuple[str, np.ndarray]:
  """Returns (our name, array in our layout) of a layer's parameter, from PyTorch's name and shape."""
  if name == "bias" or name in ("W", "b"):
    return name, w
  if w.ndim == 4:
    return "kernel", conv(w)
  return ("kernel", w.T) if w.ndim == 2 else ("scale", w)


class Counter:
  """Counter: numbers the modules of each class in the order of calls, as Flax does: Conv_0, Conv_1, ..."""

  def __init__(self):
    self._counts = collections.Counter()

  def __call__(self, kind: str) -> str:
    self._counts[kind] += 1
    return f"{kind}_{self._counts[kind] - 1}"


def kinds_of(target: Iterable[str]) -> dict[str, str]:
  """Returns the class names of the target network's blocks: {"ResnetBlock": "ResnetBlockDDPM", "AttnBlock": ...}."""
  heads = {path.split("/")[0].rpartition("_")[0] for path in target}
  find = lambda part: next((h for h in heads if h.startswith(part)), part)
  return {part: find(part) for part in ("ResnetBlock", "AttnBlock")}
