"""Loading of the golden cases in tests/golden, and the rule that rebuilds their weights."""

import json
import pathlib
import zlib

import numpy as np

FOLDER = pathlib.Path(__file__).parent / "golden"


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f"{name}.npz") as file:
    return {key: file[key] for key in file}


def manifest(case: dict[str, np.ndarray]) -> dict:
  return json.loads(str(case["manifest"]))


def weight(name: str, shape: list[int]) -> np.ndarray:
  """Standard normals seeded by the CRC-32 of the flat name; kernels scaled by fan-in, norm scales around one."""
  rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
  values, leaf = rng.standard_normal(tuple(shape)), name.split("/")[-1].lower()
  if leaf == "weight" and len(shape) == 4:
    return (values / np.sqrt(np.prod(shape[1:]))).astype(np.float32)
  if len(shape) > 1:
    return (values / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
  if leaf in ("scale", "weight", "gamma"):
    return (1 + 0.1 * values).astype(np.float32)
  return ((4.0 if leaf == "w" else 0.05) * values).astype(np.float32)


def weights(case: dict[str, np.ndarray]) -> dict[tuple[str, ...], np.ndarray]:
  """{path: array} of a network case."""
  m = manifest(case)
  return {tuple(n.split("/")): weight(n, s) for n, s in zip(m["names"], m["shapes"], strict=True)}


def relative_error(got, expected) -> float:
  """Largest absolute difference over the largest expected value."""
  scale = np.max(np.abs(expected))
  return float(np.max(np.abs(np.asarray(got) - expected)) / (scale if scale else 1.0))
