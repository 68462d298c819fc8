"""Config of a run: its keys, defaults that depend on other keys, and checks.

A config file returns `default_config()` with some values changed. Sections and keys have the names of the official
code, so its configs and overrides mean the same here. Some defaults depend on other keys (mostly on the SDE): these
keys are placeholders, and `resolve` fills those that were not set. The keys are derived from the fields of the objects
that read them (`readers`): each option field of a solver, a loss, an SDE or a network is a key of the config.
"""

from score_sde.run.config.errors import BadInput, as_bad_input, check_key, choose, get, unknown_key
from score_sde.run.config.keys import as_dict, default_config
from score_sde.run.config.readers import describe, keys, make, names_of, values_for, why_unread
from score_sde.run.config.resolve import resolve, signature
from score_sde.run.config.sdes import SDES, make_sde, sde_name
from score_sde.run.config.sections import (
  AUTOGUIDANCE,
  CLASS_METHODS,
  CONSTRAINTS,
  EDITING_TASKS,
  GIVEN_TASKS,
  LINEAR_TASKS,
  NONLINEAR_TASKS,
  SCORE_METHODS,
  distills_progressively,
  trains_paths,
)

__all__ = [
  "AUTOGUIDANCE",
  "CLASS_METHODS",
  "CONSTRAINTS",
  "EDITING_TASKS",
  "GIVEN_TASKS",
  "LINEAR_TASKS",
  "NONLINEAR_TASKS",
  "SCORE_METHODS",
  "SDES",
  "BadInput",
  "as_bad_input",
  "as_dict",
  "check_key",
  "choose",
  "default_config",
  "describe",
  "distills_progressively",
  "get",
  "keys",
  "make",
  "make_sde",
  "names_of",
  "resolve",
  "sde_name",
  "signature",
  "trains_paths",
  "unknown_key",
  "values_for",
  "why_unread",
]
