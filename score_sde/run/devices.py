"""Devices and hosts: the only file that knows there is more than one.

A function of the library works on a batch (B, ...). `map_batch` runs it on all devices of this host, or of all hosts,
each on its share of the batch in the form (devices, B / devices, ...) that `shard` makes; `mean` averages over the
whole batch from within. Between hosts it is JAX's own runtime that works (`jax.distributed`); arrays that all of them
hold are global ones: `replicate` makes them, `local` takes this host's copy.
"""

import contextlib
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from score_sde.errors import InvalidArgument, ScoreSDEError

AXIS = "batch"
# The two axes of a mesh with sharded parameters: both split the batch, the second also the parameters.
DATA, FSDP = "data", "fsdp"
# Arrays below this size are not worth a collective: every device has all of them.
SMALLEST_SHARDED = 2**12
Tree = Any


class HostsError(ScoreSDEError, RuntimeError):
  """The hosts of a run do not come together, or one of them is gone."""


def connect(coordinator: str | None, hosts: int | None, index: int | None, timeout: int) -> None:
  """Joins this process to a run of several hosts, before anything else of JAX is used.

  Args:
    coordinator: HOST:PORT of the first host, where it listens; None finds all three on a TPU pod, under SLURM, Open MPI
      or Kubernetes.
    hosts: processes in all.
    index: of this one, from 0.
    timeout: seconds after which a host that does not come, or answers no more, counts as lost.

  Raises:
    HostsError: where the others do not come in time, or nothing tells who they are.
  """
  who = (
    f"{hosts} hosts at {coordinator}, this one {index}" if coordinator else "the hosts that JAX was to find by itself"
  )

  def give_up() -> None:
    print(f"Cannot join {who}: not all came within --host_timeout={timeout} s. Start all of them.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)

  jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from `progress.stops_on_signal`
  watch = threading.Timer(timeout, give_up)  # JAX's own end of waiting is an abort with a dump of its stack
  watch.start()
  try:
    jax.distributed.initialize(
      coordinator, hosts, index, _visible_devices(listed=coordinator is not None),
      initialization_timeout=timeout + 60, heartbeat_timeout_seconds=timeout, shutdown_timeout_seconds=timeout,
    )  # fmt: skip
  except (RuntimeError, ValueError) as error:
    raise HostsError(f"Cannot join {who}: {str(error).splitlines()[0]}") from error
  finally:
    watch.cancel()


def _visible_devices(listed: bool) -> list[int] | None:
  """JAX's `local_device_ids`: [] for all that this process sees, None to leave it to JAX.

  Of a process that SLURM or Open MPI started, JAX uses the one GPU that has the process's number on its machine. That
  is right for several processes on a machine that see all of its GPUs, and for no others (jax-ml/jax#16788).
  """
  given = os.environ
  if "JAX_LOCAL_DEVICE_IDS" in given:
    return None
  alone = given.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (
    "SLURM_STEP_NUM_NODES" in given and given["SLURM_STEP_NUM_NODES"] == given.get("SLURM_NTASKS")
  )
  bound = "," not in given.get("CUDA_VISIBLE_DEVICES", given.get("ROCR_VISIBLE_DEVICES", ","))  # to a GPU of its own
  return [] if listed or alone or bound else None


def is_connected() -> bool:
  """Whether this process has joined others."""
  return jax.distributed.is_initialized()


@contextlib.contextmanager
def hosts_lost() -> Iterator[None]:
  """Turns what JAX raises where another host has died into HostsError."""
  try:
    yield
  except RuntimeError as error:  # JAX's, or orbax's around it
    of_hosts = isinstance(error, jax.errors.JaxRuntimeError) or "barrier" in str(error).lower()
    if host_count() == 1 or not of_hosts or "RESOURCE_EXHAUSTED" in str(error):  # as of a device's memory
      raise
    raise HostsError(
      f"Host {host_index()} of {host_count()} has lost another one: {str(error).splitlines()[0]}. The same commands on "
      "all hosts resume at the newest checkpoint."
    ) from error


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


def check_batch_size(key: str, size: int, parts: int = 1) -> None:
  """Raises InvalidArgument unless the global batch `size`, the config's `key`, divides into `parts` on each device."""
  total = jax.device_count() * parts
  if size < 1 or size % total:
    nearest = max(total, round(size / total) * total)
    accumulated = f" in training.accumulation={parts} parts" if parts > 1 else ""
    raise InvalidArgument(
      f"{key}={size} does not divide among {describe()}{accumulated}: it must be a positive multiple of {total}. "
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
  if everywhere and host_count() > 1:
    return _map_over_hosts(packed, shared, mapped, out_axes, tuple(positions))
  devices = jax.local_devices() if host_count() > 1 else None
  run = jax.pmap(
    packed, axis_name=AXIS, in_axes=axes, out_axes=out_axes, donate_argnums=tuple(positions), devices=devices
  )

  def call(*arguments: Tree) -> Tree:
    # pmap loses count of the axes where an argument has no leaves, as a score without parameters: a zero goes ahead.
    return run((np.zeros(()), *(arguments[i] for i in shared)), *(arguments[i] for i in mapped))

  return call


def over_devices(fn: Callable, shared: int = 1) -> Callable:
  """Returns `fn` over all devices of this host: (`shared` trees, the same for all, and batches (B, ...)) -> (B, ...).

  `fn` is a pure function of a batch. Each device gets its share; a batch that does not divide is filled up, and what
  the filling gives is dropped. Plain functions among the shared trees are static, as a score without parameters is.
  """
  compiled: dict[int, Callable] = {}

  def call(*arguments: Tree) -> Tree:
    n = len(arguments)
    if n not in compiled:
      compiled[n] = map_batch(fn, (*(None for _ in range(shared)), *(0 for _ in range(n - shared))))
    same = (jax.tree_util.Partial(a) if callable(a) and not isinstance(a, jax.tree_util.Partial) else a
            for a in arguments[:shared])  # fmt: skip
    batches = arguments[shared:]
    size = jax.tree.leaves(batches)[0].shape[0]
    return unshard(compiled[n](*same, *(shard(b) for b in batches)), size)

  return call


def _map_over_hosts(packed: Callable, shared: list[int], mapped: list[int], out_axes: Any, donated: tuple[int, ...]):
  """`map_batch` over the devices of all hosts: pmap's own form of it does not keep donated arguments alive."""
  mesh = _mesh()

  def on_device(first: tuple, *rest: Tree) -> Tree:
    out = packed(first, *jax.tree.map(lambda x: x[0], rest))
    return out if out_axes is None else jax.tree.map(lambda x: x[None], out)

  specs = (P(), *(P(AXIS) for _ in mapped))
  out_specs = P() if out_axes is None else P(AXIS)
  over_mesh = jax.shard_map(on_device, mesh=mesh, in_specs=specs, out_specs=out_specs, check_vma=False)
  run = jax.jit(over_mesh, donate_argnums=donated)
  share = lambda x: jax.make_array_from_process_local_data(NamedSharding(mesh, P(AXIS)), np.asarray(x))

  def call(*arguments: Tree) -> Tree:
    first = replicate((np.zeros(()), *(arguments[i] for i in shared)))
    return run(first, *(jax.tree.map(share, arguments[i]) for i in mapped))

  return call


def _mesh() -> Mesh:
  """All devices of all hosts in a row."""
  return Mesh(np.array(jax.devices()), (AXIS,))


def replicate(tree: Tree) -> Tree:
  """The same arrays on all devices of all hosts, as global ones; on a single host, `tree` itself."""
  if host_count() == 1:
    return tree
  everywhere = NamedSharding(_mesh(), P())

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.jit(jax.random.wrap_key_data, out_shardings=everywhere)(one(jax.random.key_data(x)))
    return jax.make_array_from_process_local_data(everywhere, np.asarray(x))

  return jax.tree.map(one, tree)


def local(tree: Tree) -> Tree:
  """This host's copy of arrays that are spread over devices or hosts; what each of its devices has stays as it is."""

  def one(x):
    if not isinstance(x, jax.Array) or (x.is_fully_addressable and x.is_fully_replicated):
      return x
    if not x.is_fully_replicated:
      sharding = cast(NamedSharding, x.sharding)
      x = jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, P()))(x)
    return x.addressable_data(0)

  return jax.tree.map(one, tree)


