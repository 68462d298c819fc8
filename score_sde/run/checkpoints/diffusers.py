"""Models of diffusers, a folder with config.json and weights: their weights and settings for our networks."""

import json
import math
import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import safetensors.numpy

from score_sde.run.checkpoints import torch_file
from score_sde.run.checkpoints.layouts import Counter, Flat, Weights, as_leaf, kinds_of
from score_sde.run.config import BadInput
from score_sde.run.config.errors import foreign

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
  kinds, number = kinds_of(target), Counter()
  plusplus = kinds["ResnetBlock"] != "ResnetBlockDDPM"
  out: Flat = {}

  def take(prefix: str, path: str) -> None:
    """Copies the parameters of one layer."""
    for name in [n for n in state if n.rpartition(".")[0] == prefix]:
      leaf, value = as_leaf(name.rpartition(".")[2], state[name])
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


def model_folder(path: pathlib.Path) -> pathlib.Path | None:
  """Returns the folder that holds a UNet2DModel, `path` or its subfolder unet; None if neither does."""
  for folder in (path, path / "unet"):
    config = folder / "config.json"
    if config.is_file() and "block_out_channels" in config.read_text(errors="replace"):
      return folder
  return None


def read(folder: pathlib.Path, target: Iterable[str]) -> Weights:
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


def settings_of(source: pathlib.Path) -> dict[str, Any] | None:
  """Returns {dotted key: value} of our config that a diffusers folder requires; None if `source` is no such folder.

  The shapes of the weights do not depend on the number of attention heads or on centered input. So the config must
  agree with the folder's config.json.

  Raises:
    BadInput: if our networks do not cover this kind of UNet2DModel.
  """
  folder = model_folder(source) if source.is_dir() else None
  if folder is None:
    return None
  with foreign(repr(str(folder / "config.json")), "Is it whole, and of a UNet2DModel?"):
    return _settings(folder)


def _settings(folder: pathlib.Path) -> dict[str, Any]:
  """Does the work of `settings_of` for a model's folder."""
  given = _DEFAULTS | json.loads((folder / "config.json").read_text())
  size = given.get("sample_size")
  if isinstance(size, list) and len(set(size)) == 1:
    size = size[0]
  if not isinstance(size, int):
    raise BadInput(
      f"{str(folder / 'config.json')!r} has sample_size={size!r}; a square one is needed, such as 32. Write the "
      "size of the model's images there."
    )
  downs = given["down_block_types"]
  plusplus = any("Skip" in kind for kind in downs)
  kinds = {"SkipDownBlock2D", "AttnSkipDownBlock2D"} if plusplus else {"DownBlock2D", "AttnDownBlock2D"}
  if not set(downs) <= kinds:
    raise BadInput(f"{str(folder)!r} is a UNet2DModel of blocks {downs}, which no published score model has.")
  _check_diffusers(given, plusplus, folder)
  widths = given["block_out_channels"]
  nf = math.gcd(*widths)
  with_attention = [size >> i for i, kind in enumerate(downs) if "Attn" in kind]
  settings = {
    "data.image_size": size,
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
