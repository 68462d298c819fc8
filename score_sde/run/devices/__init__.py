"""Devices and hosts: all code of the library that deals with more than one of them.

Other functions work on one batch (B, ...). `shard` splits a batch into (devices, B / devices, ...). `map_batch` runs a
function on all devices of this host or of all hosts, each on its share. `mean`, called inside, averages over the whole
batch. Hosts communicate through JAX's own runtime (`jax.distributed`) and share global arrays: `replicate` makes them,
`local` returns this host's copy.
"""

import contextlib
import contextvars
import functools
import math
import os
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from score_sde.errors import InvalidArgument, ScoreSDEError
from score_sde.run.devices.programs import named

AXIS = "batch"
# Devices of another machine that a run is planned for, see `planned`; empty for the devices that JAX has.
_planned: contextvars.ContextVar[tuple[Any, ...]] = contextvars.ContextVar("planned", default=())
# The two axes of a mesh with sharded parameters: both split the batch, the second also the parameters.
DATA, FSDP = "data", "fsdp"
# Smaller arrays are not worth a collective: every device holds a full copy.
SMALLEST_SHARDED = 2**12  # at least packing.SMALL, so that what is packed is not split
Tree = Any


class HostsError(ScoreSDEError, RuntimeError):
  """Error: the hosts of a run cannot connect, or one of them is lost."""


def connect(coordinator: str | None, hosts: int | None, index: int | None, timeout: int) -> None:
  """Joins this process to a run of several hosts. Must be called before any other use of JAX.

  Args:
    coordinator: HOST:PORT at which the first host listens. None (also for `hosts` and `index`) lets JAX find all three
      on a TPU pod, under SLURM, Open MPI or Kubernetes.
    hosts: total number of processes.
    index: index of this process, from 0.
    timeout: seconds after which a host that does not join or no longer answers counts as lost.

  Raises:
    HostsError: if JAX cannot connect the hosts or cannot find out who they are.
  """
  who = f"{hosts} hosts at {coordinator}, this one {index}" if coordinator else "the hosts that JAX searched by itself"

  def give_up() -> None:
    print(f"Cannot join {who}: not all came within --host_timeout={timeout} s. Start all of them.", file=sys.stderr)
    sys.stderr.flush()
    os._exit(1)

  # The service would take over SIGTERM, which `progress.stops_on_signal` handles.
  jax.config.update("jax_enable_preemption_service", False)
  watch = threading.Timer(timeout, give_up)  # JAX's own timeout aborts the process and dumps its stack
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
  """Returns JAX's `local_device_ids`: [] for all devices that this process sees, None to leave the choice to JAX.

  In a process that SLURM or Open MPI started, JAX uses only the GPU whose number is the process's rank on its machine.
  That is right only if several processes run on a machine and each sees all of its GPUs (jax-ml/jax#16788).
  """
  given = os.environ
  if "JAX_LOCAL_DEVICE_IDS" in given:
    return None
  alone = given.get("OMPI_COMM_WORLD_LOCAL_SIZE") == "1" or (
    "SLURM_STEP_NUM_NODES" in given and given["SLURM_STEP_NUM_NODES"] == given.get("SLURM_NTASKS")
  )
  # The process sees a single GPU, which is its own.
  bound = "," not in given.get("CUDA_VISIBLE_DEVICES", given.get("ROCR_VISIBLE_DEVICES", ","))
  return [] if listed or alone or bound else None


def is_connected() -> bool:
  """Returns whether this process has joined a run of several hosts."""
  return jax.distributed.is_initialized()


@contextlib.contextmanager
def hosts_lost() -> Iterator[None]:
  """Converts the errors that JAX raises after another host has died to HostsError."""
  try:
    yield
  except RuntimeError as error:  # raised by JAX, or by orbax because of JAX
    of_hosts = isinstance(error, jax.errors.JaxRuntimeError) or "barrier" in str(error).lower()
    if host_count() == 1 or not of_hosts or "RESOURCE_EXHAUSTED" in str(error):  # e.g. a device is out of memory
      raise
    raise HostsError(
      f"Host {host_index()} of {host_count()} has lost another one: {str(error).splitlines()[0]}. The same commands on "
      "all hosts resume at the newest checkpoint."
    ) from error