def run_once(fn: Callable[..., Tree], *args: Tree) -> Tree:
  """fn(*args), compiled without the passes that only pay off in a second call (a third of the time on CPU)."""
  options: Any = {"xla_backend_optimization_level": 0} if on_cpu() else None
  return jax.jit(fn).lower(*args).compile(compiler_options=options)(*args)


def wait_for_all(name: str) -> None:
  """Returns once every host has come here."""
  if host_count() > 1:
    multihost_utils.sync_global_devices(name)


# --- sharded parameters -----------------------------------------------------------------------------------------------


def fsdp_mesh(size: int) -> Mesh:
  """All devices of all hosts, as (data, fsdp): parameters are split among `size` devices next to each other.

  Raises:
    InvalidArgument: where `size` does not divide the number of devices.
  """
  total = jax.device_count()
  size = size or total
  if total % size:
    raise InvalidArgument(f"training.fsdp_devices={size} does not divide {describe()}. Give a divisor of {total}.")
  return Mesh(np.array(jax.devices()).reshape(total // size, size), (DATA, FSDP))


def _spec(x: Any, size: int) -> P:
  """How an array is split among `size` devices: along its longest axis that they divide."""
  axes = [i for i, n in enumerate(x.shape) if n % size == 0 and size > 1]
  if not axes or math.prod(x.shape) < SMALLEST_SHARDED or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return P()
  longest = max(axes, key=lambda i: x.shape[i])
  return P(*(FSDP if i == longest else None for i in range(longest + 1)))


def shardings(abstract: Tree, mesh: Mesh) -> Tree:
  """Where each array of a tree, such as a training state, lives on an `fsdp_mesh`."""
  return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x, mesh.shape[FSDP])), abstract)


