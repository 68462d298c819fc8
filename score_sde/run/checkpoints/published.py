"""Published weights, translated for our networks: the official JAX and PyTorch code, NCSN, NCSNv2, diffusers.

Weights are flat: {path: array} with paths such as "ResnetBlockDDPM_0/Conv_0/kernel". The official JAX code has the same
paths as ours. Every other source has a function that translates its names and the layout of its arrays.
"""

import collections
import dataclasses
import json
import math
import pathlib
import re
from collections.abc import Iterable
from typing import Any, cast

import flax.serialization
import numpy as np
import safetensors.numpy
from flax.traverse_util import flatten_dict

from score_sde.run.checkpoints import torch_file
from score_sde.run.config import BadInput
from score_sde.run.config.errors import foreign

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


def _conv(w: np.ndarray) -> np.ndarray:
  """Transposes PyTorch's (out, in, height, width) to (height, width, in, out)."""
  return w.transpose(2, 3, 1, 0)


def _leaf(name: str, w: np.ndarray) -> tuple[str, np.ndarray]:
  """Returns (our name, array in our layout) of a layer's parameter, from PyTorch's name and shape."""
  if name == "bias" or name in ("W", "b"):
    return name, w
  if w.ndim == 4:
    return "kernel", _conv(w)
  return ("kernel", w.T) if w.ndim == 2 else ("scale", w)


class _Counter:
  """Counter: numbers the modules of each class in the order of calls, as Flax does: Conv_0, Conv_1, ..."""

  def __init__(self):
    self._counts = collections.Counter()

  def __call__(self, kind: str) -> str:
    self._counts[kind] += 1
    return f"{kind}_{self._counts[kind] - 1}"


# --- the official PyTorch code ------------------------------------------------------------------------------------


def _kinds(target: Iterable[str]) -> dict[str, str]:
  """Returns the class names of the target network's blocks: {"ResnetBlock": "ResnetBlockDDPM", "AttnBlock": ...}."""
  heads = {path.split("/")[0].rpartition("_")[0] for path in target}
  find = lambda part: next((h for h in heads if h.startswith(part)), part)
  return {part: find(part) for part in ("ResnetBlock", "AttnBlock")}


def from_score_sde_pytorch(state: Flat, target: Iterable[str]) -> Flat:
  """Translates the weights `all_modules.N.*` of the official PyTorch code.

  They have the order of our network, whose paths are `target`, so modules of a class get the same numbers.
  """
  target = list(target)
  kinds, number = _kinds(target), _Counter()
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
      leaf, value = _leaf(last, w)
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
      last, value = _leaf(last, w)
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


# --- diffusers ----------------------------------------------------------------------------------------------------

_RESNET = {
  "norm1": "GroupNorm_0",
  "conv1": "Conv_0",
  "time_emb_proj": "Dense_0",
  "norm2": "GroupNorm_1",
  "conv2": "Conv_1",
}
_ATTENTION = {
  "group_norm": "GroupNorm_0",
  "to_q": "NIN_0",
  "to_k": "NIN_1",
  "to_v": "NIN_2",
  "to_out.0": "NIN_3",
  "query": "NIN_0",  # the names in files from before 2023
  "key": "NIN_1",
  "value": "NIN_2",
  "proj_attn": "NIN_3",
}


