"""What treats the first axis as the batch: broadcasting over it, and one random key per example.

Every random number of the library is drawn from a key of its own example, `fold_in(key, global index)`, so that the
same example sees the same noise on one device, on eight, or on two hosts.
"""

from typing import Any

import jax
import jax.numpy as jnp

from score_sde.errors import InvalidArgument

Array = jax.Array

# Streams of a sample's key: what it starts from, and its steps.
PRIOR, STEPS = range(2)


def expand(a: Array | float, x: Array) -> Any:
  """`a` of shape (B,) (or a scalar), with trailing axes of size one so that it multiplies `x` of shape (B, ...)."""
  return jnp.reshape(a, jnp.shape(a) + (1,) * (x.ndim - jnp.ndim(a))) if jnp.ndim(a) else a


def example_keys(key: Array, index: Array) -> Array:
  """Keys (B,) = fold_in(key, index): one for each global index of an example in `index` (B,)."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def fold(keys: Array, data: int | Array) -> Array:
  """fold_in of the same number into each of the keys (B,): a fresh stream per purpose or step, still per example."""
  return jax.vmap(jax.random.fold_in, in_axes=(0, None))(keys, data)


def normal(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
  """Standard normal noise like `x` (B, ...), the i-th example from the i-th key."""
  return jax.vmap(lambda key: jax.random.normal(key, x.shape[1:], x.dtype))(keys)


def uniform(keys: Array, x: Array | jax.ShapeDtypeStruct) -> Array:
  """Uniform [0, 1) noise like `x` (B, ...), the i-th example from the i-th key."""
  return jax.vmap(lambda key: jax.random.uniform(key, x.shape[1:], x.dtype))(keys)


def sum_over_dims(x: Array) -> Array:
  """Sum over all axes but the first: (B, ...) -> (B,)."""
  return jnp.sum(x.reshape(x.shape[0], -1), axis=-1)


def norm(x: Array) -> Array:
  """Euclidean norm of every example: (B, ...) -> (B,)."""
  return jnp.sqrt(sum_over_dims(x**2))


def as_key(key: Array) -> Array:
  """Returns one random key, also for the raw uint32 array that `jax.random.PRNGKey` makes.

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
