"""Data sets of a user: data.dataset=FILE.py:FUNCTION."""

import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.run.config.errors import BadInput
from score_sde.run.config.plugins import load
from score_sde.run.data.sources import Arrays, Source


def own(config: ConfigDict, split: str) -> Source:
  """Calls the user's FUNCTION(config.data, split) and returns its result as a source of examples.

  The function must return images (N, H, W, C) uint8 or points (N, D) float, or a pair of these and labels (N,). For
  data that does not fit into memory it may return an object with a length, `classes` and
  `gather(indices) -> {"image", "label"}`. It may also have `names` of the classes, `examples` (a name for each example)
  and `identity` (a text that changes if the data do), see `sources.Arrays`.

  Raises:
    BadInput: if the function returns anything else.
  """
  return _load(config.data.dataset, split, Hashable(config.data))


def shape_of(config: ConfigDict) -> tuple[int, ...]:
  """Returns the shape of one example of the user's data."""
  return own(config, "train").gather(np.array([0]))["image"].shape[1:]


def _are_images(examples: np.ndarray) -> bool:
  return examples.dtype == np.uint8 and examples.ndim == 4


def _are_points(examples: np.ndarray) -> bool:
  return examples.dtype.kind == "f" and examples.ndim == 2


def _checked(name: str, source: Any) -> Source:
  """Returns a user's source, after a check of its optional attributes: `names`, `examples` and `identity`."""
  for attribute in ("names", "examples"):
    values = getattr(source, attribute, ())
    if not isinstance(values, list | tuple) or not all(isinstance(v, str) for v in values):
      raise BadInput(f"data.dataset={name!r} gives a source whose `{attribute}` is no list of texts.")
  if len(getattr(source, "examples", ())) not in (0, len(source)):
    raise BadInput(f"data.dataset={name!r} gives a source of {len(source)} examples with another number of `examples`.")
  if not isinstance(getattr(source, "identity", ""), str):
    raise BadInput(f"data.dataset={name!r} gives a source whose `identity` is no text.")
  if len(source):
    first = np.asarray(source.gather(np.array([0]))["image"])
    if not (_are_images(first) or _are_points(first)):
      raise BadInput(
        f"data.dataset={name!r} gives a source of {first.dtype}{list(first.shape)}: it must give images (B, H, W, C) "
        "uint8 or points (B, D) float. For other arrays use data.dataset=array with data.path=FILE.py:FUNCTION."
      )
  return source


class Hashable:
  """Hashable config.data, for arguments of a cached function. Two are equal if all their values are equal."""

  def __init__(self, section: ConfigDict):
    self.section = section
    self._values = str(sorted((k, str(v)) for k, v in section.items()))

  def __hash__(self) -> int:
    return hash(self._values)

  def __eq__(self, other: Any) -> bool:
    return isinstance(other, Hashable) and self._values == other._values


@functools.lru_cache(maxsize=4)
def _load(name: str, split: str, data: Hashable) -> Source:
  found = load("data.dataset", name, "from (config.data, split) to examples")(data.section, split)
  if hasattr(found, "gather"):
    return _checked(name, found)
  examples, labels = found if isinstance(found, tuple) else (found, None)
  examples = np.asarray(examples)
  image = _are_images(examples)
  if not (image or _are_points(examples)) or not len(examples):
    raise BadInput(
      f"data.dataset={name!r} gives {examples.dtype}{list(examples.shape)} for split {split!r}: it must give images "
      "(N, H, W, C) uint8 or points (N, D) float, with or without labels (N,)."
    )
  labels = np.zeros(len(examples), np.int32) if labels is None else np.asarray(labels, np.int32)
  if labels.shape != (len(examples),):
    raise BadInput(f"data.dataset={name!r} gives {len(examples)} examples and labels of shape {labels.shape}.")
  return Arrays(examples if image else examples.astype(np.float32), labels)
