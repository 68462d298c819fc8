"""Published weights, translated for our networks: the official JAX and PyTorch code, NCSN, NCSNv2, diffusers.

Weights are flat: {path: array} with paths such as "ResnetBlockDDPM_0/Conv_0/kernel". The official JAX code has the same
paths as ours. Every other source has a function that translates its names and the layout of its arrays.
"""

import json
import pathlib
import re
from collections.abc import Iterable
from typing import Any, cast

import flax.serialization
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from score_sde.run.checkpoints import diffusers, torch_file
from score_sde.run.checkpoints.layouts import Counter, Flat, Weights, as_leaf, kinds_of
from score_sde.run.config import BadInput, as_dict, signature
from score_sde.run.config.errors import foreign
from score_sde.run.storage import Path, save_atomically

# --- the official PyTorch code ------------------------------------------------------------------------------------


def from_score_sde_pytorch(state: Flat, target: Iterable[str]) -> Flat:
  """Translates the weights `all_modules.N.*` of the official PyTorch code.

  They have the order of our network, whose paths are `target`, so modules of a class get the same numbers.
  """
  target = list(target)
  kinds, number = kinds_of(target), Counter()
  downsamplers = len({p.split("/")[0] for p in target if p.startswith("Downsample_")})
  groups: dict[int, Flat] = {}
  for name, w in state.items():
    parts = name.split(".")
    if parts[0] == "all_modules":
      groups.setdefault(int(parts[1]), {})[".".join(parts[2:])] = w
  out = {}
  for _, group in sorted(groups.items()):
    names = {n.split(".")[0] for n in group}
    if "Conv_1" in names:
      module = number(kinds["ResnetBlock"])
    elif "NIN_3" in names:
      module = number(kinds["AttnBlock"])
    elif names == {"W"}:
      module = number("GaussianFourierProjection")
    elif names == {"Conv2d_0"} or (names == {"Conv_0"} and group["Conv_0.weight"].shape[-1] == 3):
      module = number("Downsample" if downsamplers > 0 else "Upsample")
      downsamplers -= 1
    elif names == {"Conv_0"}:
      module = number("Combine")
    else:
      module = number({4: "Conv", 2: "Dense", 1: "GroupNorm"}[group["weight"].ndim])
    for name, w in group.items():
      *middle, last = name.split(".")
      leaf, value = as_leaf(last, w)
      if middle == ["Conv2d_0"] and leaf == "kernel":
        leaf = "weight"
      out["/".join([module, *middle, leaf])] = value
  return out


# --- NCSN and NCSNv2 ----------------------------------------------------------------------------------------------


def from_ncsn_pytorch(state: Flat) -> Flat:
  """Translates the weights of the original repositories' NCSN (conditional norms) and NCSNv2."""
  conditional = any(".embed." in name for name in state)
  norm = "ConditionalInstanceNorm2dPlus" if conditional else "InstanceNorm2dPlus"
  stages = sorted({n.split(".")[0] for n in state if n.startswith("res")})
  # refine31 of the deepest NCSNv2 joins stage res31, below res3.
  refine = sorted({n.split(".")[0] for n in state if n.startswith("refine")}, key=lambda n: n.replace("31", "2z"))

  def within_refine(parts):
    """Translates names within a refine block, e.g. adapt_convs.0.2_1_norm -> RCUBlock_0/norm_2."""
    if parts[0] in ("msf", "crp"):
      kind = {"convs": "Conv", "norms": norm}[parts[1]]
      return [f"{parts[0].upper()}Block_0", f"{kind}_{parts[2]}"]
    inputs = len({n.split(".")[2] for n in state if n.startswith(f"{block}.adapt_convs.")})
    which, unit = (int(parts[1]), parts[2]) if parts[0] == "adapt_convs" else (inputs, parts[1])
    i, j, kind = unit.split("_")
    return [f"RCUBlock_{which}", f"{norm if kind == 'norm' else 'Conv'}_{2 * (int(i) - 1) + int(j) - 1}"]

  residual = {
    "conv1": ["Conv_0"],
    "conv2": ["Conv_1"],
    "shortcut": ["Conv_2"],
    "conv2.conv": ["ConvMeanPool_0", "Conv_0"],
    "shortcut.conv": ["ConvMeanPool_1", "Conv_0"],
    "normalize1": [f"{norm}_0"],
    "normalize2": [f"{norm}_1"],
  }
  out = {}
  for name, w in state.items():
    block, *parts, last = name.split(".")
    if parts and parts[-1] == "embed":
      parts, last, value = parts[:-1], "embedding", w
    elif last in ("alpha", "beta", "gamma"):
      value = w.reshape(1, 1, 1, -1)
    else:
      last, value = as_leaf(last, w)
    if block in stages:
      path = [f"ResidualBlock_{2 * stages.index(block) + int(parts[0])}", *residual[".".join(parts[1:])]]
    elif block in refine:
      path = [f"RefineBlock_{refine.index(block)}", *within_refine(parts)]
    elif block in ("begin_conv", "end_conv", "normalizer"):
      path = [{"begin_conv": "Conv_0", "end_conv": "Conv_1", "normalizer": f"{norm}_0"}[block]]
    else:
      path = name.split(".")[:-1]
    out["/".join([*path, last])] = value
  return out