def over_shards(value_and_grad: Callable[[Callable], Callable[..., tuple[jax.Array, Tree]]], mesh: Mesh):
  """(params, batch, *same) -> (value, gradient) where parameters and gradient are split as `shardings` says.

  `value_and_grad(change)` is the function of a device's share of the batch: (params, batch, *same) -> the value and
  gradient of its objective as `change` makes it. The changed objective takes split parameters, gathers each where it
  is used, keeps none of them for the backward pass but gathers again, and has a gradient that a reduce-scatter splits.
  Zhao et al. 2023 (FSDP).
  """
  size = mesh.shape[FSDP]

  def whole(x: jax.Array, spec: P) -> jax.Array:
    return jax.lax.all_gather(x, FSDP, axis=spec.index(FSDP), tiled=True) if FSDP in spec else x

  def averaged(g: jax.Array, spec: P) -> jax.Array:
    # The gradient of a gathered array is summed over the devices that it is split among.
    return jax.lax.pmean(g / size, DATA) if FSDP in spec else jax.lax.pmean(g, (DATA, FSDP))

  def call(params: Tree, batch: Tree, *same: Any) -> tuple[jax.Array, Tree]:
    specs = jax.tree.map(lambda x: _spec(x, size), params)
    shapes = {x.shape for x in jax.tree.leaves(params)}

    def kept(primitive: Any, *inputs: Any, **_: Any) -> bool:
      """Whether the backward pass has it: not what is gathered, and not the copy of that in half precision."""
      copy = primitive.name == "convert_element_type" and inputs[0].shape in shapes
      return not (copy or primitive.name.startswith("all_gather"))

    def gathering(objective: Callable) -> Callable:
      gathered = lambda params, *args: objective(jax.tree.map(whole, params, specs), *args)
      return jax.checkpoint(gathered, policy=kept)

    def on_device(params: Tree, batch: Tree, *same: Any) -> tuple[jax.Array, Tree]:
      value, gradient = value_and_grad(gathering)(params, batch, *same)
      return jax.lax.pmean(value, (DATA, FSDP)), jax.tree.map(averaged, gradient, specs)

    run = jax.shard_map(
      on_device, mesh=mesh, in_specs=(specs, P((DATA, FSDP)), *(P() for _ in same)), out_specs=(P(), specs),
      check_vma=False,
    )  # fmt: skip
    return run(params, batch, *same)

  return call


def on_mesh(fn: Callable, mesh: Mesh, state: Tree) -> Callable[[Tree, Tree], tuple[Tree, Tree]]:
  """`fn(state, batches) -> (state, metrics)`, compiled for a state that stays split as `shardings` of `state` says.

  `batches` are this host's share, (steps, b, ...); the state's buffers are given up for the new one's.
  """
  place, everywhere = shardings(state, mesh), NamedSharding(mesh, P())
  split = NamedSharding(mesh, P(None, (DATA, FSDP)))
  run = jax.jit(fn, in_shardings=(place, split), out_shardings=(place, everywhere), donate_argnums=0)
  share = lambda x: jax.make_array_from_process_local_data(split, np.asarray(x))
  return lambda state, batches: run(state, jax.tree.map(share, batches))


# --- collectives ------------------------------------------------------------------------------------------------------


def any_host(flag: bool) -> bool:
  """Whether `flag` is set on any host; all call it together."""
  if host_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


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
    xp: Any = np if isinstance(x, np.ndarray) else jnp
    if missing:
      x = xp.concatenate([x, xp.repeat(xp.take(x, xp.array([-1]), axis=axis), missing, axis=axis)], axis=axis)
    x = x.reshape(*x.shape[:axis], n, x.shape[axis] // n, *x.shape[axis + 1 :])
    return xp.moveaxis(x, axis, 0)

  return jax.tree.map(split, tree)


def placed(abstract: Tree, mesh: Mesh | None = None) -> Tree:
  """Abstract arrays with the place that a checkpoint is restored to, whoever wrote it.

  That is split over an `fsdp_mesh`, where one is given; else this host's first device, or all devices of all hosts.
  """
  if mesh is not None:
    split = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.tree.map(split, abstract, shardings(abstract, mesh))
  single = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  place = single if host_count() == 1 else NamedSharding(_mesh(), P())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract)


def unshard(tree: Tree, size: int) -> Tree:
  """The first `size` examples of sharded arrays, as (size, ...)."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)
