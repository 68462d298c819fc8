"""Image files and small data sets: folders of images, IDX files, scikit-learn's digits, toys."""

import gzip
import logging
import math
import os
import pathlib
import struct
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from ml_collections import ConfigDict
from PIL import Image, ImageOps

from score_sde.run.config.errors import BadInput, foreign
from score_sde.run.data.sources import Arrays, Lazy, Source, split_off
from score_sde.run.toys import TOYS

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")

# Folders that systems and tools leave beside images; so are those that begin with a dot.
_LITTER = ("__MACOSX", "@eaDir", "System Volume Information")


def digits(config: ConfigDict, split: str) -> Arrays:
  """Reads scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 gray levels. A fixed fifth (360) is the test split."""
  from sklearn.datasets import load_digits

  digits: Any = load_digits()
  order = np.random.default_rng(0).permutation(len(digits.images))
  chosen = order[:360] if split == "test" else order[360:]
  return Arrays(digits.images[chosen].astype(np.uint8)[..., None], digits.target[chosen].astype(np.int32))


def toy(config: ConfigDict, split: str) -> Arrays:
  """Draws the points of a toy: 100,000 for "train", 2,000 others for "test"."""
  size = 100_000 if split == "train" else 2_000
  points = TOYS[config.data.dataset](np.random.default_rng([config.seed, split == "train"]), size)
  return Arrays(points.astype(np.float32), np.zeros(size, np.int32))


# The largest IDX file that is read: a gzipped one may hold a thousand times its size.
_MAX_IDX = 4 << 30


def _read_idx(path: pathlib.Path) -> np.ndarray:
  """Reads an array from an IDX file, gzipped or not (the format of MNIST and similar data sets)."""
  with foreign(str(path), "Download it again."), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
    content = file.read(_MAX_IDX + 1)
  if len(content) > _MAX_IDX:
    raise BadInput(f"{path} holds more than {_MAX_IDX >> 30} GiB, more than any data set in this format.")
  if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
    raise BadInput(f"{path} is no IDX file of unsigned bytes. Download it again.")
  shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
  values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
  if values.size != math.prod(shape):
    raise BadInput(f"{path} holds {values.size} values, but its header gives shape {shape}. Download it again.")
  return values.reshape(shape)


def idx(config: ConfigDict, split: str) -> Arrays:
  """Reads images and labels from the four IDX files of MNIST, Fashion-MNIST and others in their format."""
  folder, prefix = pathlib.Path(config.data.path), "train" if split == "train" else "t10k"
  arrays = []
  for kind in ("images-idx3-ubyte", "labels-idx1-ubyte"):
    found = [p for p in (folder / f"{prefix}-{kind}.gz", folder / f"{prefix}-{kind}") if p.is_file()]
    if not found:
      raise BadInput(
        f"data.dataset='idx' found no {prefix}-{kind}.gz under data.path={str(folder)!r}. Point --config.data.path at "
        "the folder of the four IDX files; Fashion-MNIST's come with `apt-get install dataset-fashion-mnist` (in "
        "/usr/share/datasets/fashion-mnist) or from its public download."
      )
    arrays.append(_read_idx(found[0]))
  images, labels = arrays
  if images.ndim != 3 or labels.ndim != 1 or len(images) != len(labels):
    raise BadInput(
      f"data.path={str(folder)!r} has images {images.shape} and labels {labels.shape} for {prefix!r}; expected "
      "(N, H, W) and (N,). Download the files again."
    )
  return Arrays(images[..., None], labels.astype(np.int32))


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


def fit(image: Image.Image, config: ConfigDict) -> np.ndarray:
  """Crops the central square of an image and resizes it to (image_size, image_size, num_channels), uint8."""
  image = as_shown(image, config.data.num_channels)
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  size = (config.data.image_size, config.data.image_size)
  image = image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
  return np.asarray(image).reshape(*size, config.data.num_channels)


def _open(path: pathlib.Path, config: ConfigDict) -> np.ndarray | None:
  """Returns the image of a file after `fit`, or None if it cannot be read."""
  try:
    with Image.open(path) as image:
      return fit(image, config)
  except Exception:  # decoders of damaged files raise errors of every kind
    return None


