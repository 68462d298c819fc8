"""IDX files, the format of MNIST, under the names that MNIST's mirrors, Kaggle, torchvision and EMNIST give them."""

import gzip
import logging
import math
import pathlib
import re
import struct

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_sde.run.config.errors import BadInput, foreign
from score_sde.run.config.sections import height_and_width
from score_sde.run.data.files import as_bytes, fit
from score_sde.run.data.sources import Arrays

log = logging.getLogger(__name__)

# The largest IDX file that is read: a gzipped one may hold a thousand times its size.
_MAX_IDX = 4 << 30

# Type codes of the format. Numbers are stored with the highest byte first.
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}

# [SET-]train-images-idx3-ubyte, with "." for "-" (Kaggle), "t10k" or "test", and possibly .gz.
_NAME = re.compile(r"(?P<set>.*?-)??(?P<split>train|t10k|test)-(?P<kind>images|labels)[-.]idx[1-4]-ubyte(\.gz)?")

# Images are padded with black if data.image_size is at most this many times theirs, else resized. 28 pixels become 32
# by padding.
_PADDED = 1.25


def read_idx(path: pathlib.Path) -> np.ndarray:
  """Reads an array from an IDX file, gzipped or not.

  Raises:
    BadInput: if the file has another format, or is cut short or damaged.
  """
  with foreign(str(path), "Download it again."), (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
    content = file.read(_MAX_IDX + 1)
  if len(content) > _MAX_IDX:
    raise BadInput(f"{path} holds more than {_MAX_IDX >> 30} GiB, more than any data set in this format.")
  known = len(content) >= 4 and content[:2] == b"\0\0" and content[2] in _TYPES
  if not known or len(content) < 4 + 4 * content[3]:
    raise BadInput(f"{path} is no IDX file. Download it again.")
  dtype = np.dtype(_TYPES[content[2]])
  shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
  size = len(content) - 4 - 4 * content[3]
  if size != math.prod(shape) * dtype.itemsize:
    raise BadInput(
      f"{path} holds {size} bytes of values, but its header gives shape {shape} of {dtype.name}. Download it again."
    )
  return np.frombuffer(content, dtype, offset=4 + 4 * content[3]).reshape(shape)


def _find(path: str) -> tuple[str, dict[tuple[str, str], pathlib.Path]]:
  """Returns the set's name, such as "emnist-letters", or that of its folder, and its files by (split, kind).

  `path` is a folder, or the beginning of the files' names in a folder.
  """
  root, begin = pathlib.Path(path), ""
  if not path:
    raise BadInput("data.dataset='idx' needs data.path, the folder of the four IDX files.")
  if not root.is_dir() and root.parent.is_dir() and root.name:
    root, begin = root.parent, root.name
  sets: dict[pathlib.Path, dict[tuple[str, str], pathlib.Path]] = {}
  # At most three levels: torchvision keeps MNIST/raw/FILE, and Kaggle FILE/FILE.
  found = [p for depth in ("*", "*/*", "*/*/*") for p in sorted(root.glob(depth))] if root.is_dir() else []
  for file in found:
    match = _NAME.fullmatch(file.name)
    if match and file.is_file() and file.name.startswith(begin):
      split = "train" if match["split"] == "train" else "test"
      own = file.parent.name == file.name  # Kaggle's folder of a single file
      of_set = (file.parent.parent if own else file.parent) / (match["set"] or "").rstrip("-")
      sets.setdefault(of_set, {}).setdefault((split, match["kind"]), file)
  if len(sets) > 1:
    names = ", ".join(repr(str(name)) for name in sorted(sets) if name != root)
    moved = " (or move the others away from the files without a prefix)" if root in sets else ""
    raise BadInput(f"data.path={path!r} holds {len(sets)} sets of IDX files. Choose one as data.path: {names}{moved}.")
  found_set = next(iter(sets), pathlib.Path())
  return found_set.name, sets.get(found_set, {})


def idx(config: ConfigDict, split: str) -> Arrays:
  """Reads images and labels from the four IDX files of MNIST, Fashion-MNIST, EMNIST and others in their format.

  Images are (N, H, W) or (N, H, W, C), of any type. EMNIST stores rows and columns exchanged; they are exchanged
  back. If data.image_size is larger by up to a quarter, they are padded with black. Otherwise they are resized.

  Raises:
    BadInput: if a file is missing or damaged, or images and labels do not go together.
  """
  name, files = _find(config.data.path)
  missing = [kind for kind in ("images", "labels") if (split, kind) not in files]
  if missing:
    prefix = "train" if split == "train" else "t10k"
    raise BadInput(
      f"data.dataset='idx' found no {prefix}-{missing[0]}-idx{3 if missing[0] == 'images' else 1}-ubyte.gz under "
      f"data.path={config.data.path!r}. Point --config.data.path at the folder of the four IDX files; Fashion-MNIST's "
      "come with `apt-get install dataset-fashion-mnist` (in /usr/share/datasets/fashion-mnist) or from its public "
      "download."
    )
  images, labels = (read_idx(files[split, kind]) for kind in ("images", "labels"))
  if images.ndim not in (3, 4) or labels.ndim != 1 or len(images) != len(labels):
    raise BadInput(
      f"data.path={config.data.path!r} has images {images.shape} and labels {labels.shape} for {split!r}; expected "
      "(N, H, W) or (N, H, W, C), and (N,). Download the files again."
    )
  if not len(images) or 0 in images.shape or (labels < 0).any() or not np.array_equal(labels, labels.astype(np.int32)):
    raise BadInput(
      f"data.path={config.data.path!r} has images {images.shape} and labels from {labels.min(initial=0)} to "
      f"{labels.max(initial=0)} for {split!r}; expected at least one image, and classes as integers of 0 or more."
    )
  images = images[..., None] if images.ndim == 3 else images
  if images.dtype != np.uint8:
    images = np.stack([as_bytes(image) for image in images.astype(images.dtype.newbyteorder("="))])
  if name.startswith("emnist"):
    images = images.swapaxes(1, 2)
  return Arrays(_sized(images, config, split), labels.astype(np.int32))


def _sized(images: np.ndarray, config: ConfigDict, split: str) -> np.ndarray:
  """Pads or resizes images (N, H, W, C) to the size and channels of the config."""
  size, channels = height_and_width(config.data), config.data.num_channels
  _, height, width, own = images.shape
  if (height, width, own) == (*size, channels):
    return images
  larger = size[0] >= height and size[1] >= width
  if own == channels and larger and max(size) <= _PADDED * min(height, width):
    top, left = (size[0] - height) // 2, (size[1] - width) // 2
    how, border = "padded with black", ((0, 0), (top, size[0] - height - top), (left, size[1] - width - left), (0, 0))
    images = np.pad(images, border)
  elif own in (1, 2, 3, 4):
    how = "resized"
    as_image = lambda image: Image.fromarray(image.squeeze(-1) if own == 1 else image)
    images = np.stack([fit(as_image(image), config) for image in images])
  else:
    raise BadInput(f"data.path={config.data.path!r} has images of {own} channels, and data.num_channels={channels}.")
  if split == "train":
    log.info("Images of %d x %d x %d are %s to %d x %d x %d.", height, width, own, how, *size, channels)
  return images
