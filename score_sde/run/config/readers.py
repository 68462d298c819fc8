"""Which object reads which section of a config, and when. The keys follow from the fields of these objects.

A reader is a dataclass whose fields are options. From this table follow the keys that a config has, their defaults and
ranges, the objects that a section becomes, and the error for a key that nothing reads.
"""

import dataclasses
import functools
import types
import typing
from collections.abc import Collection, Iterator
from typing import Any

from ml_collections import ConfigDict

from score_sde import guidance
from score_sde.bounds import ChainBound, EvidenceBound
from score_sde.likelihood import ExactLikelihood
from score_sde.losses import ScoreMatching
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
  """An object that reads keys of a section.

  Attributes:
    section: the section of the config.
    options: the dataclass.
    when: under which values of other keys (dotted) it is made at all, as `Option.needs`.
    only: the fields that it reads here; () for all.
  """

  section: str
  options: Any
  when: Needs = dataclasses.field(default_factory=dict)
  only: tuple[str, ...] = ()

  def fields(self) -> Iterator[tuple[str, dataclasses.Field, Option]]:
    """Yields (key, field, option) of all keys that it reads."""
    for field, known in options_of(self.options):
      if not self.only or field.name in self.only:
        yield f"{self.section}.{known.key or field.name}", field, known


_SCORE = {"training.task": ("score",)}

READERS = (
  Reader("data", sections.Data),
  Reader("model", sections.Model),
  *(Reader("model", network, {"model.name": (name,)}) for name, network in MODELS.items()),
  Reader("model", ScoreModel, _SCORE),
  *(Reader("model", sde, {"training.sde": (name,)}) for name, sde in SDES.items()),
  Reader("model", SDES["vesde"], {"model.scale_by_sigma": ()}),  # the noise levels that the output is divided by
  Reader("optim", sections.Optim),
  Reader("training", sections.Training),
  Reader("training", ScoreMatching, _SCORE),
  Reader("training", guidance.Classifier, {"training.task": ("classifier",)}),
  # A classifier draws its times at one level, too.
  Reader("training", ScoreMatching, {"training.task": ("classifier",)}, only=("time_sampling",)),
  Reader("sampling", sections.Sampling),
  *(Reader("sampling", solver, {"sampling.method": (name,)}) for name, solver in METHODS.items()),
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
  *(Reader("guidance", method, {"guidance.method": (name,)}) for name, method in guidance.METHODS.items()),
  Reader("guidance", guidance.Projection, {"guidance.method": ("projection",)}),
  Reader("guidance", guidance.DDRM, {"guidance.method": ("ddrm",)}, only=("eta", "eta_b")),
)

# Where a name may stand for a user's file, which may read any key of the section.
_PLUGIN_KEYS = ("training.sde", "model.name", "sampling.method")


@functools.cache
def keys() -> dict[str, list[tuple[Reader, dataclasses.Field, Option]]]:
  """Returns every key of a config, dotted, with all that reads it."""
  found: dict[str, list[tuple[Reader, dataclasses.Field, Option]]] = {}
  for reader in READERS:
    for key, field, known in reader.fields():
      found.setdefault(key, []).append((reader, field, known))
  return found


@functools.cache
def _types(cls: Any) -> dict[str, Any]:
  return typing.get_type_hints(cls)


def type_of(reader: Reader, field: dataclasses.Field) -> type:
  """Returns the type that a key's values have, None aside."""
  hint = _types(reader.options)[field.name]
  if isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union:
    hint = next(part for part in typing.get_args(hint) if part is not type(None))
  return typing.get_origin(hint) or hint


def describe(key: str) -> str:
  """Returns what a key means, with its default and the values it takes, on one line."""
  _, field, known = keys()[key][0]
  accepted = f"; one of {', '.join(map(str, known.choices))}" if known.choices else ""
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
  """Whether `reader`, under a complete config, is made and reads an option of its."""
  return _holds(config, reader.section, reader.when) and any(_holds(config, reader.section, n) for n in known.needs)


def why_unread(config: ConfigDict, key: str) -> str | None:
  """Returns what would read the dotted `key`, or None where something in the complete `config` reads it."""
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
  """Returns {argument: dotted key} for messages about objects made of `section`, then of `others`."""
  names: dict[str, str] = {}
  for part in reversed((section, *others)):
    for reader in READERS:
      if reader.section == part:
        names |= {field.name: key for key, field, _ in reader.fields()}
  return names | {"steps": "sampling.num_steps", "num_scales": "model.num_scales", "t_start": "guidance.t0"}


def values_for(cls: Any, section: ConfigDict, but: Collection[str] = ()) -> dict[str, Any]:
  """Returns the values that `section` has for the options of the dataclass `cls`, by field, `but` some fields."""
  return {field.name: section[known.key or field.name] for field, known in options_of(cls) if field.name not in but}


def make(cls: Any, config: ConfigDict, section: str, **others: Any) -> Any:
  """Returns the dataclass `cls` with its options from `config`'s `section`, and its other fields as given.

  Raises:
    BadInput: for a value outside its range, and values that cannot work together.
  """
  with as_bad_input(names_of(section)):
    return cls(**values_for(cls, config[section], others), **others)


def check_ranges(config: ConfigDict) -> None:
  """Raises BadInput for the first value of a complete config that is outside the range of all that reads it."""
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
