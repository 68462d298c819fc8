"""Readers: a table of the objects that read a section of a config, and when.

A reader is a dataclass whose fields are options. The table gives the keys of a config, their defaults and ranges, the
objects that are made from a section, and the error for a key that nothing reads.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from score_sde import guidance
from score_sde.augmentation import Augmentation
from score_sde.bounds import ChainBound, EvidenceBound
from score_sde.likelihood import ExactLikelihood
from score_sde.losses import ConsistencyLoss, ScoreMatching
from score_sde.models import MODELS
from score_sde.options import Needs, Option, Other, check_value, options_of
from score_sde.parameterization import ScoreModel
from score_sde.run.config import sections
from score_sde.run.config.errors import BadInput, as_bad_input, get
from score_sde.run.config.plugins import is_plugin
from score_sde.run.config.sdes import SDES, make_sde
from score_sde.sampling import METHODS, AdaptiveODE


@dataclasses.dataclass(frozen=True)
class Reader:
  """Reader: an object that reads keys of a section.

  Attributes:
    section: the section of the config.
    options: the dataclass.
    when: values of other keys (dotted) for which the object is made, in the form of `Option.needs`.
    only: the fields that it reads from the config; () for all.
  """

  section: str
  options: Any
  when: Needs = dataclasses.field(default_factory=dict)
  only: tuple[str, ...] = ()

  def fields(self) -> Iterator[tuple[str, dataclasses.Field, Option]]:
    """Yields (key, field, option) of all keys that the object reads."""
    for field, known in options_of(self.options):
      if not self.only or field.name in self.only:
        yield f"{self.section}.{known.key or field.name}", field, known


_CONSISTENCY = ("start_sigma", "sigmas")  # it has no last step to leave out
_SCORE = {"training.task": ("score",)}

READERS = (
  Reader("data", sections.Data),
  Reader("model", sections.Model),
  *(Reader("model", network, {"model.name": (name,)}) for name, network in MODELS.items()),
  Reader("model", ScoreModel, {"training.task": ("score", "consistency")}),
  *(Reader("model", sde, {"training.sde": (name,)}) for name, sde in SDES.items()),
  Reader("model", SDES["vesde"], {"model.scale_by_sigma": ()}),  # the output is divided by its noise levels
  Reader("optim", sections.Optim),
  Reader("training", sections.Training),
  Reader("training", ScoreMatching, _SCORE),
  Reader("training", Augmentation, {"training.task": ("score", "consistency")}),
  Reader("training", ConsistencyLoss, {"training.task": ("consistency",)}),
  Reader("training", guidance.Classifier, {"training.task": ("classifier",)}),
  # A classifier can be trained at a single noise level, too.
  Reader("training", ScoreMatching, {"training.task": ("classifier",)}, only=("time_sampling",)),
  Reader("sampling", sections.Sampling),
  *(
    Reader("sampling", solver, {"sampling.method": (name,)}, only=_CONSISTENCY if name == "consistency" else ())
    for name, solver in METHODS.items()
  ),
  Reader("sampling", AdaptiveODE, {"guidance.task": ("interpolate",)}, only=("rtol", "atol", "solver", "max_steps")),
  Reader("sampling", AdaptiveODE, {"eval.enable_bpd": (), "eval.likelihood": ("ode",)}, only=("max_steps",)),
  Reader("sampling", guidance.DDRM, {"guidance.method": ("ddrm",)}, only=("noise_removal",)),
  Reader("sampling", ChainBound, {"eval.enable_bpd": (), "eval.likelihood": ("chain",)}, only=("posterior_variance",)),
  Reader("eval", sections.Evaluation),
  Reader("eval", ExactLikelihood, {"eval.enable_bpd": (), "eval.likelihood": ("ode",)}),
  Reader("eval", EvidenceBound, {"eval.enable_bpd": (), "eval.likelihood": ("elbo",)}),
  Reader("guidance", sections.Guidance),
  Reader("guidance", guidance.ByClassifier, {"guidance.method": ("classifier",)}),
  Reader("guidance", guidance.ClassifierFree, {"guidance.method": ("classifier_free",)}),
  Reader("guidance", guidance.Autoguidance, {"guidance.method": (sections.AUTOGUIDANCE,)}),
  *(Reader("guidance", method, {"guidance.method": (name,)}) for name, method in guidance.METHODS.items()),
  Reader("guidance", guidance.Projection, {"guidance.method": ("projection",)}),
  Reader("guidance", guidance.DDRM, {"guidance.method": ("ddrm",)}, only=("eta", "eta_b")),
)

# Keys that may name a user's function, which may read any key of its section.
_PLUGIN_KEYS = ("training.sde", "model.name", "sampling.method")


@functools.cache
def keys() -> dict[str, list[tuple[Reader, dataclasses.Field, Option]]]:
  """Returns {dotted key: its readers as (reader, field, option)} of every key of a config."""
  found: dict[str, list[tuple[Reader, dataclasses.Field, Option]]] = {}
  for reader in READERS:
    for key, field, known in reader.fields():
      found.setdefault(key, []).append((reader, field, known))
  return found


@functools.cache
def _types(cls: Any) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def type_of(reader: Reader, field: dataclasses.Field) -> type:
  """Returns the type of a key's values, apart from None."""
  hint = _types(reader.options)[field.name]
  if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
    hint = next(part for part in typing.get_args(hint) if part is not type(None))
  return typing.get_origin(hint) or hint


