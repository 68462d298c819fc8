"""NCSN++ in plain PyTorch, for comparison: channels-last, AMP and `torch.compile`.

It is the network of `score_sde.models.ncsnpp` with the options of the VE configs. Its parameters have the same names,
so that one network can load the weights of the other: see `load`.
"""

import collections
import math
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Filter(nn.Module):
  """Resamples images with the low-pass filter (1, 3, 3, 1), as StyleGAN2 does."""

  def __init__(self, channels: int, up: bool):
    super().__init__()
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    kernel = torch.outer(taps, taps)
    kernel = kernel / kernel.sum() * (4 if up else 1)
    self.register_buffer("kernel", kernel.expand(channels, 1, 4, 4).contiguous(), persistent=False)
    self.up, self.channels = up, channels

  def forward(self, x: Tensor, stride: int = 2, padding: int = 1) -> Tensor:
    kernel = self.kernel.to(x.dtype)
    if self.up:
      return F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=self.channels)
    return F.conv2d(x, kernel, stride=stride, padding=padding, groups=self.channels)


def norm(channels: int) -> nn.GroupNorm:
  return nn.GroupNorm(min(channels // 4, 32), channels, eps=1e-6)


class Block(nn.Module):
  """Residual block of BigGAN."""

  def __init__(self, channels: int, features: int, embedding: int, dropout: float, direction: str = ""):
    super().__init__()
    self.GroupNorm_0, self.Conv_0 = norm(channels), nn.Conv2d(channels, features, 3, padding=1)
    self.Dense_0 = nn.Linear(embedding, features)
    self.GroupNorm_1, self.Conv_1 = norm(features), nn.Conv2d(features, features, 3, padding=1)
    self.Conv_2 = nn.Conv2d(channels, features, 1) if channels != features or direction else nn.Identity()
    self.resample = Filter(channels, direction == "up") if direction else nn.Identity()
    self.dropout = dropout

  def forward(self, x: Tensor, temb: Tensor) -> Tensor:
    h = self.resample(F.silu(self.GroupNorm_0(x)))
    h = self.Conv_0(h) + self.Dense_0(temb)[:, :, None, None]
    h = F.dropout(F.silu(self.GroupNorm_1(h)), self.dropout, self.training)
    return (self.Conv_2(self.resample(x)) + self.Conv_1(h)) / math.sqrt(2)


class Attention(nn.Module):
  """Self-attention over all pixels, with one head."""

  def __init__(self, channels: int):
    super().__init__()
    self.GroupNorm_0 = norm(channels)
    self.NIN_0, self.NIN_1, self.NIN_2, self.NIN_3 = (nn.Conv2d(channels, channels, 1) for _ in range(4))

  def forward(self, x: Tensor) -> Tensor:
    h = self.GroupNorm_0(x)
    tokens = lambda a: a.flatten(2).transpose(1, 2)[:, None]
    h = F.scaled_dot_product_attention(tokens(self.NIN_0(h)), tokens(self.NIN_1(h)), tokens(self.NIN_2(h)))
    h = h[:, 0].transpose(1, 2).reshape(x.shape)
    return (x + self.NIN_3(h)) / math.sqrt(2)


class Conv2d(nn.Module):
  """Convolution with stride 2 after the filter."""

  def __init__(self, channels: int, features: int):
    super().__init__()
    self.filter, self.conv = Filter(channels, up=False), nn.Conv2d(channels, features, 3, stride=2)

  def forward(self, x: Tensor) -> Tensor:
    return self.conv(self.filter(x, stride=1, padding=2))


class NCSNpp(nn.Module):
  """NCSN++ of the VE configs; `m` is their config.model."""

  def __init__(self, m: Any, size: int, channels: int):
    super().__init__()
    wanted = {"name": "ncsnpp", "resblock_type": "biggan", "embedding_type": "fourier", "fir": True, "head_dim": None,
              "fir_kernel": (1, 3, 3, 1), "skip_rescale": True, "conditional": True, "progressive_combine": "sum",
              "nonlinearity": "swish", "num_classes": 0, "scale_by_sigma": True}  # fmt: skip
    other = {k: m[k] for k, v in wanted.items() if m[k] is not None and m[k] != v}
    if other or (m.progressive, m.progressive_input) not in (("none", "residual"), ("output_skip", "input_skip")):
      raise ValueError(f"The PyTorch network has the options of the VE configs, not {other or m.progressive}.")
    self.parts, self.skips = nn.ModuleDict(), m.progressive == "output_skip"
    self.levels, self.blocks, self.size, self.attended = len(m.ch_mult), m.num_res_blocks, size, m.attn_resolutions
    used: collections.Counter[str] = collections.Counter()

    def make(kind: str, module: nn.Module) -> None:
      self.parts[f"{kind}_{used[kind]}"] = module
      used[kind] += 1

    nf, embedding = m.nf, 4 * m.nf
    block = lambda a, b, direction="": make("ResnetBlockBigGANpp", Block(a, b, embedding, m.dropout, direction))
    self.register_buffer("W", torch.randn(nf) * m.fourier_scale)
    make("Dense", nn.Linear(2 * nf, embedding))
    make("Dense", nn.Linear(embedding, embedding))
    make("Conv", nn.Conv2d(channels, nf, 3, padding=1))
    widths, width, pyramid = [nf], nf, channels
    for i, mult in enumerate(m.ch_mult):
      for _ in range(m.num_res_blocks):
        block(width, nf * mult)
        width = nf * mult
        if size >> i in m.attn_resolutions:
          make("AttnBlockpp", Attention(width))
        widths.append(width)
      if i < self.levels - 1:
        block(width, width, "down")
        if self.skips:
          make("Downsample", Filter(channels, up=False))
          make("Combine", nn.Conv2d(channels, width, 1))
        else:
          make("Downsample", Conv2d(pyramid, width))
          pyramid = width
        widths.append(width)
    block(width, width)
    make("AttnBlockpp", Attention(width))
    block(width, width)
    for i in reversed(range(self.levels)):
      for _ in range(m.num_res_blocks + 1):
        block(width + widths.pop(), nf * m.ch_mult[i])
        width = nf * m.ch_mult[i]
      if size >> i in m.attn_resolutions:
        make("AttnBlockpp", Attention(width))
      if self.skips:
        if i < self.levels - 1:
          make("Upsample", Filter(channels, up=True))
        make("GroupNorm", norm(width))
        make("Conv", nn.Conv2d(width, channels, 3, padding=1))
      if i:
        block(width, width, "up")
    if not self.skips:
      make("GroupNorm", norm(width))
      make("Conv", nn.Conv2d(width, channels, 3, padding=1))

  def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
    """Returns the score of images (B, C, H, W) in [0, 1] at noise levels (B,)."""
    used: collections.Counter[str] = collections.Counter()

    def layer(kind: str) -> nn.Module:
      used[kind] += 1
      return self.parts[f"{kind}_{used[kind] - 1}"]

    angle = 2 * math.pi * torch.log(sigma)[:, None] * self.W
    temb = layer("Dense")(torch.cat([angle.sin(), angle.cos()], 1))
    temb = F.silu(layer("Dense")(F.silu(temb)))
    block = lambda h: layer("ResnetBlockBigGANpp")(h, temb)
    pyramid = x = 2 * x - 1
    kept = [layer("Conv")(x)]
    for i in range(self.levels):
      for _ in range(self.blocks):
        h = block(kept[-1])
        kept.append(layer("AttnBlockpp")(h) if self.size >> i in self.attended else h)
      if i < self.levels - 1:
        h = block(kept[-1])
        pyramid = layer("Downsample")(pyramid)
        if self.skips:
          h = h + layer("Combine")(pyramid)
        else:
          h = pyramid = (pyramid + h) / math.sqrt(2)
        kept.append(h)
    h = block(layer("AttnBlockpp")(block(kept[-1])))
    output = None
    head = lambda h: layer("Conv")(F.silu(layer("GroupNorm")(h)))
    for i in reversed(range(self.levels)):
      for _ in range(self.blocks + 1):
        h = block(torch.cat([h, kept.pop()], 1))
      if self.size >> i in self.attended:
        h = layer("AttnBlockpp")(h)
      if self.skips:
        output = head(h) if output is None else layer("Upsample")(output) + head(h)
      if i:
        h = block(h)
    output = head(h) if output is None else output
    return output.float() / sigma[:, None, None, None]


def load(network: NCSNpp, params: dict[str, Any]) -> None:
  """Copies the parameters of the Flax network into the PyTorch one."""
  network.W.copy_(torch.from_numpy(np.array(params["GaussianFourierProjection_0"]["W"])))
  state = {}
  for part, layers in params.items():
    if part.startswith("Gaussian"):
      continue
    nested = layers if isinstance(next(iter(layers.values())), dict) else {"": layers}
    for name, arrays in nested.items():
      name = {"Conv2d_0": "conv", "Conv_0": "" if part.startswith("Combine") else name}.get(name, name)
      prefix = ".".join(filter(None, ["parts", part, name]))
      for kind, value in arrays.items():
        value = np.array(value)
        if kind in ("kernel", "weight"):
          value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
        elif kind == "W":
          value = value.T[:, :, None, None]
        state[f"{prefix}.{'bias' if kind in ('b', 'bias') else 'weight'}"] = torch.from_numpy(value.copy())
  missing, unknown = network.load_state_dict(state, strict=False)
  missing = [name for name in missing if name != "W"]
  if missing or unknown:
    raise ValueError(f"The networks differ: {missing[:3]} are missing, {unknown[:3]} unknown.")
