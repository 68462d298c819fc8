"""Loading of the golden cases in tests/golden, and the rule that rebuilds their weights."""

import dataclasses
import json
import pathlib
import zlib

import flax.linen as nn
import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from score_sde import models
from score_sde.models.wideresnet import WideResnet

FOLDER = pathlib.Path(__file__).parent / "golden"


# Minutes of compilation; what is in them is in smaller ones too.
LARGE = (
  "flax_ncsnpp_ve_skip", "flax_ncsnv2_128", "flax_ncsnv2_256", "torch_ncsn_28", "torch_ncsnv2_deeper",
  "torch_ncsnv2_deepest",
)  # fmt: skip


def parameters(pattern: str) -> list:
  """Names of the cases of `pattern`, the large ones marked slow."""
  names = sorted(p.stem for p in FOLDER.glob(pattern))
  return [pytest.param(n, marks=pytest.mark.slow) if n in LARGE else n for n in names]


def load(name: str) -> dict[str, np.ndarray]:
  with np.load(FOLDER / f"{name}.npz") as file:
    return {key: file[key] for key in file}


def manifest(case: dict[str, np.ndarray]) -> dict:
  return json.loads(str(case["manifest"]))


def weight(name: str, shape: list[int]) -> np.ndarray:
  """Standard normals seeded by the CRC-32 of the flat name; kernels scaled by fan-in, norm scales around one."""
  rng = np.random.RandomState(zlib.crc32(name.encode()) & 0x7FFFFFFF)
  values, leaf = rng.standard_normal(tuple(shape)), name.replace("/", ".").split(".")[-1].lower()
  if len(shape) > 1:
    torch = leaf == "weight" and len(shape) in (2, 4)  # (out, in, ...), not (..., in, out)
    fan_in = np.prod(shape[1:] if torch else shape[:-1])
    return (values / np.sqrt(fan_in)).astype(np.float32)
  if leaf in ("scale", "weight", "gamma"):
    return (1 + 0.1 * values).astype(np.float32)
  return ((4.0 if leaf == "w" else 0.05) * values).astype(np.float32)


def weights(case: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
  """{name: array} of a network case."""
  m = manifest(case)
  return {n: weight(n, s) for n, s in zip(m["names"], m["shapes"], strict=True)}


def network(manifest: dict) -> nn.Module:
  """Our network for the reference config of a case."""
  if manifest.get("model") == "wideresnet" or "blocks_per_group" in manifest["config"]:
    return WideResnet(**{"num_classes" if k == "num_outputs" else k: v for k, v in manifest["config"].items()})
  values = manifest["config"]["model"]
  if "ngf" in values:  # the original NCSN repositories
    names = {"ncsnv2": "ncsnv2_64", "ncsnv2_deeper": "ncsnv2_128", "ncsnv2_deepest": "ncsnv2_256"}
    module = models.MODELS[names.get(manifest["model"].removeprefix("torch_"), "ncsn")]
    return module(nf=values["ngf"], num_scales=values["num_classes"], sigma_max=50.0, reference="pytorch")
  module = models.MODELS[values["name"]]
  fields = {f.name for f in dataclasses.fields(module)} & set(values)
  values = {k: tuple(values[k]) if isinstance(values[k], list) else values[k] for k in fields}
  return module(**values, centered=manifest["config"]["data"]["centered"])


def shapes(network: nn.Module, x: np.ndarray, labels: np.ndarray) -> dict[str, tuple[int, ...]]:
  """{path: shape} of the parameters of `network`."""
  tree = jax.eval_shape(network.init, jax.random.key(0), x, labels)["params"]
  return {k: v.shape for k, v in flatten_dict(tree, sep="/").items()}


def variables(flat: dict[str, np.ndarray]) -> dict:
  """What `network.apply` takes."""
  return {"params": unflatten_dict(flat, sep="/")}


def relative_error(got, expected) -> float:
  """Largest absolute difference over the largest expected value."""
  scale = np.max(np.abs(expected))
  return float(np.max(np.abs(np.asarray(got) - expected)) / (scale if scale else 1.0))
