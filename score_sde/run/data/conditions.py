"""Conditions of the examples: data.condition=FILE.py:FUNCTION, and files of conditions for sampling."""

import pathlib
from typing import Any

import numpy as np

from score_sde.run.config.errors import BadInput, foreign
from score_sde.run.config.plugins import is_plugin, load

_WHAT = "from raw examples (B, ...) to conditions (B, ...)"


def stamp_of(path: str) -> Any:
  """Returns a value that changes when the file or folder `path` does."""
  file = pathlib.Path(path)
  return file.stat().st_mtime_ns if not is_plugin(path) and file.exists() else None


def described(name: str, shape: tuple[int, ...], kind: Any) -> dict[str, tuple]:
  """Returns shape, mean and standard deviation of the conditions that a function gives for examples of `shape`.

  uint8 is mapped to [-1, 1] for the network, as if it had mean and standard deviation 127.5. Floats stay as they are.
  """
  found = _called(name, np.zeros((2, *shape), kind))
  moments = (127.5,) * found.shape[-1] if found.dtype == np.uint8 else ()
  return {"condition_shape": found.shape[1:], "condition_mean": moments, "condition_std": moments}


def _called(name: str, examples: np.ndarray) -> np.ndarray:
  """Returns the conditions of examples: uint8, or anything else as float32."""
  try:
    found = np.asarray(load("data.condition", name, _WHAT)(examples))
  except BadInput:
    raise
  except Exception as error:  # a user's function may raise anything
    what = f"{examples.dtype}{list(examples.shape)}"
    raise BadInput(f"data.condition={name!r} fails for examples of {what}: {type(error).__name__}: {error}") from error
  if found.ndim < 2 or len(found) != len(examples) or found.dtype.kind not in "uif":
    raise BadInput(
      f"data.condition={name!r} gives {found.dtype}{list(found.shape)} for {len(examples)} examples: it must give "
      "numbers, (B, K) or (B, ..., K)."
    )
  return found if found.dtype == np.uint8 else found.astype(np.float32)


class Conditioned:
  """A source whose examples get the conditions of a function, data.condition."""

  def __init__(self, source: Any, name: str):
    self.source, self.name = source, name

  def __len__(self) -> int:
    return len(self.source)

  def __getattr__(self, name: str) -> Any:
    return getattr(self.source, name)

  def gather(self, indices: np.ndarray, *rest: Any) -> dict[str, np.ndarray]:
    found = self.source.gather(indices, *rest)
    return found | {"condition": _called(self.name, found["image"]).astype(np.float32)}


class Unconditioned(Conditioned):
  """A source without its conditions, for data.condition=none."""

  def __init__(self, source: Any):
    super().__init__(source, "")

  def gather(self, indices: np.ndarray, *rest: Any) -> dict[str, np.ndarray]:
    found = self.source.gather(indices, *rest)
    found.pop("condition", None)
    return found


def read(path: str, shape: tuple[int, ...]) -> np.ndarray:
  """Reads conditions (N, *shape) for samples from a .npy file, or from `condition` (or the only array) of a .npz.

  Raises:
    BadInput: if there is none, or one of another shape, or a value is not finite.
  """
  file, given = pathlib.Path(path), f"sampling.condition={path!r}"
  if not file.is_file():
    raise BadInput(
      f"{given} does not exist. Give a .npy or .npz file of conditions, (N, {', '.join(map(str, shape))})."
    )
  with foreign(given, "Give a .npy or .npz file of numbers."):
    found = np.load(file, allow_pickle=False)
    if not isinstance(found, np.ndarray):
      name = "condition" if "condition" in found.files else found.files[0]
      found = found[name]
  found = found[None] if found.shape == shape else found
  if found.shape[1:] != shape or not len(found):
    raise BadInput(
      f"{given} has the shape {found.shape}; the model's conditions have (N, {', '.join(map(str, shape))})."
    )
  if found.dtype.kind not in "uif" or not np.isfinite(found).all():
    raise BadInput(f"{given} has values of {found.dtype} that are not finite numbers.")
  return found.astype(np.float32)
