"""Record files, read without TensorFlow: ArrayRecords of tensorflow-datasets, and TFRecords of progressive GANs."""

import os
import pathlib
import re
import struct
from typing import Any

import google_crc32c
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_sde.run.config.errors import BadInput, foreign
from score_sde.run.config.sections import height_and_width
from score_sde.run.data.files import as_bytes, fit
from score_sde.run.data.sources import Lazy, split_off
from score_sde.run.toys import TOYS

# {name of a data set in the official code: name in tensorflow-datasets}.
OFFICIAL_NAMES = {"CIFAR10": "cifar10", "SVHN": "svhn_cropped", "CELEBA": "celeb_a", "LSUN": "lsun"}


def _fitted(image: np.ndarray, config: ConfigDict) -> np.ndarray:
  """Returns an image in the size and channels of the config, uint8. Does not copy it if it already fits."""
  image = as_bytes(image)
  if image.shape == (*height_and_width(config.data), config.data.num_channels):
    return image
  return fit(Image.fromarray(image.squeeze(-1) if image.shape[2] == 1 else image), config)


def is_a_path(kind: str) -> str:
  """Returns the message about a path as data.dataset."""
  return (
    f"data.dataset={kind!r} is a path. Give it as data.path, with data.dataset=folder for images, array for numbers."
  )


def tfds(config: ConfigDict, split: str) -> Lazy:
  """Reads a tensorflow-datasets data set that was prepared as ArrayRecord files. Does not need TensorFlow."""
  import tensorflow_datasets

  name = str(OFFICIAL_NAMES.get(config.data.dataset, config.data.dataset))
  if name == "lsun":
    name = f"lsun/{config.data.category or 'bedroom'}"
  data_dir = config.data.path or None
  prepare = (
    f"Prepare it once, with TensorFlow (pip install -e '.[prepare]'): python -c \"import tensorflow_datasets as t; "
    f"t.builder('{name}', data_dir={data_dir!r}, file_format='array_record').download_and_prepare()\""
  )
  try:
    make: Any = tensorflow_datasets.builder  # its type hints lack ArrayRecord and data sources
    builder = make(name, data_dir=data_dir, file_format="array_record")
  except (tensorflow_datasets.core.DatasetNotFoundError, ValueError) as error:  # ValueError: no possible name
    if pathlib.Path(config.data.dataset).exists():
      raise BadInput(is_a_path(config.data.dataset)) from error
    known = ", ".join(["digits", *TOYS, "idx", "folder", "array", "tfrecords"])
    raise BadInput(
      f"data.dataset={config.data.dataset!r} is none of {known}, and no tensorflow-datasets name."
    ) from error
  except ImportError as error:
    raise BadInput(f"data.dataset={config.data.dataset!r} is not prepared under {data_dir!r}. {prepare}") from error
  splits = builder.info.splits
  held_out = next((s for s in ("test", "validation") if s in splits), "")
  wanted = "train" if split == "train" or not held_out else held_out
  if wanted not in splits or not list(builder.data_path.glob("*array_record*")):
    raise BadInput(f"data.dataset={config.data.dataset!r} is not prepared under {str(builder.data_path)!r}. {prepare}")
  if "image" not in builder.info.features:
    raise BadInput(
      f"data.dataset={config.data.dataset!r} has no 'image' feature, but {', '.join(builder.info.features)}."
    )
  records = builder.as_data_source(split=wanted)
  conditional = config.model.num_classes > 0
  unlabelled = lambda records: "label" in builder.info.features and len(records) and int(records[0]["label"]) < 0
  if conditional and wanted == "test" and "validation" in splits and unlabelled(records):  # such as ImageNet's
    wanted = "validation"
    records = builder.as_data_source(split=wanted)
  if conditional and unlabelled(records):
    raise BadInput(f"data.dataset={config.data.dataset!r} has no labels in its split {wanted!r}.")
  # A set without a test split gives a fixed tenth of its training split.
  chosen = np.arange(len(records)) if held_out else split_off(len(records), split)

  def read(i):
    record = records[int(chosen[i])]
    return _fitted(record["image"], config), int(record["label"]) if "label" in record else 0

  features = builder.info.features
  label = features["label"] if "label" in features else None  # noqa: SIM401  # it has no method get
  classes, names = getattr(label, "num_classes", None) or 1, tuple(getattr(label, "names", None) or ())
  identity = f"{builder.info.full_name} {wanted} {len(records)} {split}"
  return Lazy(len(chosen), read, classes, names if len(names) == classes else (), identity=identity)


