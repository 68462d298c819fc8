"""Small data sets that come with the program, and images of any kind as 8-bit arrays of one size."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from score_sde.run.data.sources import Arrays
from score_sde.run.toys import TOYS

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")


def digits(config: ConfigDict, split: str) -> Arrays:
  """Reads scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 gray levels. A fixed fifth (360) is the test split."""
  from sklearn.datasets import load_digits

  digits: Any = load_digits()
  order = np.random.default_rng(0).permutation(len(digits.images))
  chosen = order[:360] if split == "test" else order[360:]
  images = digits.images[chosen].astype(np.uint8)[..., None]
  return Arrays(images, digits.target[chosen].astype(np.int32), names=tuple(map(str, range(10))))


def toy(config: ConfigDict, split: str) -> Arrays:
  """Draws the points of a toy: 100,000 for "train", 2,000 others for "test"."""
  size = 100_000 if split == "train" else 2_000
  points = TOYS[config.data.dataset](np.random.default_rng([config.seed, split == "train"]), size)
  # The same distribution for any seed, so that a run can be resumed and evaluated with another one.
  identity = f"{size} points of {config.data.dataset}"
  return Arrays(points.astype(np.float32), np.zeros(size, np.int32), identity=identity)


def as_bytes(image: np.ndarray) -> np.ndarray:
  """Returns an image (H, W[, C]) of any type as uint8, (H, W, C).

  16-bit values are divided by 257. Floats are taken as [0, 1] if none is larger, else as [0, 255]; so are truth values.
  """
  image = image[..., None] if image.ndim == 2 else image
  if image.dtype == np.uint8:
    return image
  values = np.nan_to_num(np.asarray(image, np.float64))
  if image.dtype == np.uint16:
    values = values / 257
  elif image.dtype == bool or (np.issubdtype(image.dtype, np.floating) and values.max(initial=0) <= 1):
    values = values * 255
  return np.clip(values, 0, 255).round().astype(np.uint8)


# Pillow's mode for each number of channels.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def as_shown(image: Image.Image, channels: int) -> Image.Image:
  """Converts an image of any mode to 8 bits and `channels` channels, as a viewer shows it.

  It is turned upright by its EXIF orientation. 16-bit gray (modes I and I;16) is divided by 257. Floating-point gray
  (mode F) is taken as [0, 1] if no value is larger, else as [0, 255]. Transparent parts become white, unless
  `channels` includes the transparency (2 and 4).
  """
  image = ImageOps.exif_transpose(image)
  if image.mode.startswith("I"):
    wide = np.clip(np.asarray(image, np.int64), 0, 65535).astype(np.uint16)
    image = Image.fromarray(as_bytes(wide).squeeze(-1))
  elif image.mode == "F":
    image = Image.fromarray(as_bytes(np.asarray(image)).squeeze(-1))
  if channels in (1, 3) and image.has_transparency_data:
    image = image.convert("RGBA")
    image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
  return image.convert(_MODES[channels])


def as_array(image: Image.Image, size: int | None, channels: int) -> np.ndarray:
  """Returns an image as uint8 (H, W, channels). With `size`, its central square is resized to (size, size)."""
  image = as_shown(image, channels)
  if size is not None:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.resize((size, size), Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
  return np.asarray(image).reshape(image.height, image.width, channels)


def fit(image: Image.Image, config: ConfigDict) -> np.ndarray:
  """Crops the central square of an image and resizes it to (image_size, image_size, num_channels), uint8."""
  return as_array(image, config.data.image_size, config.data.num_channels)