# --- files --------------------------------------------------------------------------------------------------------


def _strip(state: dict[str, Any]) -> Flat:
  """Returns the arrays of a state_dict, without DataParallel's prefix in their names."""
  return {k.removeprefix("module."): v for k, v in state.items() if isinstance(v, np.ndarray)}


def _trained(names: Iterable[str]) -> list[str]:
  """Returns the names of trained parameters, in the order of `parameters()`: no buffers, no fixed frequencies."""
  return [n for n in names if (n != "sigmas" and not n.endswith(".W")) or ".NIN_" in n]


def _read_flax(path: pathlib.Path) -> Weights:
  tree: Any = flax.serialization.msgpack_restore(path.read_bytes())
  flatten = lambda t: cast(dict[str, Any], flatten_dict(t, sep="/"))
  moments = None
  if "optimizer" not in tree and {"params", "params_ema"} <= tree.keys():
    return _from_consistency(tree, flatten)
  optimizer = tree["optimizer"]
  states = flatten(optimizer["state"].get("param_states", {}))
  if states:
    first = {k.removesuffix("/grad_ema"): v for k, v in states.items() if k.endswith("/grad_ema")}
    second = {k.removesuffix("/grad_sq_ema"): v for k, v in states.items() if k.endswith("/grad_sq_ema")}
    moments = (first, second)
  ema = flatten(tree["params_ema"])
  return Weights(flatten(optimizer["target"]), ema, moments, int(tree["step"]), "a checkpoint of the official JAX code")


def _from_consistency(tree: dict[str, Any], flatten: Any) -> Weights:
  """Translates a state of the official JAX code of consistency models. Its NCSN++ has the names of ours.

  Its Fourier features see log(sigma) / 4, ours log(sigma).
  """

  def translated(params: Any) -> Flat:
    scaled = lambda path, w: w / 4 if path.startswith("GaussianFourierProjection") else w
    return {path: scaled(path, w) for path, w in flatten(params).items()}

  state = flatten(tree.get("opt_state", {}))
  of = lambda name: {k.split(f"/{name}/", 1)[1]: v for k, v in state.items() if f"/{name}/" in k}
  moments = (of("mu"), of("nu")) if of("mu") else None
  origin = "a checkpoint of the official JAX code of consistency models"
  return Weights(translated(tree["params"]), translated(tree["params_ema"]), moments, int(tree["step"]), origin)


def _torch_moments(optimizer: dict[str, Any], model: Flat, trained: list[str]) -> tuple[Flat, Flat] | None:
  """Returns Adam's moments by the names of `model`; None if some are missing.

  The optimizer refers to parameters by number, and has no moments for fixed ones.
  """
  names = [n for n in model if n != "sigmas"]
  numbers = {
    name: i for i, name in enumerate(names if len(optimizer["param_groups"][0]["params"]) == len(names) else trained)
  }
  state = optimizer["state"]
  if any(numbers[n] not in state for n in trained):
    return None
  of = lambda key: {n: state[numbers[n]][key] if n in trained else np.zeros_like(model[n]) for n in names}
  return of("exp_avg"), of("exp_avg_sq")


def _read_torch(path: pathlib.Path, target: Iterable[str]) -> Weights:
  content = torch_file.read(path)
  target = list(target)
  if isinstance(content, dict) and {"model", "ema", "optimizer"} <= content.keys():
    model = _strip(content["model"])
    names = _trained(model)
    translate = lambda state: from_score_sde_pytorch(state, target)
    as_state = lambda arrays: translate(model | dict(zip(names, arrays, strict=True)))
    shadow = content["ema"]["shadow_params"]
    if len(shadow) != len(names):
      raise BadInput(f"{str(path)!r} has {len(shadow)} averaged parameters for {len(names)} trained ones.")
    moments = _torch_moments(content["optimizer"], model, names)
    if moments is not None:
      moments = translate(moments[0]), translate(moments[1])
    origin = "a checkpoint of the official PyTorch code"
    return Weights(translate(model), as_state(shadow), moments, int(content["step"]), origin)
  # NCSN: [model, optimizer]; NCSNv2: [model, optimizer, epoch, step, {name: averaged parameter}]; or a bare state_dict.
  states: list[Any] = content if isinstance(content, list) else [content]
  model = _strip(states[0]) if states and isinstance(states[0], dict) else {}
  if "begin_conv.weight" not in model:
    raise BadInput(
      f"{str(path)!r} is a PyTorch file, but none of the official code (keys model, ema, optimizer) or of NCSN, NCSNv2 "
      f"(begin_conv.weight, ...). It holds {', '.join(map(str, list(content)[:8])) if content else 'nothing'}."
    )
  model.pop("sigmas", None)
  average = model | _strip(states[4]) if len(states) > 4 and isinstance(states[4], dict) else model
  average.pop("sigmas", None)
  step = int(states[3]) if len(states) > 3 else 0
  origin = "an NCSNv2 checkpoint" if "normalizer.alpha" in model else "an NCSN checkpoint"
  return Weights(from_ncsn_pytorch(model), from_ncsn_pytorch(average), None, step, origin)


