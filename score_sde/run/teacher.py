"""Teacher: the trained score model from which a consistency model is distilled or tuned."""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from score_sde.parameterization import ScoreModel
from score_sde.run.config import BadInput, signature
from score_sde.run.config.plugins import is_plugin
from score_sde.run.storage import path_of

Params = Any

# Settings in which teacher and student must agree.
_SHARED = ("the SDE", "data.centered", "data.image_size", "data.num_channels", "model.num_classes")


@dataclasses.dataclass(frozen=True, eq=False)
class Teacher:
  """A trained score model.

  Attributes:
    path: its workdir or file.
    model: the network as a model of the score.
    abstract: shapes and dtypes of its parameters.
    read: reads the parameters.
  """

  path: str
  model: ScoreModel
  abstract: Params
  read: Any

  @functools.cached_property
  def params(self) -> Params:
    """The moving average of its parameters, read once."""
    return self.read()


def find_teacher(config: ConfigDict) -> Teacher | None:
  """Returns the model of training.teacher; None if there is none, or if the path does not exist (anymore).

  Raises:
    BadInput: if it is not a score model, has another SDE or other data, or is to be the start of another network.
  """
  from score_sde.run.data import example_shape
  from score_sde.run.experiment import abstract_params, make_model, make_sde
  from score_sde.run.loading import create, find  # these import this module

  t = config.training
  if not t.teacher or not path_of(t.teacher).exists():
    return None
  named = [v for part in config.values() if isinstance(part, ConfigDict) for v in part.values() if is_plugin(v)]
  its, read = find(t.teacher, allowed=named)
  task = its.training.task
  if task != "score" and (task, its.training.objective) != ("consistency", "progressive"):
    raise BadInput(f"training.teacher={t.teacher!r} is no score model: its training.task is {task!r}.")
  theirs, ours = signature(its), signature(config)
  starts = t.finetune or t.objective == "progressive"
  keys = [k for k in theirs if k in ours] if starts else _SHARED
  differ = "; ".join(f"{k} is {theirs[k]!r}, here {ours[k]!r}" for k in keys if theirs[k] != ours[k])
  if differ:
    hint = ", or --config.training.finetune=False where only the network differs" if starts else ""
    raise BadInput(
      f"training.teacher={t.teacher!r} does not fit this config: {differ}. Set these to the teacher's values{hint}."
    )
  network = create(its, example_shape(its))
  abstract = abstract_params(network, example_shape(its))
  return Teacher(t.teacher, make_model(its, make_sde(its), network), abstract, read)
