"""What the model sees of raw examples, made on the device; and the way back."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import Array, expand, fold, uniform
from score_sde.run.data.toys import TOYS

# Streams of an example's key.
FLIP, DEQUANTIZE = range(2)


def is_image(config: ConfigDict) -> bool:
  """Whether the data are images, not the vectors of a toy."""
  return config.data.dataset not in TOYS


def example_shape(config: ConfigDict) -> tuple[int, ...]:
  """Shape of one example: (H, W, C), or (2,) for the toys."""
  if not is_image(config):
    return (2,)
  return (config.data.image_size, config.data.image_size, config.data.num_channels)


def prepare(config: ConfigDict, keys: Array, image: Array, *, train: bool) -> Array:
  """What the model sees of raw examples (B, ...): flipped (in training), dequantized and scaled, float32.

  Gray level v of `levels` becomes v / (levels - 1), or (v + u) / levels with u uniform in [0, 1) under
  data.uniform_dequantization; then [0, 1] becomes [-1, 1] where data.centered. Vectors stay as they are.
  """
  if not is_image(config):
    return image.astype(jnp.float32)
  x = image.astype(jnp.float32)
  if train and config.data.random_flip:
    coin = jax.vmap(jax.random.bernoulli)(fold(keys, FLIP))
    x = jnp.where(expand(coin, x), x[:, :, ::-1], x)
  if config.data.uniform_dequantization:
    x = (x + uniform(fold(keys, DEQUANTIZE), x)) / config.data.levels
  else:
    x = x / (config.data.levels - 1)
  return 2 * x - 1 if config.data.centered else x


def inverse(config: ConfigDict, x: Any) -> Any:
  """From the model's scale back to images in [0, 1] (vectors stay as they are)."""
  if not is_image(config):
    return x
  return (x + 1) / 2 if config.data.centered else x


def as_uint8(config: ConfigDict, image: np.ndarray) -> np.ndarray:
  """Raw images of any number of gray levels, on 0 to 255."""
  return np.round(image * (255 / (config.data.levels - 1))).astype(np.uint8)
