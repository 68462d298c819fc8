"""Small data sets that come with the program, and images of any kind as 8-bit arrays of one size."""

from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageColor, ImageOps

from score_sde.run.config.errors import BadInput
from score_sde.run.config.sections import height_and_width
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

# Values of data.resize.
RESIZES = ("lanczos", "area", "crop", "pad", "random_crop")

Notes = list[str]  # what was changed in an image, in words


def as_shown(image: Image.Image, channels: int, background: str = "white", notes: Notes | None = None) -> Image.Image:
  """Converts an image of any mode to 8 bits and `channels` channels, as a viewer shows it.

  It is turned upright by its EXIF orientation. Of an animation it is the first frame. 16-bit gray (modes I and I;16) is
  divided by 257. Floating-point gray (mode F) is taken as [0, 1] if no value is larger, else as [0, 255]. Transparent
  parts get the colour `background`, unless `channels` includes the transparency (2 and 4). Colour profiles are ignored.
  Changes are added to `notes`.
  """
  notes = [] if notes is None else notes
  if getattr(image, "n_frames", 1) > 1:
    notes.append("first frame of an animation")
  if image.info.get("icc_profile"):
    notes.append("colour profile ignored")
  mode, upright = image.mode, ImageOps.exif_transpose(image)
  if upright.size != image.size or image.getexif().get(_ORIENTATION, 1) != 1:
    notes.append("turned by its EXIF orientation")
  image = upright
  if mode.startswith("I"):
    wide = np.clip(np.asarray(image, np.int64), 0, 65535).astype(np.uint16)
    image = Image.fromarray(as_bytes(wide).squeeze(-1))
  elif mode == "F":
    image = Image.fromarray(as_bytes(np.asarray(image)).squeeze(-1))
  if channels in (1, 3) and image.has_transparency_data:
    image = image.convert("RGBA")
    extrema: Any = image.getextrema()
    if extrema[3][0] < 255:
      notes.append(f"transparent parts made {background}")
    image = Image.alpha_composite(Image.new("RGBA", image.size, background), image)
  if _MODES[channels] not in (mode, mode.removesuffix("A")):
    notes.append(f"converted from {mode} to {_MODES[channels]}")
  return image.convert(_MODES[channels])


_ORIENTATION = 0x0112  # tag of EXIF


def as_array(
  image: Image.Image,
  size: tuple[int, int] | None,
  channels: int,
  resize: str = "lanczos",
  background: str = "white",
  rng: np.random.Generator | None = None,
  notes: Notes | None = None,
) -> np.ndarray:
  """Returns an image as uint8 (H, W, channels).

  Args:
    image: an image of any mode.
    size: (height, width) of the result; None keeps the size.
    channels: 1 (gray), 2 (with transparency), 3 (colours) or 4.
    resize: "lanczos" and "area" resize the largest central part with the shape of the result, by Lanczos' filter or by
      means; "crop" cuts the centre out, and "random_crop" a part that `rng` chooses, without resizing (images that are
      too small are enlarged first); "pad" resizes the whole image and fills the rest with the background.
    background: a colour of Pillow, such as "white" or "#ff8800".
    rng: for "random_crop"; None cuts the centre out.
    notes: changes are added to it, in words.
  """
  notes = [] if notes is None else notes
  image = as_shown(image, channels, background, notes)
  if size is not None and (image.height, image.width) != size:
    image = _resized(image, size, resize, background, rng, notes)
  return np.asarray(image).reshape(image.height, image.width, channels)


def _resized(
  image: Image.Image,
  size: tuple[int, int],
  resize: str,
  background: str,
  rng: np.random.Generator | None,
  notes: Notes,
) -> Image.Image:
  height, width = size
  ratios = (image.height / height, image.width / width)
  lanczos = Image.Resampling.LANCZOS
  if resize == "pad":
    scale = max(ratios)
    inner = (max(1, round(image.width / scale)), max(1, round(image.height / scale)))
    notes.append("padded" if inner != (width, height) else "resized")
    sheet = Image.new(image.mode, (width, height), _color(background, image.mode))
    sheet.paste(image.resize(inner, lanczos), ((width - inner[0]) // 2, (height - inner[1]) // 2))
    return sheet
  if resize in ("crop", "random_crop"):
    if min(ratios) < 1:
      notes.append("enlarged, because it is too small for a crop")
      scale = min(ratios)
      larger = (max(width, round(image.width / scale)), max(height, round(image.height / scale)))
      image = image.resize(larger, lanczos)
    notes.append("cropped")
    room = (image.width - width, image.height - height)
    left, top = (n // 2 for n in room) if rng is None else (int(rng.integers(n + 1)) for n in room)
    return image.crop((left, top, left + width, top + height))
  scale = min(ratios)
  inner = (min(image.width, width * scale), min(image.height, height * scale))
  left, top = (int((image.width - inner[0]) // 2), int((image.height - inner[1]) // 2))
  if max(ratios) > scale * 1.01:
    notes.append("cropped")
  notes.append("resized" if scale >= 1 else "enlarged")
  box = (left, top, left + inner[0], top + inner[1])
  return image.resize((width, height), Image.Resampling.BOX if resize == "area" else lanczos, box=box)


def _color(background: str, mode: str) -> Any:
  """Returns a colour for an image of `mode`. With transparency, it is transparent."""
  found = ImageColor.getcolor(background, mode.removesuffix("A") if mode == "LA" else mode)
  if mode == "LA":
    return (found, 0)
  return (*found[:3], 0) if mode == "RGBA" and isinstance(found, tuple) else found


def fitted(
  image: Image.Image, section: ConfigDict, rng: np.random.Generator | None = None, notes: Notes | None = None
) -> np.ndarray:
  """Returns an image with the size and the channels of config.data, `section`, uint8; see `as_array`."""
  size = height_and_width(section)
  return as_array(image, size, section.num_channels, section.resize, section.background, rng, notes)


def check_image_options(section: ConfigDict) -> None:
  """Raises BadInput for options of config.data with which no image file can be read."""
  if section.num_channels not in _MODES:
    raise BadInput(
      f"data.num_channels={section.num_channels}: images have 1 (gray), 2 (gray and transparency), 3 (colours) or 4 "
      "channels. For others use data.dataset=array."
    )
  try:
    ImageColor.getrgb(section.background)
  except ValueError as error:
    raise BadInput(
      f"data.background={section.background!r} is no colour. Give a name, such as white, or #rrggbb."
    ) from error


def fit(image: Image.Image, config: ConfigDict) -> np.ndarray:
  """Returns an image with the size and channels of the config, uint8. Random crops are taken from the centre."""
  return fitted(image, config.data)
