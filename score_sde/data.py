"""Data sets: from a config to batches, each a pure function of the global step.

A source answers `source[i]` with {"image", "label"}: uint8 images (H, W, C), or float32 vectors for the 2-D toys. A
batch is the next `batch_size` entries of an endless, seeded sequence of permutations, one an epoch, of which every host
takes its own part; nothing but the step is needed to resume. Flips, dequantization and scaling happen on the device.
"""

import dataclasses
import functools
import gzip
import logging
import os
import pathlib
import queue
import struct
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_sde import parallel
from score_sde.analytic import GaussianMixture
from score_sde.batch import Array, expand, fold, uniform
from score_sde.config import BadInput, choose

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")

# The official code's names of data sets, as tensorflow-datasets calls them.
OFFICIAL_NAMES = {"CIFAR10": "cifar10", "SVHN": "svhn_cropped", "CELEBA": "celeb_a", "LSUN": "lsun"}

# Streams of an example's key.
FLIP, DEQUANTIZE = range(2)


@dataclasses.dataclass(frozen=True)
class Arrays:
  """A data set in memory: images (N, H, W, C) uint8 or vectors (N, D) float32, and labels (N,)."""

  image: np.ndarray
  label: np.ndarray

  def __len__(self) -> int:
    return len(self.image)

  @property
  def classes(self) -> int:
    """Classes that labels 0, 1, ... name."""
    return int(self.label.max()) + 1

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    return {"image": self.image[indices], "label": self.label[indices].astype(np.int32)}


@dataclasses.dataclass(frozen=True)
class Lazy:
  """A data set read example by example; `read(i)` returns (image, label), one of `classes` labels."""

  size: int
  read: Callable[[int], tuple[np.ndarray, int]]
  classes: int

  def __len__(self) -> int:
    return self.size

  def gather(self, indices: np.ndarray) -> dict[str, np.ndarray]:
    images, labels = zip(*(self.read(int(i)) for i in indices), strict=True)
    return {"image": np.stack(images), "label": np.asarray(labels, np.int32)}


Source = Arrays | Lazy


# --- toys ---------------------------------------------------------------------------------------------------------


def swiss_roll(rng: np.random.Generator, n: int) -> np.ndarray:
  """A spiral of one and a half turns with a little noise."""
  from sklearn.datasets import make_swiss_roll

  points, _ = make_swiss_roll(n, noise=0.5, random_state=int(rng.integers(2**31)))
  return points[:, [0, 2]] / 7.0


def two_moons(rng: np.random.Generator, n: int) -> np.ndarray:
  """Two interleaved half circles."""
  from sklearn.datasets import make_moons

  points, _ = make_moons(n, noise=0.06, random_state=int(rng.integers(2**31)))
  return (points - [0.5, 0.25]) * 1.5


def checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
  """The dark squares of a 4 x 4 board on [-2, 2]²."""
  column, row = rng.integers(4, size=n), rng.integers(2, size=n)
  corner = np.stack([column, 2 * row + column % 2], axis=1) - 2.0
  return corner + rng.uniform(size=(n, 2))


def eight_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
  """Eight equally likely Gaussians of standard deviation 0.1 on a circle of radius 1.5."""
  angle = rng.integers(8, size=n) * np.pi / 4
  return 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.standard_normal((n, 2))


def eight_gaussians_density() -> GaussianMixture:
  """The density of `eight_gaussians`."""
  angle = np.arange(8) * np.pi / 4
  means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return GaussianMixture(means, np.tile(0.01 * np.eye(2), (8, 1, 1)), np.ones(8))


TOYS = {
  "swiss_roll": swiss_roll,
  "two_moons": two_moons,
  "checkerboard": checkerboard,
  "eight_gaussians": eight_gaussians,
}


# Those whose density is known in closed form.
DENSITIES = {"eight_gaussians": eight_gaussians_density}


def _toy(config: ConfigDict, split: str) -> Arrays:
  """100,000 points to train on, 2,000 others to test on."""
  size = 100_000 if split == "train" else 2_000
  points = TOYS[config.data.dataset](np.random.default_rng([config.seed, split == "train"]), size)
  return Arrays(points.astype(np.float32), np.zeros(size, np.int32))