def tfrecord_files(path: str) -> list[pathlib.Path]:
  """Returns the TFRecord files that data.path names: the file itself, or all in a folder."""
  root = pathlib.Path(path)
  if root.is_file():
    return [root] if ".tfrecord" in root.name else []
  return sorted(p for p in root.glob("*.tfrecord*") if p.is_file())


def tfrecords(config: ConfigDict, split: str) -> Lazy:
  """Reads images from the TFRecords that the scripts of progressive GANs and StyleGAN write, as the official code does.

  Each record is a tf.train.Example with `shape` (C, H, W) and `data`, the bytes of a uint8 array. If a folder has one
  file per resolution (NAME-r08.tfrecords has 2**8 pixels), the file of data.image_size is read. A fixed tenth, at most
  1,000 images, is the test split.

  Raises:
    BadInput: if a file has another format or is cut short. A record with a wrong checksum raises it when it is read.
  """
  files = tfrecord_files(config.data.path)
  if not files:
    raise BadInput(f"data.dataset='tfrecords' found no *.tfrecord* at data.path={config.data.path!r}.")
  levels = {p: int(m[1]) for p in files if (m := re.search(r"-r(\d\d)\.tfrecord", p.name))}
  if len(files) > 1 and len(levels) == len(files):
    files = [p for p in files if (2 ** levels[p],) * 2 == height_and_width(config.data)]
    if not files:
      sizes = ", ".join(str(2**n) for n in sorted(levels.values()))
      raise BadInput(
        f"data.path={config.data.path!r} has TFRecords of {sizes} pixels, none of data.image_size="
        f"{config.data.image_size}."
      )
  with foreign(f"data.path={config.data.path!r}"):
    opened = [os.open(p, os.O_RDONLY) for p in files]
  places = [(number, *place) for number, p in enumerate(files) for place in _records(p, opened[number])]
  chosen = split_off(len(places), split)

  def read(i):
    number, offset, length = places[chosen[i]]
    content = os.pread(opened[number], length + 4, offset)
    record, checksum = content[:length], content[length:]
    if checksum != _checksum(record):
      raise BadInput(
        f"{files[number]} is damaged at byte {offset}: a record does not have its checksum. Copy it again."
      )
    with foreign(f"{files[number]}, a record at byte {offset},"):
      return _fitted(_example(files[number], record), config), 0

  identity = f"{split} of {' '.join(f'{p.name} {p.stat().st_size}' for p in files)}"
  return Lazy(len(chosen), read, 1, identity=identity)


def _checksum(content: bytes) -> bytes:
  """Returns the checksum of TFRecords: the CRC-32C, rotated by 15 bits, plus a constant."""
  crc = google_crc32c.value(content)
  return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _records(path: pathlib.Path, opened: int) -> list[tuple[int, int]]:
  """Returns (offset, length) of every record.

  The file format: a length in 8 bytes, its checksum in 4, the record, its checksum in 4.
  """
  size, places, at = os.fstat(opened).st_size, [], 0
  while at < size:
    header = os.pread(opened, 12, at)
    sound = len(header) == 12 and header[8:] == _checksum(header[:8])
    length = struct.unpack("<Q", header[:8])[0] if sound else size
    if at + 16 + length > size:
      raise BadInput(f"{path} is no file of TFRecords, or damaged after {len(places)} of them. Copy it again.")
    places.append((at + 12, length))
    at += 16 + length
  return places


def _example(path: pathlib.Path, record: bytes) -> np.ndarray:
  """Returns the image (H, W, C) of a record."""
  from google.protobuf.message import DecodeError
  from tensorflow_datasets.proto import tf_example_pb2

  try:
    example: Any = tf_example_pb2  # made at run time
    feature = example.Example.FromString(record).features.feature
    shape = tuple(feature["shape"].int64_list.value)
    return np.frombuffer(feature["data"].bytes_list.value[0], np.uint8).reshape(shape).transpose(1, 2, 0)
  except (DecodeError, IndexError, ValueError) as error:
    raise BadInput(
      f"{path} holds a record that is no image of a progressive GAN's TFRecords, with 'shape' (C, H, W) and uint8 "
      f"'data': {error}"
    ) from error