def _is_litter(path: pathlib.Path) -> bool:
  """Returns True for a hidden file, or one in a hidden or system folder."""
  return any(part.startswith(".") or part in _LITTER for part in path.parts)


def folder(config: ConfigDict, split: str) -> Source:
  """Reads the images of a folder and its subfolders. The first level of subfolders gives the classes.

  A fixed tenth, at most 1,000 images, is the test split. Every file is decoded once before training starts, so that an
  unreadable one is found early.
  """
  root = pathlib.Path(config.data.path)
  if not config.data.path or not root.is_dir():
    raise BadInput(f"data.dataset='folder' needs data.path, an existing folder of images; got {config.data.path!r}.")
  files = sorted(p for p in root.rglob("*") if p.is_file() and not _is_litter(p.relative_to(root)))
  paths = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
  if not paths:
    raise BadInput(
      f"data.dataset='folder' found no images under {str(root)!r} (looked for {' '.join(IMAGE_SUFFIXES)}, 0 of "
      f"{len(files)} files match). Point --config.data.path at the folder that holds them."
    )
  if len(paths) < len(files) and split == "train":
    others = sorted({p.suffix.lower() or p.name for p in files} - set(IMAGE_SUFFIXES))
    log.info("%d files of %s are no images: %s.", len(files) - len(paths), root, " ".join(others[:8]))
  size, channels = config.data.image_size, config.data.num_channels
  in_memory = len(paths) * size * size * channels <= config.data.cache_gib * 2**30

  def check(path):
    image = _open(path, config)
    return image if in_memory else image is not None

  with ThreadPoolExecutor(os.cpu_count()) as pool:
    decoded = []
    for i, result in enumerate(pool.map(check, paths)):
      decoded.append(result)
      if (i + 1) % 5000 == 0:
        log.info("Read %d of %d images of %s.", i + 1, len(paths), root)
  bad = [str(p) for p, d in zip(paths, decoded, strict=True) if d is None or d is False]
  if bad:
    message = f"{len(bad)} of {len(paths)} images under {str(root)!r} cannot be read: {', '.join(bad[:5])}" + (
      ", ..." if len(bad) > 5 else ""
    )
    if config.data.on_corrupt == "error" or len(bad) == len(paths):
      raise BadInput(f"{message}. Remove them, or skip them with --config.data.on_corrupt=skip.")
    log.warning("%s. Skipped.", message)
  good = [i for i, d in enumerate(decoded) if d is not None and d is not False]

  names = [p.relative_to(root).parts[0] if len(p.relative_to(root).parts) > 1 else "" for p in paths]
  classes = {name: i for i, name in enumerate(sorted(set(names)))}
  chosen = [good[i] for i in split_off(len(good), split)]
  labels = np.array([classes[names[i]] for i in chosen], np.int32)
  if in_memory:
    images = np.stack([decoded[i] for i in chosen]) if chosen else np.zeros((0, size, size, channels), np.uint8)
    return Arrays(images, labels, len(classes))

  def read(i):
    image = _open(paths[chosen[i]], config)
    if image is None:
      raise OSError(f"{paths[chosen[i]]} was readable when the run started and no longer is. Restore it and resume.")
    return image, int(labels[i])

  return Lazy(len(chosen), read, len(classes))


def read_inputs(config: ConfigDict) -> list[tuple[str, np.ndarray]]:
  """Returns (name, image after `fit`) of each file of guidance.input, an image file or a folder of them, sorted.

  Raises:
    BadInput: if there is no image, or one cannot be read.
  """
  root = pathlib.Path(config.guidance.input)
  found = sorted(root.rglob("*")) if root.is_dir() else [root]
  files = [p for p in found if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
  if not files:
    raise BadInput(f"guidance.input={str(root)!r} is no image and no folder of images ({' '.join(IMAGE_SUFFIXES)}).")
  images: list[Any] = [_open(p, config) for p in files]
  bad = [str(p) for p, image in zip(files, images, strict=True) if image is None]
  if bad:
    raise BadInput(
      f"{len(bad)} of {len(files)} images of guidance.input={str(root)!r} cannot be read: {', '.join(bad[:5])}."
    )
  base = root if root.is_dir() else root.parent
  return [("_".join(p.relative_to(base).with_suffix("").parts), i) for p, i in zip(files, images, strict=True)]
