"""Every setting of a run: the keys there are, what follows from what, and what cannot work.

A config file returns `default_config()` with what differs. Section and key names are those of the official code, so its
configs and overrides mean the same here. Keys that follow from others (from the SDE, mostly) are placeholders until
`resolve` fills those that were not set. The keys themselves follow from the fields of the objects that read them
(`readers`): an option of a solver, a loss, an SDE or a network is a key of the config because it is a field.
"""

from score_sde.run.config.errors import BadInput, as_bad_input, choose, get, unknown_key
from score_sde.run.config.keys import as_dict, default_config
from score_sde.run.config.readers import describe, keys, make, names_of, values_for, why_unread
from score_sde.run.config.resolve import resolve, signature
from score_sde.run.config.sdes import SDES, make_sde, sde_name
from score_sde.run.config.sections import (
  CLASS_METHODS,
  CONSTRAINTS,
  EDITING_TASKS,
  LINEAR_TASKS,
  NONLINEAR_TASKS,
  SCORE_METHODS,
)

__all__ = [
  "CLASS_METHODS",
  "CONSTRAINTS",
  "EDITING_TASKS",
  "LINEAR_TASKS",
  "NONLINEAR_TASKS",
  "SCORE_METHODS",
  "SDES",
  "BadInput",
  "as_bad_input",
  "as_dict",
  "choose",
  "default_config",
  "describe",
  "get",
  "keys",
  "make",
  "make_sde",
  "names_of",
  "resolve",
  "sde_name",
  "signature",
  "unknown_key",
  "values_for",
  "why_unread",
]