# --- images -------------------------------------------------------------------------------------------------------


def _digits(config: ConfigDict, split: str) -> Arrays:
  """scikit-learn's 1,797 handwritten digits, 8 x 8 with 17 gray levels; a fixed fifth (360) is held out."""
  from sklearn.datasets import load_digits

  digits = load_digits()
  order = np.random.default_rng(0).permutation(len(digits.images))
  chosen = order[:360] if split == "test" else order[360:]
  return Arrays(digits.images[chosen].astype(np.uint8)[..., None], digits.target[chosen].astype(np.int32))


def _read_idx(path: pathlib.Path) -> np.ndarray:
  """An array from an IDX file, gzipped or not (the format of MNIST and its relatives)."""
  with (gzip.open if path.suffix == ".gz" else open)(path, "rb") as file:
    content = file.read()
  if len(content) < 4 or content[:3] != b"\x00\x00\x08" or len(content) < 4 + 4 * content[3]:
    raise BadInput(f"{path} is no IDX file of unsigned bytes. Download it again.")
  shape = struct.unpack(f">{content[3]}I", content[4 : 4 + 4 * content[3]])
  values = np.frombuffer(content, np.uint8, offset=4 + 4 * content[3])
  if values.size != np.prod(shape):
    raise BadInput(f"{path} holds {values.size} values where its header says {shape}. Download it again.")
  return values.reshape(shape)


def _idx(config: ConfigDict, split: str) -> Arrays:
  """Images and labels from the four IDX files of MNIST, Fashion-MNIST and others in their format."""
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
  return Arrays(images[..., None], labels.astype(np.int32))


def _fit(image: Image.Image, config: ConfigDict) -> np.ndarray:
  """Center-cropped to a square and resized to (image_size, image_size, num_channels), uint8."""
  image = image.convert("L" if config.data.num_channels == 1 else "RGB")
  side = min(image.size)
  left, top = (image.width - side) // 2, (image.height - side) // 2
  size = (config.data.image_size, config.data.image_size)
  image = image.resize(size, Image.Resampling.LANCZOS, box=(left, top, left + side, top + side))
  return np.asarray(image).reshape(*size, config.data.num_channels)


def _open(path: pathlib.Path, config: ConfigDict) -> np.ndarray | None:
  """The fitted image of a file, None where it cannot be read."""
  try:
    with Image.open(path) as image:
      return _fit(image, config)
  except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
    return None


