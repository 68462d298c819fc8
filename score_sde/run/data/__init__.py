"""Data sets: from a config to batches, each a pure function of the global step.

`source.gather(indices)` returns {"image", "label"} and possibly "condition": integers with levels such as images (B, H,
W, C) uint8, or floats (B, ..., C) float32. A batch is
the next `batch_size` entries of an endless, seeded sequence of permutations, one per epoch, and each host takes its own
part of it. So a run resumes from the step alone. Flips, dequantization and scaling happen on the device.
"""

import logging
import pathlib
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.run.config.errors import BadInput, choose
from score_sde.run.config.plugins import is_plugin
from score_sde.run.data.arrays import FORMATS, array
from score_sde.run.data.conditions import Conditioned, Unconditioned
from score_sde.run.data.conditions import read as read_conditions
from score_sde.run.data.files import digits, toy
from score_sde.run.data.folders import DataVanished, folder, read_inputs
from score_sde.run.data.idx import idx
from score_sde.run.data.own import own
from score_sde.run.data.records import is_a_path, tfds, tfrecord_files, tfrecords
from score_sde.run.data.scaling import (
  condition_scaling_of,
  description_of,
  example_shape,
  has_levels,
  is_image,
  scaling_of,
)
from score_sde.run.data.sources import Arrays, Lazy, Source, identity
from score_sde.run.data.stream import Stalled, batches, in_order, shuffled, within
from score_sde.run.toys import DENSITIES, TOYS

log = logging.getLogger(__name__)

__all__ = [
  "DENSITIES",
  "TOYS",
  "Arrays",
  "DataVanished",
  "Lazy",
  "Source",
  "Stalled",
  "batches",
  "condition_scaling_of",
  "description_of",
  "example_shape",
  "has_levels",
  "identity",
  "in_order",
  "is_image",
  "load",
  "name",
  "read_conditions",
  "read_inputs",
  "scaling_of",
  "shuffled",
  "within",
]

READERS = {"array": array, "digits": digits, "idx": idx, "folder": folder, "tfrecords": tfrecords} | dict.fromkeys(
  TOYS, toy
)


def load(config: ConfigDict, split: str) -> Source:
  """Returns the `split` ("train" or "test") of the data set that the config names.

  Raises:
    BadInput: if the data set is missing, empty or unreadable, or does not have the shape or classes of the config.
  """
  choose("split", split, ("train", "test"))
  kind = config.data.dataset
  if kind in ("FFHQ", "CelebAHQ", "tfrecords") and not (config.data.path and pathlib.Path(config.data.path).exists()):
    raise BadInput(
      f"data.dataset={kind!r} is read from data.path, a folder of images or a file of TFRecords; got "
      f"{config.data.path!r}."
    )
  if kind in ("FFHQ", "CelebAHQ"):
    kind = "tfrecords" if tfrecord_files(config.data.path) else "folder"
  if kind not in READERS and not is_plugin(kind) and kind.startswith(("/", ".", "~")):
    raise BadInput(is_a_path(kind))
  if config.data.resize == "random_crop" and kind != "folder" and not is_plugin(kind):
    raise BadInput(f"data.resize='random_crop' is for folders of images, and data.dataset={kind!r}: use 'crop'.")
  source: Any = (own if is_plugin(kind) else READERS.get(kind, tfds))(config, split)
  if is_plugin(config.data.condition):
    source = Conditioned(source, config.data.condition)
  elif config.data.condition == "none":
    source = Unconditioned(source)
  if not len(source):
    raise BadInput(f"data.dataset={config.data.dataset!r} has no {split} examples.")
  first, expected = source.gather(np.array([0])), example_shape(config)
  shape = first["image"].shape[1:]
  if shape != expected and kind == "array":
    raise BadInput(
      f"data.path={config.data.path!r} holds {split} examples of shape {shape}, and data.shape={expected}. All "
      "examples must have one shape; of a table, the columns must be those of the training (data.columns)."
    )
  _check_levels(config, source, first["image"])
  wanted = tuple(config.data.condition_shape)
  if wanted and ("condition" not in first or first["condition"].shape[1:] != wanted):
    found = first["condition"].shape[1:] if "condition" in first else None
    raise BadInput(f"The {split} examples have conditions of shape {found}, and data.condition_shape={wanted}.")
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
  if split == "train" and 1 < source.classes < config.model.num_classes:
    log.warning(
      "The data have %d classes, and model.num_classes=%d: samples of the further classes mean nothing.",
      source.classes, config.model.num_classes,
    )  # fmt: skip
  if split == "train" and config.model.num_classes and source.classes == 1:  # a small test part may lack some
    raise BadInput(
      f"model.num_classes={config.model.num_classes}, but data.dataset={config.data.dataset!r} has no labels (of a "
      "folder they are its subfolders, of a table data.label_column). Use --config.model.num_classes=0."
    )
  return source


def _check_levels(config: ConfigDict, source: Source, first: np.ndarray) -> None:
  """Raises BadInput if integers reach data.levels.

  It sees the first GiB of arrays, and of a source that is read example by example the first one.
  """
  levels = config.data.levels
  if levels is None or first.dtype.kind == "f" or levels > np.iinfo(first.dtype).max:
    return
  rows = max(1, 2**30 // max(first.nbytes, 1))
  largest = int((source.image[:rows] if isinstance(source, Arrays) else first).max())
  if largest >= levels:
    raise BadInput(
      f"data.levels={levels} means values from 0 to {levels - 1}, and data.dataset={config.data.dataset!r} has "
      f"{largest}. Scale the data, or leave data.levels unset."
    )


def name(config: ConfigDict) -> str:
  """Returns the data set's name for pictures and reports. Data in files is named by its folder."""
  if is_plugin(config.data.dataset):
    return config.data.dataset.rpartition(":")[2]
  if config.data.dataset == "array" and is_plugin(config.data.path):
    return config.data.path.rpartition(":")[2]
  path = pathlib.Path(config.data.path)
  alone = path.suffix in (".zip", *FORMATS)
  in_files = config.data.dataset in ("idx", "folder", "array") and (path.stem if alone else path.name)
  return in_files or config.data.dataset