@contextlib.contextmanager
def planned(devices: Sequence[Any]) -> Iterator[None]:
  """Makes all functions here answer for other `devices`, one host's, within the context. Nothing can run there.

  Programs are built as on those devices, and `lower` compiles them.
  """
  token = _planned.set(tuple(devices))
  try:
    yield
  finally:
    _planned.reset(token)


def _devices() -> Sequence[Any]:
  """Returns the devices of all hosts."""
  return _planned.get() or jax.devices()


def device_count() -> int:
  """Returns the number of devices of this host."""
  return len(_planned.get()) or jax.local_device_count()


def host_index() -> int:
  return jax.process_index()


def host_count() -> int:
  return jax.process_count()


def is_first_host() -> bool:
  """Returns whether this is the host that writes the logs, pictures and reports."""
  return jax.process_index() == 0


def on_cpu() -> bool:
  return _devices()[0].platform == "cpu"


def total_count() -> int:
  """Returns the number of devices of all hosts."""
  return len(_devices())


def describe() -> str:
  """Returns the number of devices and hosts in words, e.g. '8 cpu devices on 1 host'."""
  total, hosts = total_count(), host_count()
  return f"{total} {_devices()[0].platform} device{'s' * (total > 1)} on {hosts} host{'s' * (hosts > 1)}"


def check_batch_size(key: str, size: int, parts: int = 1) -> None:
  """Raises InvalidArgument unless the global batch size divides by devices x `parts`. `key` is its config key."""
  total = total_count() * parts
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
  name: str = "",
) -> Callable:
  """Returns `fn`, mapped over all devices of this host. Every device gets a share of the batch.

  Args:
    fn: a function of a share of the batch.
    in_axes: 0 for an argument that is sharded (see `shard`), None for one that is the same on each device.
    out_axes: as of `jax.pmap`.
    donate: indices of arguments whose buffers are given up. Arguments with axis None are donated only if all are.
    everywhere: map over the devices of all hosts, also in `mean`. All hosts must call the result at the same time,
      each with its own share of the batch.
    name: what the user reads while the result is being compiled.
  """
  shared = [i for i, axis in enumerate(in_axes) if axis is None]
  mapped = [i for i, axis in enumerate(in_axes) if axis is not None]

  def packed(first: tuple, *rest: Tree) -> Tree:
    arguments = dict(zip(shared, first[1:], strict=True)) | dict(zip(mapped, rest, strict=True))
    return fn(*(arguments[i] for i in range(len(in_axes))))

  positions = [1 + mapped.index(i) for i in donate if i in mapped] + [0] * bool(shared and set(shared) <= set(donate))
  axes = (None, *(in_axes[i] for i in mapped))
  if everywhere and host_count() > 1:
    return named(name, _map_over_hosts(packed, shared, mapped, out_axes, tuple(positions)))
  devices = jax.local_devices() if host_count() > 1 else None
  run = jax.pmap(
    packed, axis_name=AXIS, in_axes=axes, out_axes=out_axes, donate_argnums=tuple(positions), devices=devices
  )

  def call(*arguments: Tree) -> Tree:
    # pmap miscounts the axes if an argument has no leaves, such as a score without parameters. A leading zero helps.
    return run((np.zeros(()), *(arguments[i] for i in shared)), *(arguments[i] for i in mapped))

  return named(name, call)


def over_devices(fn: Callable, shared: int = 1, name: str = "") -> Callable:
  """Returns `fn`, mapped over all devices of this host: (*shared trees, *batches (B, ...)) -> (B, ...).

  `fn` is a pure function of a batch. The first `shared` arguments are the same on all devices; each device gets a share
  of the others. A batch that does not divide is padded, and the results of the padding are dropped. Plain functions
  among the shared trees, such as a score without parameters, are static. `name` is as of `map_batch`.
  """
  compiled: dict[int, Callable] = {}

  def call(*arguments: Tree) -> Tree:
    n = len(arguments)
    if n not in compiled:
      compiled[n] = map_batch(fn, (*(None for _ in range(shared)), *(0 for _ in range(n - shared))), name=name)
    same = (jax.tree_util.Partial(a) if callable(a) and not isinstance(a, jax.tree_util.Partial) else a
            for a in arguments[:shared])  # fmt: skip
    batches = arguments[shared:]
    size = jax.tree.leaves(batches)[0].shape[0]
    return unshard(compiled[n](*same, *(shard(b) for b in batches)), size)

  return call


