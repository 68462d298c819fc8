"""Traces of Jacobians from derivatives along probes: tr J = E[vᵀ J v] for v of unit covariance.

Hutchinson 1990; Skilling 1989. One forward derivative gives the value and one product with the Jacobian.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.batch import Array

# name: (key, shape, dtype) -> probes of unit covariance.
PROBES = {
  "rademacher": lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype),
  "gaussian": lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
}

# Up to this many probes are written one after the other: XLA shares their common part, and its batched products are
# four times slower on a CPU.
UNROLLED = 4


def along(f: Callable, x: Array, probes: Array) -> tuple[Array, Array]:
  """(f(x), products (P, ...) of the Jacobian of f at x with `probes` (P, ...)), in one pass."""
  if len(probes) <= UNROLLED:
    values, products = zip(*(jax.jvp(f, (x,), (v,)) for v in probes), strict=True)
    return values[0], jax.tree.map(lambda *p: jnp.stack(p), *products)
  value, derivative = jax.linearize(f, x)
  return value, jax.vmap(derivative)(probes)


def basis(x: Array, dims: int) -> Array:
  """The `dims` unit vectors of the last axes of `x`, that many entries together: (dims, *x.shape)."""
  batch = x.size // dims
  return jnp.broadcast_to(jnp.eye(dims, dtype=x.dtype)[:, None], (dims, batch, dims)).reshape(dims, *x.shape)