def _folder(config: ConfigDict, split: str) -> Source:
  """Images of a folder, nested; the first level of subfolders are the classes. A fixed tenth, 1,000 at most, is test.

  Every file is decoded once before training starts, so that an unreadable one is found then.
  """
  root = pathlib.Path(config.data.path)
  if not config.data.path or not root.is_dir():
    raise BadInput(f"data.dataset='folder' needs data.path, an existing folder of images; got {config.data.path!r}.")
  files = sorted(p for p in root.rglob("*") if p.is_file())
  paths = [p for p in files if p.suffix.lower() in IMAGE_SUFFIXES]
  if not paths:
    raise BadInput(
      f"data.dataset='folder' found no images under {str(root)!r} (looked for {' '.join(IMAGE_SUFFIXES)}, 0 of "
      f"{len(files)} files match). Point --config.data.path at the folder that holds them."
    )
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
  order = np.random.default_rng(0).permutation(len(good))
  held_out = min(1000, len(good) // 10)
  chosen = [good[i] for i in (order[:held_out] if split == "test" else order[held_out:])]
  labels = np.array([classes[names[i]] for i in chosen], np.int32)
  if in_memory:
    images = np.stack([decoded[i] for i in chosen]) if chosen else np.zeros((0, size, size, channels), np.uint8)
    return Arrays(images, labels)

  def read(i):
    image = _open(paths[chosen[i]], config)
    if image is None:
      raise OSError(f"{paths[chosen[i]]} was readable when the run started and no longer is. Restore it and resume.")
    return image, labels[i]

  return Lazy(len(chosen), read, len(classes))


def read_inputs(config: ConfigDict) -> list[tuple[str, np.ndarray]]:
  """(name, fitted image) of guidance.input, an image file or a folder of them, sorted.

  Raises:
    BadInput: where there is none, or one cannot be read.
  """
  root = pathlib.Path(config.guidance.input)
  found = sorted(root.rglob("*")) if root.is_dir() else [root]
  files = [p for p in found if p.is_file() and p.suffix.lower() in IMAGE_SUFFIXES]
  if not files:
    raise BadInput(f"guidance.input={str(root)!r} is no image and no folder of images ({' '.join(IMAGE_SUFFIXES)}).")
  images = [_open(p, config) for p in files]
  bad = [str(p) for p, image in zip(files, images, strict=True) if image is None]
  if bad:
    raise BadInput(
      f"{len(bad)} of {len(files)} images of guidance.input={str(root)!r} cannot be read: {', '.join(bad[:5])}."
    )
  base = root if root.is_dir() else root.parent
  return [("_".join(p.relative_to(base).with_suffix("").parts), i) for p, i in zip(files, images, strict=True)]


def _tfds(config: ConfigDict, split: str) -> Lazy:
  """A prepared tensorflow-datasets data set in ArrayRecord form, read without TensorFlow."""
  import tensorflow_datasets as tfds

  name = OFFICIAL_NAMES.get(config.data.dataset, config.data.dataset)
  if name == "lsun":
    name = f"lsun/{config.data.category or 'bedroom'}"
  data_dir = config.data.path or None
  prepare = (
    f"Prepare it once, with TensorFlow (pip install -e '.[prepare]'): python -c \"import tensorflow_datasets as t; "
    f"t.builder('{name}', data_dir={data_dir!r}, file_format='array_record').download_and_prepare()\""
  )
  try:
    builder = tfds.builder(name, data_dir=data_dir, file_format="array_record")
  except tfds.core.DatasetNotFoundError as error:
    known = ", ".join(["digits", *TOYS, "idx", "folder"])
    raise BadInput(
      f"data.dataset={config.data.dataset!r} is none of {known}, and no tensorflow-datasets name."
    ) from error
  except ImportError as error:
    raise BadInput(f"data.dataset={config.data.dataset!r} is not prepared under {data_dir!r}. {prepare}") from error
  split = next((s for s in ((split, "validation") if split == "test" else (split,)) if s in builder.info.splits), "")
  if not split or not list(builder.data_path.glob("*array_record*")):
    raise BadInput(f"data.dataset={config.data.dataset!r} is not prepared under {str(builder.data_path)!r}. {prepare}")
  if "image" not in builder.info.features:
    raise BadInput(
      f"data.dataset={config.data.dataset!r} has no 'image' feature, but {', '.join(builder.info.features)}."
    )
  records = builder.as_data_source(split=split)

  def read(i):
    record = records[i]
    image = record["image"]
    if image.shape[:2] != (config.data.image_size,) * 2 or image.shape[2] != config.data.num_channels:
      image = _fit(Image.fromarray(image.squeeze() if image.shape[2] == 1 else image), config)
    return image, int(record["label"]) if "label" in record else 0

  features = builder.info.features
  classes = getattr(features["label"], "num_classes", None) if "label" in features else None
  return Lazy(len(records), read, classes or 1)


READERS = {"digits": _digits, "idx": _idx, "folder": _folder} | dict.fromkeys(TOYS, _toy)


def load(config: ConfigDict, split: str) -> Source:
  """The `split` ("train" or "test") of the data set that the config names.

  Raises:
    BadInput: for a data set that is missing, empty, unreadable, or of another shape than the config says.
  """
  choose("split", split, ("train", "test"))
  if config.data.dataset in ("FFHQ", "CelebAHQ") and not config.data.path:
    raise BadInput(f"data.dataset={config.data.dataset!r} is read from a folder of images: set --config.data.path.")
  reader = "folder" if config.data.dataset in ("FFHQ", "CelebAHQ") else config.data.dataset
  source = READERS.get(reader, _tfds)(config, split)
  if not len(source):
    raise BadInput(f"data.dataset={config.data.dataset!r} has no {split} examples.")
  shape, expected = source.gather(np.array([0]))["image"].shape[1:], example_shape(config)
  if shape != expected:
    raise BadInput(
      f"data.dataset={config.data.dataset!r} holds examples of shape {shape}, but data.image_size="
      f"{config.data.image_size} and data.num_channels={config.data.num_channels} ask for {expected}."
    )
  if config.model.num_classes and source.classes > config.model.num_classes:
    raise BadInput(
      f"data.dataset={config.data.dataset!r} has {source.classes} classes, but model.num_classes="
      f"{config.model.num_classes}. Try --config.model.num_classes={source.classes}, or 0 to ignore them."
    )
  if config.model.num_classes and source.classes == 1:
    raise BadInput(
      f"model.num_classes={config.model.num_classes}, but data.dataset={config.data.dataset!r} has no labels (of a "
      "folder they are its subfolders). Use --config.model.num_classes=0."
    )
  return source


def name(config: ConfigDict) -> str:
  """How pictures and reports call the data: files by their folder."""
  in_files = config.data.dataset in ("idx", "folder") and pathlib.Path(config.data.path).name
  return in_files or config.data.dataset


def is_image(config: ConfigDict) -> bool:
  """Whether the data are images, not the vectors of a toy."""
  return config.data.dataset not in TOYS


def example_shape(config: ConfigDict) -> tuple[int, ...]:
  """Shape of one example: (H, W, C), or (2,) for the toys."""
  if not is_image(config):
    return (2,)
  return (config.data.image_size, config.data.image_size, config.data.num_channels)


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, n: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(n)


def shuffled(seed: int, n: int, place: np.ndarray) -> np.ndarray:
  """The example at each `place` of an endless stream of `n`, which has all of them in a new order every epoch."""
  epoch, position = np.divmod(place, n)
  chosen = np.zeros(len(place), np.int64)
  for e in np.unique(epoch):
    chosen[epoch == e] = _permutation(seed, n, int(e))[position[epoch == e]]
  return chosen


def batches(config: ConfigDict, source: Source, start: int) -> Iterator[dict[str, np.ndarray]]:
  """This host's share of the training batches from step `start` on, endless, read ahead in threads.

  Each is {"image" (b, ...), "label" (b,), "index" (b,)} with b = batch_size / hosts and `index` the place of each
  example in the global batch.
  """
  n, size = len(source), config.training.batch_size
  local = size // parallel.host_count()
  index = np.arange(local) + parallel.host_index() * local

  def batch(step):
    return source.gather(shuffled(config.seed, n, step * size + index)) | {"index": index.astype(np.int32)}

  steps = grain.MapDataset.range(start, sys.maxsize // 2).map(batch)
  threads = 1 if isinstance(source, Arrays) else 2 * (os.cpu_count() or 1)
  return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads + 2)))


