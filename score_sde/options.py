"""Options of an algorithm: dataclass fields with a description and a range.

    @dataclasses.dataclass(frozen=True)
    class Langevin(Options):
      snr: float = option(0.16, "ratio of noise to score in a step", "(0, inf)")

`Options` checks every value when an object is made. The runner takes the keys of its configs, their documentation and
the error "nothing reads this key" from the same fields. A new option is therefore one line in one file.
"""

import dataclasses
import math
import numbers
from collections.abc import Iterator, Mapping
from typing import Any

from score_sde.errors import InvalidArgument, unknown


class Other(tuple[Any, ...]):
  """Matches, in `Option.needs`, every value except these."""


Needs = Mapping[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Option:
  """Description and limits of an option.

  Attributes:
    doc: its meaning and unit, in one line.
    span: the interval of accepted numbers, such as "(0, 1]"; "" for no limit.
    choices: the accepted values; functions are always accepted. () accepts any value of the type.
    needs: the condition under which the option is read, as {name of another option: its values}. All entries must hold.
      () means any true value. A tuple of such mappings means alternatives.
    key: the name in a config, if another option of the same section already has this name; "" for the same name.
  """

  doc: str
  span: str = ""
  choices: tuple[Any, ...] = ()
  needs: tuple[Needs, ...] = ({},)
  key: str = ""


def option(
  default: Any,
  doc: str,
  span: str = "",
  *,
  choices: tuple[Any, ...] = (),
  needs: Needs | tuple[Needs, ...] = (),
  key: str = "",
) -> Any:
  """Returns a dataclass field with this `default`, which carries an `Option` made of the other arguments."""
  alternatives = needs if isinstance(needs, tuple) else (needs,)
  return dataclasses.field(default=default, metadata={"option": Option(doc, span, choices, alternatives or ({},), key)})


def options_of(cls: Any) -> Iterator[tuple[dataclasses.Field, Option]]:
  """Yields the fields of a dataclass that are options and can be set, each with its `Option`."""
  for field in dataclasses.fields(cls):
    if field.init and "option" in field.metadata:
      yield field, field.metadata["option"]


def check_value(name: str, value: Any, known: Option) -> None:
  """Raises InvalidArgument unless `value` is accepted for the option `name`. None means "unset" and is accepted."""
  if value is None:
    return
  if known.choices and not callable(value) and value not in known.choices:
    raise unknown(name, value, known.choices)
  if known.span and not _within(value, known.span):
    raise InvalidArgument(f"{name}={value!r} must {_in_words(known.span)}.", name)


def _within(value: Any, span: str) -> bool:
  if isinstance(value, tuple | list):
    return bool(value) and all(_within(part, span) for part in value)
  if isinstance(value, bool) or not isinstance(value, numbers.Real):
    return False
  low, high = (float(part) for part in span[1:-1].split(","))
  value = float(value)
  if not math.isfinite(value) and not (value == high and span[-1] == "]"):
    return False
  return (low <= value if span[0] == "[" else low < value) and (value <= high if span[-1] == "]" else value < high)


def _in_words(span: str) -> str:
  words = {"(0, inf)": "be positive", "[0, inf)": "not be negative", "[1, inf)": "be at least 1"}
  return words.get(span, f"lie in {span}")


@dataclasses.dataclass(frozen=True)
class Options:
  """Base of frozen dataclasses whose fields are options: checks each value against its range.

  Raises:
    InvalidArgument: for a value outside its range or its choices.
  """

  def __post_init__(self) -> None:
    for field, known in options_of(self):
      check_value(field.name, getattr(self, field.name), known)


def check_interval(options: Any, low: str, high: str) -> None:
  """Raises InvalidArgument unless the field `low` of `options` is smaller than the field `high`."""
  if not getattr(options, low) < getattr(options, high):
    raise InvalidArgument(
      f"{low}={getattr(options, low)} and {high}={getattr(options, high)} must satisfy {low} < {high}.", low, high
    )
