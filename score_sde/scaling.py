"""Scaling of raw examples to the model's data, and back."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, expand, fold, uniform

# Streams of an example's key.
FLIP, DEQUANTIZE = range(2)


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Scaling of raw examples (B, ..., C) to the model's data, for integers (levels) and for floats (levels=None).

  Gray level v becomes v / (levels - 1). With `uniform_dequantization` it becomes (v + u) / levels, u uniform in [0, 1).
  If `centered`, [0, 1] is then mapped to [-1, 1]. Floats become (x - mean) / std, for each channel.

  Attributes:
    levels: levels of integers, 256 for ordinary images; None for floats.
    centered: True for model data in [-1, 1], False for [0, 1].
    uniform_dequantization: True fills the gaps between levels with noise. Likelihoods need it.
    random_flip: True mirrors images (H, W, C) left to right at random in training.
    mean, std: of each channel of floats; () leaves them as they are.

  Example:
    >>> import jax.numpy as jnp, score_sde as ss
    >>> ss.Scaling(levels=3, centered=True).prepare(None, jnp.array([[0, 1, 2]])).tolist()
    [[-1.0, 0.0, 1.0]]
    >>> ss.Scaling(levels=None, mean=(1.0, 5.0), std=(2.0, 1.0)).prepare(None, jnp.array([[3.0, 4.0]])).tolist()
    [[1.0, -1.0]]
  """

  levels: int | None = 256
  centered: bool = False
  uniform_dequantization: bool = False
  random_flip: bool = False
  mean: tuple[float, ...] = ()
  std: tuple[float, ...] = ()

  @property
  def has_levels(self) -> bool:
    """Tells whether the data are integers with levels, such as images, and not floats."""
    return self.levels is not None

  @property
  def slope(self) -> float:
    """Returns d(data in [0, 1]) / d(model's data) of integers: 1/2 if centered, else 1. Floats: 1."""
    return 0.5 if self.has_levels and self.centered else 1.0

  @property
  def low(self) -> float:
    """Returns the value of black in the model's data."""
    return -1.0 if self.centered else 0.0

  def log_slope(self, shape: tuple[int, ...]) -> float:
    """Returns the sum over an example's dimensions of log d(data) / d(model's data): log of the volume's factor.

    `shape` is that of an example. The data of integers are those in [0, 1].
    """
    dims = math.prod(shape)
    if self.std:
      return dims // len(self.std) * sum(math.log(s) for s in self.std)
    return dims * math.log(self.slope)

  def prepare(self, keys: Array | None, raw: Array, *, train: bool = False) -> Array:
    """Scales raw examples (B, ...) to the model's data, float32. `keys` (B,) drive flips and dequantization."""
    x = raw.astype(jnp.float32)
    if train and self.random_flip:
      assert keys is not None
      x = self.mirror(keys, x)
    if self.levels is None:
      return self.forward(x)
    if self.uniform_dequantization:
      assert keys is not None
      x = (x + uniform(fold(keys, DEQUANTIZE), x)) / self.levels
    else:
      x = x / (self.levels - 1)
    return 2 * x - 1 if self.centered else x

  def mirror(self, keys: Array, images: Array) -> Array:
    """Mirrors images (B, H, W, C) left to right at random. The same keys (B,) mirror the same ones of another array."""
    coin = jax.vmap(jax.random.bernoulli)(fold(keys, FLIP))
    return jnp.where(expand(coin, images), images[:, :, ::-1], images)

  def forward(self, data: Any) -> Any:
    """Maps data to the model's: integers after division by levels - 1, in [0, 1], and floats as they are."""
    if self.std:
      return (data - np.asarray(self.mean, np.float32)) / np.asarray(self.std, np.float32)
    return 2 * data - 1 if self.has_levels and self.centered else data

  def inverse(self, x: Any) -> Any:
    """Maps the model's data back: the inverse of `forward`."""
    if self.std:
      return x * np.asarray(self.std, np.float32) + np.asarray(self.mean, np.float32)
    return (x + 1) / 2 if self.has_levels and self.centered else x

  def as_uint8(self, raw: np.ndarray) -> np.ndarray:
    """Converts raw images of any number of gray levels to uint8 in 0 to 255."""
    return np.round(raw * (255 / ((self.levels or 256) - 1))).astype(np.uint8)