def _map_over_hosts(packed: Callable, shared: list[int], mapped: list[int], out_axes: Any, donated: tuple[int, ...]):
  """Does the work of `map_batch` over all hosts. (pmap over hosts does not keep donated arguments alive.)"""
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
  """Returns all devices of all hosts as a mesh of one axis."""
  return Mesh(np.array(_devices()), (AXIS,))


def replicate(tree: Tree) -> Tree:
  """Returns `tree` as global arrays, copied to all devices of all hosts.

  The copies have the sharding that `map_batch` gives its results, so that a function that is called again with its own
  result is not compiled again.
  """
  everywhere = NamedSharding(_mesh(), P())
  if host_count() == 1:
    return jax.device_put(tree, everywhere)

  def one(x):
    if isinstance(x, jax.Array) and not x.is_fully_addressable:
      return x
    if jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
      return jax.jit(jax.random.wrap_key_data, out_shardings=everywhere)(one(jax.random.key_data(x)))
    return jax.make_array_from_process_local_data(everywhere, np.asarray(x))

  return jax.tree.map(one, tree)


@functools.lru_cache(maxsize=8)
def _copy_to(sharding: NamedSharding) -> Callable[[jax.Array], jax.Array]:
  """Returns the function that copies an array to `sharding`, so that each shape compiles once."""
  return jax.jit(lambda x: x, out_shardings=sharding)


def local(tree: Tree) -> Tree:
  """Returns this host's copy of arrays that are spread over devices or hosts. Leaves other arrays as they are."""

  def one(x):
    if not isinstance(x, jax.Array) or (x.is_fully_addressable and x.is_fully_replicated):
      return x
    if not x.is_fully_replicated:
      sharding = cast(NamedSharding, x.sharding)
      x = _copy_to(NamedSharding(sharding.mesh, P()))(x)
    return x.addressable_data(0)

  return jax.tree.map(one, tree)


def run_once(fn: Callable[..., Tree], *args: Tree) -> Tree:
  """Returns fn(*args), compiled without passes that only pay off in later calls (a third of the time on CPU)."""
  options: Any = {"xla_backend_optimization_level": 0} if on_cpu() else None
  return jax.jit(fn).lower(*args).compile(compiler_options=options)(*args)


def wait_for_all(name: str) -> None:
  """Waits until every host has made this call. `name` must be the same on all hosts."""
  if host_count() > 1:
    multihost_utils.sync_global_devices(name)


# --- sharded parameters -----------------------------------------------------------------------------------------------


