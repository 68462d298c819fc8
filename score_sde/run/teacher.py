"""Trained models beside the one of a config: the teacher of a consistency model, and the weak model of autoguidance."""

import dataclasses
import functools
from typing import Any

from ml_collections import ConfigDict

from score_sde.parameterization import ScoreModel
from score_sde.run import shipped
from score_sde.run.config import BadInput, signature, trains_paths
from score_sde.run.config.plugins import names_code
from score_sde.run.storage import path_of

Params = Any

# Settings of a student that its teacher does not have.
_OF_STUDENTS = ("training.task", "training.objective", "training.eps", "model.ema_widths")

# Settings in which two models of the same data agree.
_SHARED = (
  "the SDE", "data.centered", "data.image_size", "data.num_channels", "data.shape", "data.mean", "data.std",
  "data.condition_shape", "data.condition_mean", "data.condition_std", "model.num_classes",
)  # fmt: skip


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


def starts_from_teacher(config: ConfigDict) -> bool:
  """Returns whether training starts from the parameters of training.teacher, if there is one."""
  return config.training.finetune or config.training.objective == "progressive"


def find_teacher(config: ConfigDict) -> Teacher | None:
  """Returns the model of training.teacher; None if there is none, or if the path does not exist (anymore).

  Raises:
    BadInput: if it is not a score model, has another SDE or other data, or is to be the start of another network.
  """
  t = config.training
  given = shipped.find(t.teacher)
  if not given or not path_of(given).exists():
    return None
  starts = starts_from_teacher(config)
  hint = ", or --config.training.finetune=False where only the network differs" if starts else ""
  return find_model("training.teacher", given, config, same_network=starts, hint=hint)


def find_model(
  key: str, path: str, config: ConfigDict, *, checkpoint: str = "latest", same_network: bool = False, hint: str = ""
) -> Teacher:
  """Returns the score model in `path`, the value of the config's `key`: a workdir (its `checkpoint`) or a file.

  Raises:
    BadInput: if there is no score model, or one of another SDE, other data, or with `same_network` another network.
      `hint` goes on after the advice to set the model's own values.
  """
  from score_sde.run.data import example_shape
  from score_sde.run.experiment import abstract_params, make_model, make_sde
  from score_sde.run.loading import create, find  # these import this module

  if checkpoint != "latest" and path.endswith(".safetensors"):
    raise BadInput(f"{key}_checkpoint={checkpoint!r}: {path!r} holds the parameters of one step only. Leave it unset.")
  its, read = find(path, checkpoint, allowed=names_code(config))
  if its.training.task == "classifier" or trains_paths(its.training):
    raise BadInput(f"{key}={path!r} is no score model: its training.task is {its.training.task!r}.")
  theirs, ours = signature(its), signature(config)
  keys = [k for k in theirs | ours if k not in _OF_STUDENTS] if same_network else list(_SHARED)
  if its.training.augment and not config.training.augment:  # the same network without an input, see `init_state`
    keys = [k for k in keys if k != "training.augment"]
  of = lambda values, key: values.get(key, "unset")
  differ = "; ".join(f"{k} is {of(theirs, k)!r}, here {of(ours, k)!r}" for k in keys if of(theirs, k) != of(ours, k))
  if differ:
    raise BadInput(f"{key}={path!r} does not fit this config: {differ}. Set these to its values{hint}.")
  network = create(its, example_shape(its))
  abstract = abstract_params(network, example_shape(its))
  return Teacher(path, make_model(its, make_sde(its), network), abstract, read)
