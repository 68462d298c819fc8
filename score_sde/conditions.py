"""Conditions y of a score: classes, and vectors or images that belong to the examples.

A score takes them as one argument y: classes (B,), or a mapping with "label" (B,), "condition" (B, ...) and "augment"
(B, 9), how training examples were changed (see `augmentation`). A missing entry, a negative label and a condition with
NaN all mean "not given", and y = None means that nothing is given.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import Array


def part_of(y: Any, name: str) -> Array | None:
  """Returns the part `name` of y, "label", "condition" or "augment"; None if it is not given."""
  if isinstance(y, Mapping):
    return y.get(name)
  return y if name == "label" else None


def nothing_like(y: Any) -> Any:
  """Returns y with every part marked as not given: labels -1, conditions NaN."""
  missing = lambda a: jnp.full_like(a, -1 if jnp.issubdtype(a.dtype, jnp.integer) else jnp.nan)
  return jax.tree.map(missing, y)