def describe(key: str) -> str:
  """Returns one line about a key: its default, its meaning and the accepted values."""
  _, field, known = keys()[key][0]
  choices = dict.fromkeys(choice for *_, other in keys()[key] for choice in other.choices)
  accepted = f"; one of {', '.join(map(str, choices))}" if known.choices else ""
  span = f"; in {known.span}" if known.span else ""
  return f"{key} = {field.default!r}: {known.doc}{accepted}{span}"


# --- what reads a key under the values of the others ------------------------------------------------------------------


def _value(config: ConfigDict, key: str) -> Any:
  if key == "the SDE":
    return "with a closed-form kernel" if make_sde(config).is_linear else "without a closed-form kernel"
  return get(config, key)


def _holds(config: ConfigDict, section: str, needs: Needs) -> bool:
  def one(name: str, accepted: tuple[Any, ...]) -> bool:
    key = name if "." in name or name == "the SDE" else f"{section}.{name}"
    value = _value(config, key)
    if key in _PLUGIN_KEYS and is_plugin(value):
      return True
    if isinstance(accepted, Other):
      return value not in accepted
    return value in accepted if accepted else bool(value)

  return all(one(name, accepted) for name, accepted in needs.items())


def _in_words(section: str, needs: Needs) -> str:
  def one(name: str, accepted: tuple[Any, ...]) -> str:
    if name == "the SDE":
      return f"an SDE {accepted[0]}"
    key = name if "." in name else f"{section}.{name}"
    if not accepted:
      return key
    values = " or ".join(map(repr, accepted))
    return f"another {key} than {values}" if isinstance(accepted, Other) else f"{key}={values}"

  return " with ".join(one(name, accepted) for name, accepted in needs.items())


def reads(config: ConfigDict, reader: Reader, known: Option) -> bool:
  """Returns whether, with a complete config, `reader` is made and reads the option `known`."""
  return _holds(config, reader.section, reader.when) and any(_holds(config, reader.section, n) for n in known.needs)


def why_unread(config: ConfigDict, key: str) -> str | None:
  """Returns in words what would read the dotted `key`; None if something reads it with the complete `config`."""
  readers = keys().get(key, [])
  if not readers or any(reads(config, reader, known) for reader, _, known in readers):
    return None
  told: dict[str, None] = {}
  for reader, _, known in readers:
    for needs in known.needs:
      own = {(n if "." in n or n == "the SDE" else f"{reader.section}.{n}"): a for n, a in needs.items()}
      told[_in_words(reader.section, {**reader.when, **own})] = None
  return ", or ".join(filter(None, told))


# --- from a section to objects ----------------------------------------------------------------------------------------


def names_of(section: str, *others: str) -> dict[str, str]:
  """Returns {argument: dotted key} for messages about objects made from `section`. `others` are more sections."""
  names: dict[str, str] = {}
  for part in reversed((section, *others)):
    for reader in READERS:
      if reader.section == part:
        names |= {field.name: key for key, field, _ in reader.fields()}
  return names | {"steps": "sampling.num_steps", "num_scales": "model.num_scales", "t_start": "guidance.t0"}


def values_for(cls: Any, section: ConfigDict, but: Collection[str] = ()) -> dict[str, Any]:
  """Returns {field: value in `section`} for the options of the dataclass `cls`, without the fields in `but`."""
  return {field.name: section[known.key or field.name] for field, known in options_of(cls) if field.name not in but}


def make(cls: Any, config: ConfigDict, section: str, **others: Any) -> Any:
  """Makes the dataclass `cls` with its options from the `section` of `config`. `others` gives the other fields.

  Raises:
    BadInput: if a value is outside its range, or if values do not go together.
  """
  with as_bad_input(names_of(section)):
    return cls(**values_for(cls, config[section], others), **others)


def check_ranges(config: ConfigDict) -> None:
  """Raises BadInput for the first value of a complete config that is outside the range of an object that reads it."""
  for key, readers in keys().items():
    value = get(config, key)
    active = [known for reader, _, known in readers if reads(config, reader, known)]
    for known in active or [readers[0][2]]:
      if known.choices and is_plugin(value):
        continue
      try:
        check_value(key, value, known)
      except ValueError as error:
        raise BadInput(str(error)) from error