def from_diffusers(state: Flat, target: Iterable[str]) -> Flat:
  """Translates the weights of a diffusers UNet2DModel of the kinds `google/ddpm-*` and `google/ncsnpp-*`."""
  kinds, number = _kinds(target), _Counter()
  plusplus = kinds["ResnetBlock"] != "ResnetBlockDDPM"
  out: Flat = {}

  def take(prefix: str, path: str) -> None:
    """Copies the parameters of one layer."""
    for name in [n for n in state if n.rpartition(".")[0] == prefix]:
      leaf, value = _leaf(name.rpartition(".")[2], state[name])
      if "NIN_" in path:  # a dense layer, or a 1 x 1 convolution
        leaf, value = ("b", value) if leaf == "bias" else ("W", value.reshape(value.shape[-2:]))
      out[f"{path}/{leaf}"] = value

  def resnet(prefix: str) -> None:
    path = number(kinds["ResnetBlock"])
    for theirs, ours in _RESNET.items():
      take(f"{prefix}.{theirs}", f"{path}/{ours}")
    take(f"{prefix}.conv_shortcut", f"{path}/{'Conv_2' if plusplus else 'NIN_0'}")

  def attention(prefix: str) -> None:
    path = number(kinds["AttnBlock"])
    for theirs, ours in _ATTENTION.items():
      take(f"{prefix}.{theirs}", f"{path}/{ours}")

  def has(prefix: str) -> bool:
    return any(n.startswith(f"{prefix}.") for n in state)

  def block(prefix: str) -> None:
    """Translates residual blocks and their attentions, in the order of computation."""
    i = 0
    while has(f"{prefix}.resnets.{i}"):
      resnet(f"{prefix}.resnets.{i}")
      if has(f"{prefix}.attentions.{i}") and not (plusplus and "up_blocks" in prefix):
        attention(f"{prefix}.attentions.{i}")
      i += 1
    if plusplus and "up_blocks" in prefix and has(f"{prefix}.attentions.0"):
      attention(f"{prefix}.attentions.0")

  take("conv_in", number("Conv"))
  take("time_embedding.linear_1", "Dense_0")
  take("time_embedding.linear_2", "Dense_1")
  if "class_embedding.weight" in state:  # ours has a row more, for "no class"
    table = state["class_embedding.weight"]
    out["LabelEmbedding_0/embedding"] = np.concatenate([table, np.zeros_like(table[:1])])
  if "time_proj.weight" in state:
    out["GaussianFourierProjection_0/W"] = state["time_proj.weight"]
  levels = sum(has(f"down_blocks.{i}") for i in range(100))
  for i in range(levels):
    block(f"down_blocks.{i}")
    if has(f"down_blocks.{i}.resnet_down"):
      resnet(f"down_blocks.{i}.resnet_down")
      take(f"down_blocks.{i}.skip_conv", f"{number('Combine')}/Conv_0")
    elif has(f"down_blocks.{i}.downsamplers"):
      take(f"down_blocks.{i}.downsamplers.0.conv", f"{number('Downsample')}/Conv_0")
  resnet("mid_block.resnets.0")
  attention("mid_block.attentions.0")
  resnet("mid_block.resnets.1")
  for i in range(levels):
    block(f"up_blocks.{i}")
    if has(f"up_blocks.{i}.skip_norm"):
      take(f"up_blocks.{i}.skip_norm", number("GroupNorm"))
      take(f"up_blocks.{i}.skip_conv", number("Conv"))
    if has(f"up_blocks.{i}.resnet_up"):
      resnet(f"up_blocks.{i}.resnet_up")
    elif has(f"up_blocks.{i}.upsamplers"):
      take(f"up_blocks.{i}.upsamplers.0.conv", f"{number('Upsample')}/Conv_0")
  take("conv_norm_out", number("GroupNorm"))
  take("conv_out", number("Conv"))
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
  optimizer = tree["optimizer"]
  flatten = lambda t: cast(dict[str, Any], flatten_dict(t, sep="/"))
  moments = None
  states = flatten(optimizer["state"].get("param_states", {}))
  if states:
    first = {k.removesuffix("/grad_ema"): v for k, v in states.items() if k.endswith("/grad_ema")}
    second = {k.removesuffix("/grad_sq_ema"): v for k, v in states.items() if k.endswith("/grad_sq_ema")}
    moments = (first, second)
  ema = flatten(tree["params_ema"])
  return Weights(flatten(optimizer["target"]), ema, moments, int(tree["step"]), "a checkpoint of the official JAX code")


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