# Advice about a file that cannot be read.
_DOWNLOAD = "Is the download complete?"


def metadata_of(config: ConfigDict, step: int) -> dict[str, str]:
  """Returns the metadata of exported weights: their step, signature and config."""
  described = json.dumps(as_dict(config), default=list)
  return {"step": str(step), "signature": json.dumps(signature(config)), "config": described}


def export_safetensors(path: Path | pathlib.Path, params: Flat, ema: Flat, metadata: dict[str, str]) -> None:
  """Writes both sets of weights atomically to one safetensors file, as params/... and ema_params/...

  With params={} the file only holds the EMA parameters, which is enough for sampling.
  """
  arrays = {
    f"{item}/{k}": np.ascontiguousarray(v)
    for item, w in (("params", params), ("ema_params", ema))
    for k, v in w.items()
  }
  save_atomically(path, lambda file: file.write(safetensors.numpy.save(arrays, metadata)))


def _read_safetensors(path: pathlib.Path) -> Weights:
  arrays = safetensors.numpy.load_file(path)
  part = lambda item: {k.removeprefix(f"{item}/"): v for k, v in arrays.items() if k.startswith(f"{item}/")}
  params, ema = part("params"), part("ema_params")
  if not params and not ema:
    raise BadInput(f"{str(path)!r} has no arrays named params/...: it was not exported by this package.")
  with safetensors.safe_open(path, "np") as file:
    step = int((file.metadata() or {}).get("step", 0))
  return Weights(params or ema, ema or params, None, step, "weights exported by this package")


def read(source: pathlib.Path, target: Iterable[str]) -> Weights:
  """Reads the weights in `source` and translates their names for the network with the parameter paths `target`.

  Raises:
    BadInput: if `source` is no known kind of checkpoint, is damaged, or asks to run code.
  """
  if source.is_dir():
    folder = diffusers.model_folder(source)
    if folder is None:
      raise BadInput(f"{str(source)!r} is a folder without the config.json of a diffusers UNet2DModel.")
    with foreign(repr(str(folder)), _DOWNLOAD):
      return diffusers.read(folder, target)
  with source.open("rb") as file:
    start = file.read(200)
  if start.startswith(b"version https://git-lfs"):
    raise BadInput(f"{str(source)!r} is a pointer of Git LFS, not the file. Fetch it: git lfs pull.")
  if start.lstrip()[:9].lower().startswith((b"<!doctype", b"<html")):
    raise BadInput(f"{str(source)!r} is a web page, not the file. Download it again, and open it to see what it says.")
  if source.suffix == ".safetensors":
    with foreign(repr(str(source)), _DOWNLOAD):
      return _read_safetensors(source)
  if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")):
    with foreign(repr(str(source)), _DOWNLOAD):
      return _read_torch(source, target)
  kinds = "It is no checkpoint of the official JAX code, no PyTorch file, no .safetensors and no diffusers folder."
  with foreign(repr(str(source)), kinds):
    return _read_flax(source)


def check(found: Flat, expected: dict[str, tuple[int, ...]], source: str, limit: int = 20) -> None:
  """Raises BadInput, with names and shapes that differ, unless `found` has exactly the `expected` arrays.

  The message comes from `source` and shows at most `limit` differences.
  """
  lines = []
  for path in sorted(found.keys() | expected.keys()):
    have, want = (tuple(found[path].shape) if path in found else None), expected.get(path)
    if have != want:
      lines.append(f"{path}: {have or 'missing'} in the checkpoint, {want or 'missing'} in the network")
  if lines:
    shown = "; ".join(lines[:limit]) + (f"; and {len(lines) - limit} more" if len(lines) > limit else "")
    raise BadInput(
      f"{source!r} does not fit the network of the config: {len(lines)} of {len(expected)} arrays differ. {shown}. "
      "Give the config with which it was trained."
    )


def is_hub_name(source: str) -> bool:
  """Returns whether `source` looks like "owner/name" and is no existing path."""
  return bool(re.fullmatch(r"[\w.-]+/[\w.-]+", source)) and not pathlib.Path(source).exists()


def download(name: str) -> pathlib.Path:
  """Returns the folder of the diffusers model `name` of the Hugging Face hub, downloaded or from the hub's cache.

  Raises:
    BadInput: if huggingface_hub is not installed, or the model cannot be downloaded.
  """
  try:
    from huggingface_hub import snapshot_download  # pyright: ignore[reportMissingImports]  # optional
  except ImportError as error:
    raise BadInput(
      f"{name!r} is no file or folder here. To download it from the Hugging Face hub: pip install -e '.[hub]'."
    ) from error
  try:
    return pathlib.Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors", "*.bin"]))
  except Exception as error:  # no network, no such model, ...
    raise BadInput(f"{name!r} cannot be downloaded: {str(error).splitlines()[0]}") from error
