"""Every setting of a run: the keys there are, what follows from what, and what cannot work.

A config file returns `default_config()` with what differs. Section and key names are those of the official code, so its
configs and overrides mean the same here. Keys that follow from others (from the SDE, mostly) are placeholders until
`resolve` fills those that were not set.
"""

from score_sde.run.config.checks import (
  CLASS_METHODS,
  CONSTRAINTS,
  EDITING_TASKS,
  LINEAR_TASKS,
  NONLINEAR_TASKS,
  SCORE_METHODS,
)
from score_sde.run.config.keys import BadInput, as_bad_input, as_dict, choose, default_config, get, unknown_key
from score_sde.run.config.reads import why_unread
from score_sde.run.config.resolve import resolve, signature
from score_sde.run.config.sdes import SDES, make_sde, sde_name

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
  "get",
  "make_sde",
  "resolve",
  "sde_name",
  "signature",
  "unknown_key",
  "why_unread",
]
