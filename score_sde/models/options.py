"""Options of the networks, with their meaning and range."""

from typing import Any

from score_sde.options import option

# name: (meaning, range, accepted values).
KNOWN: dict[str, tuple[str, str, tuple[Any, ...]]] = {
  "nf": ("channels at full resolution, or width", "[1, inf)", ()),
  "ch_mult": ("channels of each resolution, in units of nf", "", ()),
  "num_res_blocks": ("residual blocks per resolution, or depth", "[1, inf)", ()),
  "attn_resolutions": ("heights with self-attention", "", ()),
  "attn_every_block": ("ddpm: attend after every block on the way up, not only the last", "", ()),
  "head_dim": ("channels per head of attention; unset: one head", "[1, inf)", ()),
  "dropout": ("share of units that are dropped in training", "[0, 1)", ()),
  "nonlinearity": ("activation", "", ("elu", "relu", "lrelu", "swish", "gelu", "mish")),
  "outer_nonlinearity": ("ddpm: activation outside the blocks; unset: the same", "", ("elu", "relu", "swish", "gelu")),
  "resblock_type": ("kind of residual block", "", ("ddpm", "biggan")),
  "embedding_type": ("how the noise level is embedded", "", ("fourier", "positional")),
  "fourier_scale": ("standard deviation of the frequencies of a Fourier embedding", "(0, inf)", ()),
  "conditional": ("the noise level is an input of the network", "", ()),
  "fir": ("resample by a filter (Zhang 2019) instead of naively", "", ()),
  "fir_kernel": ("the filter", "", ()),
  "resamp_with_conv": ("convolve when resampling, with ddpm blocks", "", ()),
  "progressive": ("how outputs of all resolutions combine", "", ("none", "output_skip", "residual")),
  "progressive_input": ("how the image enters every resolution", "", ("none", "input_skip", "residual")),
  "progressive_combine": ("how input skips join", "", ("sum", "cat")),
  "skip_rescale": ("divide sums by sqrt(2)", "", ()),
  "init_scale": ("scale of the last layers' initial weights", "[0, inf)", ()),
  "norm_groups": ("ddpm: groups of each norm", "[1, inf)", ()),
  "norm_eps": ("ddpm: added to the variance of each norm", "(0, inf)", ()),
  "downsample_padding": ("ddpm: pixels on each side before a strided convolution; 0: below and right", "[0, 1]", ()),
  "freq_shift": ("ddpm: shift of the number of frequencies of the embedding", "[0, 1]", ()),
  "flip_sin_to_cos": ("ddpm: cosines before sines in the embedding", "", ()),
  "mid_block_scale_factor": ("ddpm: divisor of sums in the middle of the network", "(0, inf)", ()),
  "scale_by_sigma": ("divide the output by the noise level, for score prediction", "", ()),
  "num_classes": ("classes of a class-conditional network; 0: none", "[0, inf)", ()),
  "label_dropout": ("share of examples trained without their class, for classifier-free guidance", "[0, 1)", ()),
  "condition_dropout": (
    "share of examples trained without their vector or image, for classifier-free guidance",
    "[0, 1)",
    (),
  ),
  "remat": ("do not keep activations within blocks: slower, much less memory", "", ()),
  "interpolation": ("ncsnv2: interpolation in its fusion blocks", "", ("bilinear", "nearest_neighbor")),
  "reference": ("ncsnv2: which published implementation", "", ("jax", "pytorch")),
  "num_heads": ("dit: heads of attention", "[1, inf)", ()),
  "patch_size": ("dit: pixels per side of a patch", "[1, inf)", ()),
  "blocks_per_group": ("wideresnet: residual blocks per group", "[1, inf)", ()),
  "channel_multiplier": ("wideresnet: width", "[1, inf)", ()),
}


def setting(name: str, default: Any) -> Any:
  """Returns a dataclass field with this `default`, for the option `name` in KNOWN."""
  doc, span, choices = KNOWN[name]
  needs = {"num_classes": ()} if name == "label_dropout" else ()
  return option(default, doc, span, choices=choices, needs=needs)
