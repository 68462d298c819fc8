"""Helpers for arrays whose first axis is the batch: broadcasting, sums per example, and one random key per example.

Every random number is drawn from the key of its example, `fold_in(key, global index)`. An example therefore gets the
same noise on one device, on eight devices, or on two hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int, Key

from score_sde.errors import InvalidArgument

Array = jax.Array

# Annotations with shapes. The tests check that a name such as B has one size within a call.
Batch = Float[Array, "B *dims"]  # examples
Keys = Key[Array, "B"]  # one per example
Time = Float[Array, "B"]  # one per example
PerExample = Float[Array, "B"]  # any other number per example
Index = Int[Array, "B"]  # the position of each example
Finite = Bool[Array, "B"]  # True for an example without NaN or infinity
Numbers = Float[Array, "*shape"]  # any shape
Measured = Float[Array, "B *measured"]  # measurements of examples
Probes = Float[Array, "P B *dims"]
Logits = Float[Array, "B classes"]
Weights = Float[Array, "K"]
Stack = Float[Array, "K B *dims"]  # one batch per weight

# Streams of a sample's key: one for the start from the prior, one for the steps.
PRIOR, STEPS = range(2)


def expand(a: Array | float, x: Array) -> Any:
  """Adds trailing axes of size one to `a` (B,), so that it broadcasts with `x` (B, ...). A scalar stays as it is."""
  return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a))) if jnp.ndim(a) else a


def example_keys(key: Array, index: Array) -> Array:
  """Returns keys (B,) = fold_in(key, index), one for each global index of an example in `index` (B,)."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def fold(keys: Keys, data: int | Array) -> Keys:
  """Folds the same number into each of the keys (B,): a new random stream per purpose or step, still per example."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
  """Draws standard normal noise like `x` (B, ...), the i-th example from the i-th key."""
  return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def uniform(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
  """Draws uniform [0, 1) noise like `x` (B, ...), the i-th example from the i-th key."""
  return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)


def sum_over_dims(x: Batch) -> PerExample:
  """Sums over all axes but the first: (B, ...) -> (B,)."""
  return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)


def norm(x: Batch) -> PerExample:
  """Returns the Euclidean norm of every example: (B, ...) -> (B,)."""
  return jnp.sqrt(sum_over_dims(x**2))


def as_key(key: Array) -> Array:
  """Checks that `key` is one random key and returns it. Wraps a raw uint32 array made by `jax.random.PRNGKey`.

  Raises:
    InvalidArgument: for anything else, such as an integer or several keys.
  """
  dtype, shape = getattr(key, "dtype", None), getattr(key, "shape", None)
  if dtype is not None and jnp.issubdtype(dtype, jax.dtypes.prng_key) and shape == ():
    return key
  if dtype == jnp.uint32 and shape is not None and len(shape) == 1:
    return jax.random.wrap_key_data(key)
  given = repr(key) if shape is None else f"an array of {dtype}{list(shape)}"
  raise InvalidArgument(f"key={given} must be one random key: use jax.random.key(0).", "key")