def _diffusers_folder(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder that holds a UNet2DModel, `path` or its subfolder unet; None if neither does."""
  for folder in (path, path / "unet"):
    config = folder / "config.json"
    if config.is_file() and "block_out_channels" in config.read_text():
      return folder
  return None


def _read_diffusers(folder: pathlib.Path, target: Iterable[str]) -> Weights:
  """Reads a diffusers folder. A folder `unet_ema` beside `unet` (as diffusers' training script writes) is the EMA."""
  target = list(target)

  def read_from(folder: pathlib.Path) -> Flat:
    files = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("*.bin"))
    if not files:
      raise BadInput(f"{str(folder)!r} has a config.json, but no *.safetensors or *.bin with the weights.")
    state: Flat = {}
    for file in files:
      state |= safetensors.numpy.load_file(file) if file.suffix == ".safetensors" else torch_file.read(file)
    return from_diffusers({k: np.asarray(v, np.float32) for k, v in state.items()}, target)

  params, beside = read_from(folder), folder.with_name("unet_ema")
  ema = read_from(beside) if folder.name == "unet" and (beside / "config.json").is_file() else params
  return Weights(params, ema, None, 0, "a diffusers UNet2DModel" + (" and its EMA" if ema is not params else ""))


# Keys of a UNet2DModel's config.json that change its function, with the values that diffusers takes for missing ones.
_DEFAULTS = {
  "center_input_sample": False, "time_embedding_type": "positional", "time_embedding_dim": None, "freq_shift": 0,
  "flip_sin_to_cos": True, "mid_block_type": "UNetMidBlock2D", "layers_per_block": 2, "mid_block_scale_factor": 1,
  "downsample_padding": 1, "downsample_type": "conv", "upsample_type": "conv", "act_fn": "silu",
  "attention_head_dim": 8, "norm_num_groups": 32, "attn_norm_num_groups": None, "norm_eps": 1e-5,
  "resnet_time_scale_shift": "default", "add_attention": True, "class_embed_type": None, "num_class_embeds": None,
}  # fmt: skip

# Keys that do not change the function of a trained model, or only name what the others say.
_NEUTRAL = ("dropout", "sample_size", "in_channels", "out_channels", "block_out_channels", "num_train_timesteps")

# {key: the values that both networks can have}.
_SAME = {
  "time_embedding_dim": (None,), "mid_block_type": ("UNetMidBlock2D",), "downsample_type": ("conv",),
  "upsample_type": ("conv",), "resnet_time_scale_shift": ("default",), "add_attention": (True,),
  "class_embed_type": (None,), "attn_norm_num_groups": (None,),
}  # fmt: skip

# The same for each kind of network. NCSN++ has fixed norms, and its Fourier embedding does not read the last two.
_SAME_DDPM = {"time_embedding_type": ("positional",)}
_SAME_NCSNPP = {
  "time_embedding_type": ("fourier",), "act_fn": ("silu", "swish"), "norm_num_groups": (None,), "norm_eps": (1e-6,),
  "num_class_embeds": (None,), "downsample_padding": (0, 1), "freq_shift": (0,), "flip_sin_to_cos": (True,),
  "mid_block_scale_factor": (math.sqrt(2),),
}  # fmt: skip

_ACTIVATIONS = {"silu": "swish", "swish": "swish", "gelu": "gelu", "mish": "mish", "relu": "relu"}


def _check_diffusers(given: dict[str, Any], plusplus: bool, folder: pathlib.Path) -> None:
  """Raises BadInput, with the key, for a setting that our networks do not have."""
  name = "NCSN++" if plusplus else "DDPM"
  accepted = _SAME | (_SAME_NCSNPP if plusplus else _SAME_DDPM | {"act_fn": tuple(_ACTIVATIONS)})
  for key, values in accepted.items():
    close = lambda v, value=given[key]: (
      v == value or (isinstance(v, float) and isinstance(value, (int, float)) and math.isclose(v, value, rel_tol=1e-6))
    )
    if not any(map(close, values)):
      raise BadInput(
        f"{str(folder / 'config.json')!r} has {key}={given[key]!r}; our {name} only has "
        f"{' or '.join(map(repr, values))}. This model cannot be imported."
      )
  known = {*_DEFAULTS, *_NEUTRAL, "down_block_types", "up_block_types"}
  unknown = sorted(k for k in given if k not in known and not k.startswith("_"))
  if unknown:
    raise BadInput(
      f"{str(folder / 'config.json')!r} has keys that this importer does not know: {', '.join(unknown)}. They may "
      "change what the network computes, so it is not imported."
    )
  ups = [kind.replace("Down", "Up") for kind in reversed(given["down_block_types"])]
  if given.get("up_block_types", ups) != ups:
    raise BadInput(
      f"{str(folder / 'config.json')!r} has up_block_types={given['up_block_types']}, which do not mirror "
      "down_block_types. No published score model has such blocks."
    )
  if given.get("out_channels", given["in_channels"]) != given["in_channels"]:
    raise BadInput(
      f"{str(folder / 'config.json')!r} has out_channels={given['out_channels']} for in_channels="
      f"{given['in_channels']}: a score has as many channels as its input."
    )


def diffusers_settings(source: pathlib.Path) -> dict[str, Any] | None:
  """Returns {dotted key: value} of our config that a diffusers folder requires; None if `source` is no such folder.

  The shapes of the weights do not depend on the number of attention heads or on centered input. So the config must
  agree with the folder's config.json.

  Raises:
    BadInput: if our networks do not cover this kind of UNet2DModel.
  """
  folder = _diffusers_folder(source) if source.is_dir() else None
  if folder is None:
    return None
  given = _DEFAULTS | json.loads((folder / "config.json").read_text())
  downs = given["down_block_types"]
  plusplus = any("Skip" in kind for kind in downs)
  kinds = {"SkipDownBlock2D", "AttnSkipDownBlock2D"} if plusplus else {"DownBlock2D", "AttnDownBlock2D"}
  if not set(downs) <= kinds:
    raise BadInput(f"{str(folder)!r} is a UNet2DModel of blocks {downs}, which no published score model has.")
  _check_diffusers(given, plusplus, folder)
  widths = given["block_out_channels"]
  nf = math.gcd(*widths)
  with_attention = [given["sample_size"] >> i for i, kind in enumerate(downs) if "Attn" in kind]
  settings = {
    "data.image_size": given["sample_size"],
    "data.num_channels": given["in_channels"],
    "data.centered": not given["center_input_sample"],
    "model.name": "ncsnpp" if plusplus else "ddpm",
    "model.nf": nf,
    "model.ch_mult": tuple(w // nf for w in widths),
    "model.num_res_blocks": given["layers_per_block"],
    "model.attn_resolutions": tuple(with_attention),
    "model.head_dim": given["attention_head_dim"],
  }
  if settings["model.name"] == "ddpm":
    return settings | {
      "model.attn_every_block": True,
      "model.nonlinearity": _ACTIVATIONS[given["act_fn"]],
      "model.outer_nonlinearity": None if _ACTIVATIONS[given["act_fn"]] == "swish" else "swish",
      "model.norm_groups": given["norm_num_groups"],
      "model.norm_eps": given["norm_eps"],
      "model.downsample_padding": given["downsample_padding"],
      "model.freq_shift": float(given["freq_shift"]),
      "model.flip_sin_to_cos": given["flip_sin_to_cos"],
      "model.mid_block_scale_factor": float(given["mid_block_scale_factor"]),
      "model.num_classes": given["num_class_embeds"] or 0,
    }
  return settings | {"model.progressive": "output_skip", "model.progressive_input": "input_skip"}


# Advice about a file that cannot be read.
_DOWNLOAD = "Is the download complete?"


def export_safetensors(path: pathlib.Path, params: Flat, ema: Flat, metadata: dict[str, str]) -> None:
  """Writes both sets of weights atomically to one safetensors file, as params/... and ema_params/...

  With params={} the file only holds the EMA parameters, which is enough for sampling.
  """
  arrays = {
    f"{item}/{k}": np.ascontiguousarray(v)
    for item, w in (("params", params), ("ema_params", ema))
    for k, v in w.items()
  }
  temporary = path.with_name(f".{path.name}.writing")
  safetensors.numpy.save_file(arrays, temporary, metadata)
  temporary.replace(path)


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
    folder = _diffusers_folder(source)
    if folder is None:
      raise BadInput(f"{str(source)!r} is a folder without the config.json of a diffusers UNet2DModel.")
    with foreign(repr(str(folder)), _DOWNLOAD):
      return _read_diffusers(folder, target)
  with source.open("rb") as file:
    start = file.read(200)
  if start.startswith(b"version https://git-lfs"):
    raise BadInput(f"{str(source)!r} is a pointer of Git LFS, not the file. Fetch it: git lfs pull.")
  if source.suffix == ".safetensors":
    with foreign(repr(str(source)), _DOWNLOAD):
      return _read_safetensors(source)
  if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] in (b"\x02", b"\x03", b"\x04")):
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
