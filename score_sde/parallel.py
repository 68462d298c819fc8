"""Devices and hosts: the only file that knows there is more than one.

A function of the library works on a batch (B, ...). `map_batch` runs it on all local devices, each on its share of the
batch in the form (devices, B / devices, ...) that `shard` makes; `mean` averages over the whole batch from within.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

AXIS = "batch"
Tree = Any


def device_count() -> int:
  """Devices of this host."""
  return jax.local_device_count()


def host_index() -> int:
  return jax.process_index()


def host_count() -> int:
  return jax.process_count()


def is_first_host() -> bool:
  """Whether this host writes the logs, pictures and reports."""
  return jax.process_index() == 0


def on_cpu() -> bool:
  return jax.default_backend() == "cpu"


def describe() -> str:
  """E.g. '8 cpu devices on 1 host'."""
  devices = jax.local_devices()
  total, hosts = jax.device_count(), jax.process_count()
  return f"{total} {devices[0].platform} device{'s' * (total > 1)} on {hosts} host{'s' * (hosts > 1)}"


def check_batch_size(key: str, size: int) -> None:
  """Raises ValueError unless the global batch `size`, set by the config's `key`, divides among all devices."""
  total = jax.device_count()
  if size < 1 or size % total:
    nearest = max(total, round(size / total) * total)
    raise ValueError(
      f"{key}={size} does not divide among {describe()}: it must be a positive multiple of {total}. "
      f"Try --config.{key}={nearest}."
    )


def map_batch(
  fn: Callable,
  in_axes: tuple[int | None, ...],
  *,
  out_axes: Any = 0,
  donate: tuple[int, ...] = (),
  everywhere: bool = False,
) -> Callable:
  """`fn` on all devices of this host: arguments with axis 0 come sharded, those with axis None are the same on each.

  With `everywhere` the devices of all hosts work together, and `mean` is over all of them: each host calls it at the
  same time, with its own share of the batch. `donate` names arguments whose buffers are given up; those with axis None
  only all together.
  """
  shared = [i for i, axis in enumerate(in_axes) if axis is None]
  mapped = [i for i, axis in enumerate(in_axes) if axis is not None]

  def packed(first: tuple, *rest: Tree) -> Tree:
    arguments = dict(zip(shared, first[1:], strict=True)) | dict(zip(mapped, rest, strict=True))
    return fn(*(arguments[i] for i in range(len(in_axes))))

  positions = [1 + mapped.index(i) for i in donate if i in mapped] + [0] * bool(shared and set(shared) <= set(donate))
  axes = (None, *(in_axes[i] for i in mapped))
  devices = jax.local_devices() if host_count() > 1 and not everywhere else None
  run = jax.pmap(
    packed, axis_name=AXIS, in_axes=axes, out_axes=out_axes, donate_argnums=tuple(positions), devices=devices
  )

  def call(*arguments: Tree) -> Tree:
    # pmap loses count of the axes where an argument has no leaves, as a score without parameters: a zero goes ahead.
    return run((np.zeros(()), *(arguments[i] for i in shared)), *(arguments[i] for i in mapped))

  return call


def run_once(fn: Callable[..., Tree], *args: Tree) -> Tree:
  """fn(*args), compiled without the passes that only pay off in a second call (a third of the time on CPU)."""
  options = {"xla_backend_optimization_level": 0} if on_cpu() else None
  return jax.jit(fn).lower(*args).compile(compiler_options=options)(*args)


def wait_for_all(name: str) -> None:
  """Returns once every host has come here."""
  if host_count() > 1:
    multihost_utils.sync_global_devices(name)


def mean(x: Tree) -> Tree:
  """Mean over all devices of equal shares of a batch; for use inside a mapped function."""
  return jax.lax.pmean(x, AXIS)


def batch_mean(x: jax.Array) -> jax.Array:
  """Mean of per-example numbers over the whole batch; for use inside a mapped function."""
  return jax.lax.pmean(jnp.mean(x), AXIS)


def shard(tree: Tree, axis: int = 0) -> Tree:
  """Splits `axis`, a batch of this host, into (devices, batch / devices) and moves the devices in front.

  A batch that does not divide is filled up with copies of its last example; `unshard` with its size drops them.
  """
  n = device_count()

  def split(x):
    missing = -x.shape[axis] % n
    xp = np if isinstance(x, np.ndarray) else jnp
    if missing:
      x = xp.concatenate([x, xp.repeat(xp.take(x, xp.array([-1]), axis=axis), missing, axis=axis)], axis=axis)
    x = x.reshape(*x.shape[:axis], n, x.shape[axis] // n, *x.shape[axis + 1 :])
    return xp.moveaxis(x, axis, 0)

  return jax.tree.map(split, tree)


def on_this_host(abstract: Tree) -> Tree:
  """Abstract arrays, placed on this host's first device: what a checkpoint is restored to, whoever wrote it."""
  place = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract)


def unshard(tree: Tree, size: int) -> Tree:
  """The first `size` examples of sharded arrays, as (size, ...)."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)
