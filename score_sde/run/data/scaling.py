"""Shape and scaling of the examples that a config describes."""

import dataclasses
import functools
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.run.config.plugins import is_plugin
from score_sde.run.config.sections import height_and_width
from score_sde.run.data import conditions
from score_sde.run.data.arrays import Description, array, describe
from score_sde.run.data.own import Hashable, shape_of
from score_sde.run.toys import TOYS
from score_sde.scaling import Scaling


@functools.lru_cache(maxsize=4)
def _described(data: Hashable, stamp: Any) -> Description:
  class Whole:  # of the training split, `array` reads config.data alone
    pass

  whole: Any = Whole()
  whole.data = data.section
  return describe(array(whole, "train"), data.section.standardize, f"data.path={data.section.path!r}")


def description_of(config: ConfigDict) -> dict[str, Any]:
  """Returns values of config.data that follow the data: shape, levels, mean and std of arrays, and of conditions.

  Values that a config has already, such as that of a finished run, are not computed again.
  """
  d, found = config.data, {}
  if d.dataset == "array" and not d.shape:
    found = dataclasses.asdict(_described(Hashable(d), conditions.stamp_of(d.path)))
  if d.condition == "none":
    return found | {"condition_shape": (), "condition_mean": (), "condition_std": ()}
  if is_plugin(d.condition) and not d.condition_shape:
    shape = tuple(found.get("shape", ())) or example_shape(config)
    floats = found.get("levels", d.levels if d.dataset != "array" else None) is None and d.dataset == "array"
    levels = found.get("levels", d.levels) or 256
    kind = np.float32 if floats or len(shape) == 1 else np.uint8 if levels <= 256 else np.uint16
    found |= conditions.described(d.condition, shape, kind)
  return found


def example_shape(config: ConfigDict) -> tuple[int, ...]:
  """Returns the shape of one example: (D,) for points, (L, C) for series, (H, W, C) for images, (D, H, W, C)."""
  if is_plugin(config.data.dataset):
    return shape_of(config)
  if config.data.dataset in TOYS:
    return (2,)
  if config.data.dataset == "array":
    return tuple(config.data.shape or description_of(config)["shape"])
  return (*height_and_width(config.data), config.data.num_channels)


def has_levels(config: ConfigDict) -> bool:
  """Returns whether the data are integers with levels, such as images, and not floats."""
  if config.data.dataset == "array":
    return config.data.levels is not None
  return len(example_shape(config)) == 3


def is_image(config: ConfigDict) -> bool:
  """Returns whether the data are images of up to 256 gray levels."""
  return has_levels(config) and len(example_shape(config)) == 3 and (config.data.levels or 0) <= 256


def scaling_of(config: ConfigDict) -> Scaling:
  """Returns the scaling, from raw examples of a resolved config to the model's inputs."""
  d = config.data
  if not has_levels(config):
    return Scaling(None, bool(d.centered), random_flip=d.random_flip, mean=tuple(d.mean), std=tuple(d.std))
  return Scaling(d.levels, d.centered, d.uniform_dequantization, d.random_flip)


def condition_scaling_of(config: ConfigDict) -> Scaling | None:
  """Returns the scaling of conditions; None without them."""
  d = config.data
  if not d.condition_shape:
    return None
  if d.condition_mean:
    return Scaling(levels=None, mean=tuple(d.condition_mean), std=tuple(d.condition_std))
  return Scaling(levels=None)
