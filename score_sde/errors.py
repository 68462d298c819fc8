"""The exceptions of the library. All have one base, so that a caller can catch them together."""

import difflib
from collections.abc import Iterable
from typing import Any


class ScoreSDEError(Exception):
  """Base of every exception that this library defines."""


class InvalidArgument(ScoreSDEError, ValueError):
  """Invalid value of an argument. The message names the argument, the value, what is accepted and what to do.

  `names` are the arguments that the message mentions in the form `name=value`. A program with other names for them,
  such as the keys of a config, replaces them by `renamed`.

  Example:
    >>> str(InvalidArgument("eps=2 must lie in (0, 1).", "eps").renamed({"eps": "sampling.eps"}))
    'sampling.eps=2 must lie in (0, 1).'
  """

  def __init__(self, message: str, *names: str):
    super().__init__(message)
    self.names = names

  def renamed(self, names: dict[str, str]) -> "InvalidArgument":
    """Returns the same error with every mention `name=` of an argument replaced by `names[name]=`."""
    message = str(self)
    for name in self.names:
      if name in names:
        message = message.replace(f"{name}=", f"{names[name]}=")
    return InvalidArgument(message, *(names.get(name, name) for name in self.names))


def unknown(name: str, value: Any, accepted: Iterable[Any]) -> InvalidArgument:
  """Returns the error for a `value` of the argument `name` that is not among the `accepted` ones.

  Example:
    >>> str(unknown("grid", "log_snt", ("uniform", "log_snr")))
    "grid='log_snt' is unknown; choose one of uniform, log_snr. Did you mean 'log_snr'?"
  """
  accepted = list(map(str, accepted))
  near = difflib.get_close_matches(str(value), accepted, n=1, cutoff=0.5)
  hint = f" Did you mean {near[0]!r}?" if near else ""
  return InvalidArgument(f"{name}={value!r} is unknown; choose one of {', '.join(accepted)}.{hint}", name)
