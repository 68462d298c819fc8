"""Scaling of raw examples to the model's data, and back."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array, expand, fold, uniform

# Streams of an example's key.
FLIP, DEQUANTIZE = range(2)


@dataclasses.dataclass(frozen=True)
class Scaling:
  """Scaling of raw examples to the model's data. Images have gray levels. Points (levels=None) stay as they are.

  Gray level v becomes v / (levels - 1). With `uniform_dequantization` it becomes (v + u) / levels, u uniform in [0, 1).
  If `centered`, [0, 1] is then mapped to [-1, 1].

  Attributes:
    levels: gray levels of an image, 256 for ordinary images; None for other data.
    centered: True for model data in [-1, 1], False for [0, 1].
    uniform_dequantization: True fills the gaps between gray levels with noise. Likelihoods need it.
    random_flip: True mirrors images at random in training.

  Example:
    >>> import jax.numpy as jnp, score_sde as ss
    >>> ss.Scaling(levels=3, centered=True).prepare(None, jnp.array([[0, 1, 2]])).tolist()
    [[-1.0, 0.0, 1.0]]
  """

  levels: int | None = 256
  centered: bool = False
  uniform_dequantization: bool = False
  random_flip: bool = False

  @property
  def is_image(self) -> bool:
    """Tells whether the data are images."""
    return self.levels is not None

  @property
  def slope(self) -> float:
    """Returns d(image in [0, 1]) / d(model's data): 1/2 for centered images, else 1."""
    return 0.5 if self.is_image and self.centered else 1.0

  @property
  def low(self) -> float:
    """Returns the value of black in the model's data."""
    return -1.0 if self.centered else 0.0

  def prepare(self, keys: Array | None, raw: Array, *, train: bool = False) -> Array:
    """Scales raw examples (B, ...) to the model's data, float32. `keys` (B,) drive flips and dequantization."""
    x = raw.astype(jnp.float32)
    if self.levels is None:
      return x
    if train and self.random_flip:
      assert keys is not None
      coin = jax.vmap(jax.random.bernoulli)(fold(keys, FLIP))
      x = jnp.where(expand(coin, x), x[:, :, ::-1], x)
    if self.uniform_dequantization:
      assert keys is not None
      x = (x + uniform(fold(keys, DEQUANTIZE), x)) / self.levels
    else:
      x = x / (self.levels - 1)
    return 2 * x - 1 if self.centered else x

  def forward(self, image: Any) -> Any:
    """Maps images in [0, 1] to the model's data. Points stay as they are."""
    return 2 * image - 1 if self.is_image and self.centered else image

  def inverse(self, x: Any) -> Any:
    """Maps the model's data to images in [0, 1]. Points stay as they are."""
    return (x + 1) / 2 if self.is_image and self.centered else x

  def as_uint8(self, raw: np.ndarray) -> np.ndarray:
    """Converts raw images of any number of gray levels to uint8 in 0 to 255."""
    return np.round(raw * (255 / ((self.levels or 256) - 1))).astype(np.uint8)
