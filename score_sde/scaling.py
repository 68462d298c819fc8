"""From raw examples to what a model sees, and back."""

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
  """How raw examples become what a model sees. Images have gray levels; points, with levels=None, stay as they are.

  Gray level v of `levels` becomes v / (levels - 1), or (v + u) / levels with u uniform in [0, 1) under
  `uniform_dequantization`; then [0, 1] becomes [-1, 1] where `centered`.

  Attributes:
    levels: gray levels of an image, 256 for ordinary ones; None for data that is no image.
    centered: whether the model sees [-1, 1] instead of [0, 1].
    uniform_dequantization: whether noise fills the gaps between gray levels, as likelihoods need it.
    random_flip: whether images are mirrored at random in training.

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
    """Whether the data are images."""
    return self.levels is not None

  @property
  def slope(self) -> float:
    """d(image in [0, 1]) / d(model's data): 1/2 where centered, else 1."""
    return 0.5 if self.is_image and self.centered else 1.0

  @property
  def low(self) -> float:
    """The value that the model sees of black."""
    return -1.0 if self.centered else 0.0

  def prepare(self, keys: Array | None, raw: Array, *, train: bool = False) -> Array:
    """Returns what the model sees of raw examples (B, ...), float32, with keys (B,) for flips and dequantization."""
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
    """Returns what the model sees of images in [0, 1] (points stay as they are)."""
    return 2 * image - 1 if self.is_image and self.centered else image

  def inverse(self, x: Any) -> Any:
    """Returns images in [0, 1] from what the model sees (points stay as they are)."""
    return (x + 1) / 2 if self.is_image and self.centered else x

  def as_uint8(self, raw: np.ndarray) -> np.ndarray:
    """Returns raw images of any number of gray levels on 0 to 255."""
    return np.round(raw * (255 / ((self.levels or 256) - 1))).astype(np.uint8)