class Stalled(Exception):
  """What reads the data hangs."""


def within(batches: Iterator[Any], seconds: float) -> Iterator[Any]:
  """The same batches. Raises Stalled where the next does not come within `seconds`."""
  ready: queue.Queue = queue.Queue(maxsize=1)

  def read() -> None:
    try:
      for batch in batches:
        ready.put((batch, None))
    except BaseException as error:  # raised where the batch is asked for
      ready.put((None, error))

  threading.Thread(target=read, daemon=True).start()
  while True:
    try:
      batch, error = ready.get(timeout=seconds)
    except queue.Empty as nothing:
      raise Stalled(
        f"No batch came within training.data_timeout={seconds:g} s: what reads the data hangs, as on a network disk "
        "that is gone. Mend that, and the same command goes on from the newest checkpoint."
      ) from nothing
    if error is not None:
      raise error
    yield batch


def in_order(
  source: Source, batch_size: int, limit: int | None = None
) -> Sequence[Callable[[], dict[str, np.ndarray]]]:
  """The first `limit` examples (all where None), as functions that each read a batch; the last may be short."""
  n = min(len(source), limit or len(source))
  return [
    functools.partial(lambda low: source.gather(np.arange(low, min(low + batch_size, n))), low)
    for low in range(0, n, batch_size)
  ]


# --- on the device ------------------------------------------------------------------------------------------------


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


if __name__ == "__main__":  # python -m score_sde.data suggest-sigmas --config=FILE
  from score_sde import cli
  from score_sde.noise_scales import suggest_sigmas

  cli.run_tool({"suggest-sigmas": suggest_sigmas}, needs_workdir=False)