def fsdp_mesh(size: int) -> Mesh:
  """Returns a mesh (data, fsdp) of all devices of all hosts. `size` adjacent devices share the parameters; 0 means all.

  Raises:
    InvalidArgument: if `size` does not divide the number of devices.
  """
  total = total_count()
  size = size or total
  if total % size:
    raise InvalidArgument(f"training.fsdp_devices={size} does not divide {describe()}. Give a divisor of {total}.")
  return Mesh(np.array(_devices()).reshape(total // size, size), (DATA, FSDP))


def _spec(x: Any, size: int) -> P:
  """Returns the partition of an array among `size` devices: along the longest axis that is divisible by `size`."""
  axes = [i for i, n in enumerate(x.shape) if n % size == 0 and size > 1]
  if not axes or math.prod(x.shape) < SMALLEST_SHARDED or jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
    return P()
  longest = max(axes, key=lambda i: x.shape[i])
  return P(*(FSDP if i == longest else None for i in range(longest + 1)))


def shardings(abstract: Tree, mesh: Mesh) -> Tree:
  """Returns the sharding of each array of a tree, such as a training state, on an `fsdp_mesh`."""
  return jax.tree.map(lambda x: NamedSharding(mesh, _spec(x, mesh.shape[FSDP])), abstract)


def over_shards(value_and_grad: Callable[[Callable], Callable[..., tuple[jax.Array, Tree]]], mesh: Mesh):
  """Returns (params, batch, *same) -> (value, gradient), with parameters and gradient split by `shardings`.

  `value_and_grad(change)` must return a function of a device's share of the batch: (params, batch, *same) -> value and
  gradient of change(objective). Here `change` makes the objective take split parameters. The objective then gathers
  each parameter where it is used, and gathers it again in the backward pass instead of keeping it. A reduce-scatter
  splits the gradient. Zhao et al. 2023 (FSDP).
  """
  size = mesh.shape[FSDP]

  def whole(x: jax.Array, spec: P) -> jax.Array:
    return jax.lax.all_gather(x, FSDP, axis=spec.index(FSDP), tiled=True) if FSDP in spec else x

  def averaged(g: jax.Array, spec: P) -> jax.Array:
    # The gradient of a gathered array is already summed over the fsdp axis.
    return jax.lax.pmean(g / size, DATA) if FSDP in spec else jax.lax.pmean(g, (DATA, FSDP))

  def call(params: Tree, batch: Tree, *same: Any) -> tuple[jax.Array, Tree]:
    specs = jax.tree.map(lambda x: _spec(x, size), params)
    shapes = {x.shape for x in jax.tree.leaves(params)}

    def kept(primitive: Any, *inputs: Any, **_: Any) -> bool:
      """Returns False for gathered parameters and their half-precision copies: the backward pass gathers them again."""
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
  """Returns `fn`, (state, batches) -> (state, metrics), compiled for a state that is split by `shardings`.

  `batches` are this host's share, (steps, b, ...). The buffers of the old state are donated to the new one.
  """
  place, everywhere = shardings(state, mesh), NamedSharding(mesh, P())
  split = NamedSharding(mesh, P(None, (DATA, FSDP)))
  run = jax.jit(fn, in_shardings=(place, split), out_shardings=(place, everywhere), donate_argnums=0)
  share = lambda x: jax.make_array_from_process_local_data(split, np.asarray(x))
  return named("the train step", lambda state, batches: run(state, jax.tree.map(share, batches)))


def lower(
  fn: Callable, shared: Tree, batch: Tree, mesh: Mesh | None = None, *, out_shared: bool = False, donate: bool = False
) -> jax.stages.Lowered:
  """Lowers `fn`, (shared, batch) -> result, for all devices without running it. Arguments may be abstract.

  Args:
    fn: as for `map_batch`: a function of each device's share of the batch. With a `mesh`, one of the whole batch.
    shared: a tree that is the same on all devices, or split by `shardings` with a `mesh`.
    batch: arrays (B, ...).
    mesh: an `fsdp_mesh`, or None.
    out_shared: True if all devices return the same, as a train step does. Otherwise the result is (B, ...).
    donate: give up the buffers of `shared`.
  """
  over, spec = (_mesh(), P(AXIS)) if mesh is None else (mesh, P((DATA, FSDP)))
  split = NamedSharding(over, spec)
  batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=split), batch)
  if mesh is None:
    fn = jax.shard_map(fn, mesh=over, in_specs=(P(), spec), out_specs=P() if out_shared else spec, check_vma=False)
    out = None
  else:
    out = (shardings(shared, mesh), NamedSharding(mesh, P())) if out_shared else split
  return jax.jit(fn, out_shardings=out, donate_argnums=(0,) if donate else ()).lower(placed(shared, mesh), batch)


# --- collectives ------------------------------------------------------------------------------------------------------


def any_host(flag: bool) -> bool:
  """Returns whether `flag` is set on any host. All hosts must call it together."""
  if host_count() == 1:
    return flag
  return bool(np.any(multihost_utils.process_allgather(np.array(flag))))


def mean(x: Tree) -> Tree:
  """Returns the mean of `x` over all devices, which hold equal shares of a batch. For use inside a mapped function."""
  return jax.lax.pmean(x, AXIS)


def batch_mean(x: jax.Array) -> jax.Array:
  """Returns the mean of per-example numbers over the whole batch. For use inside a mapped function."""
  return jax.lax.pmean(jnp.mean(x), AXIS)


def shard(tree: Tree, axis: int = 0) -> Tree:
  """Splits `axis`, this host's batch, into (devices, batch / devices) and moves the axis of devices to the front.

  A batch that does not divide is padded with copies of its last example; `unshard` with its size drops them.
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
  """Returns abstract arrays with the sharding that a training state has, whatever devices wrote its checkpoint.

  With an `fsdp_mesh` they are split over it. Without one, all devices of all hosts get a copy, see `replicate`.
  """
  if mesh is not None:
    split = lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place)
    return jax.tree.map(split, abstract, shardings(abstract, mesh))
  place = NamedSharding(_mesh(), P())
  return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), abstract)


def unshard(tree: Tree, size: int) -> Tree:
  """Returns the first `size` examples of sharded arrays, (size, ...)."""
  return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], tree)
