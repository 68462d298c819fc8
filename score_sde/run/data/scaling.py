"""Shape and scaling of the examples that a config describes."""

from ml_collections import ConfigDict

from score_sde.run.config.plugins import is_plugin
from score_sde.run.data.own import shape_of
from score_sde.run.toys import TOYS
from score_sde.scaling import Scaling


def example_shape(config: ConfigDict) -> tuple[int, ...]:
  """Returns the shape of one example: (H, W, C) for images, (D,) for points."""
  if is_plugin(config.data.dataset):
    return shape_of(config)
  if config.data.dataset in TOYS:
    return (2,)
  return (config.data.image_size, config.data.image_size, config.data.num_channels)


def is_image(config: ConfigDict) -> bool:
  """Returns whether the data are images, not points."""
  return len(example_shape(config)) == 3


def scaling_of(config: ConfigDict) -> Scaling:
  """Returns the scaling, from raw examples of a resolved config to the model's inputs."""
  d = config.data
  if not is_image(config):
    return Scaling(levels=None, centered=bool(d.centered))
  return Scaling(d.levels, d.centered, d.uniform_dequantization, d.random_flip)
