"""Traces of Jacobians from derivatives along probes: tr J = E[vᵀ J v] for v of unit covariance.

Hutchinson 1990; Skilling 1989. One forward derivative gives the value and one product of the Jacobian with a probe.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import Array

# name: (key, shape, dtype) -> probes of unit covariance.
PROBES = {
  "rademacher": lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype),
  "gaussian": lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
}

# Up to this many probes run in an unrolled loop. XLA shares their common part, and batched products are four times
# slower on a CPU.
UNROLLED = 4


def value_and_jvps(f: Callable, x: Array, probes: Array) -> tuple[Any, Any]:
  """Returns (f(x), J v), where J v (P, ...) are the products of the Jacobian of f at x with the `probes` v (P, ...)."""
  if len(probes) <= UNROLLED:
    values, products = zip(*(jax.jvp(f, (x,), (v,)) for v in probes), strict=True)
    return values[0], jax.tree.map(lambda *p: jnp.stack(p), *products)
  value, derivative = jax.linearize(f, x)
  return value, jax.vmap(derivative)(probes)


def basis(x: Array, dims: int) -> Array:
  """Returns the `dims` unit vectors, (dims, *x.shape), of the last axes of `x`, which have `dims` entries together.

  The leading axes of `x` are a batch: each example gets the same vectors.
  """
  batch = x.size // dims
  return jnp.broadcast_to(jnp.eye(dims, dtype=x.dtype)[:, None], (dims, batch, dims)).reshape(dims, *x.shape)
