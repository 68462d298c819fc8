"""Checkpoints: written by orbax, asynchronously and atomically, with checksums.

A checkpoint holds `state` (all that training needs to resume, except for the EMA), `ema_params` (all that sampling
needs) and `manifest` (the config's signature, and shape, dtype and checksum of every array).
"""

import contextlib
import errno
import hashlib
import logging
import os
import warnings
import zlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy as policy

from score_sde.errors import ScoreSDEError
from score_sde.run import devices
from score_sde.run.config.errors import BadInput
from score_sde.run.storage import Path, absolute, files_in, free_space, in_bucket, path_of

log = logging.getLogger(__name__)

Tree = Any

# Bytes on disk per array besides its values: its description, and the unused rest of a block.
BLOCK = 4096


class DiskFull(ScoreSDEError, OSError):
  """Error: the disk has no room for a checkpoint."""


class CannotRead(ScoreSDEError):
  """Error: a checkpoint cannot be read for now, for example because of a lost network disk."""


class CannotSave(ScoreSDEError, OSError):
  """Error: the folder of the checkpoints can no longer be written to."""


# Errors of a disk or folder that is full, read-only, or gone.
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT)
_UNWRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.ENOTDIR, errno.ENOENT, errno.ESTALE)

# Errors of reading that say nothing about the file itself.
_UNREADABLE = (
  errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENOMEM, errno.EMFILE, errno.ENFILE,
)  # fmt: skip


def _os_error(error: BaseException | None, kinds: tuple[int, ...]) -> str | None:
  """Returns the system's message if an error, or one of its causes, is of one of these `kinds` (errno), else None."""
  while error is not None:
    for kind in kinds:
      if getattr(error, "errno", None) == kind or os.strerror(kind) in str(error):
        return os.strerror(kind)
    error = error.__cause__ or error.__context__
  return None


def finds_no_room(error: BaseException | None) -> bool:
  """Returns whether an error, or one of its causes, is that of a full disk."""
  return _os_error(error, _NO_ROOM) is not None


def _count_no_bytes() -> None:
  """Keeps orbax from asking tensorstore for the number of bytes written, which orbax only logs.

  It asks several times per save, and tensorstore (0.1.86) never frees its answers: 0.1 MiB per save.
  """
  with contextlib.suppress(ImportError):
    from orbax.checkpoint._src.serialization import tensorstore_utils

    tensorstore_utils.get_tensorstore_raw_bytes = lambda direction=None: 0


@contextlib.contextmanager
def manager(workdir: str, keep_every: int | None = None, create: bool = False) -> Iterator[ocp.CheckpointManager]:
  """Opens `workdir`/checkpoints. Keeps the last two of the written checkpoints and the multiples of `keep_every`.

  Without `keep_every` it only reads. With `create` it makes the folder, so that a reader can wait for a training run.

  Raises:
    DiskFull: if a save, or any other file written within the context, finds no room.
    CannotSave: if the folder of the checkpoints has become read-only, or is gone.
  """
  folder = absolute(path_of(workdir) / "checkpoints")
  _count_no_bytes()
  if keep_every is not None and devices.is_first_host():
    _remove_unfinished(folder)
  devices.wait_for_all(f"checkpoints in {folder}")
  if create:
    folder.mkdir(parents=True, exist_ok=True)
  keep = [policy.LatestN(2)] + ([policy.EveryNSteps(keep_every)] if keep_every else [])
  options = ocp.CheckpointManagerOptions(
    preservation_policy=policy.AnyPreservationPolicy(keep),
    create=keep_every is not None,
    read_only=keep_every is None,
  )
  try:
    with ocp.CheckpointManager(folder, options=options) as checkpoint_manager:
      yield checkpoint_manager
  except Exception as error:  # orbax raises many kinds for a background save; or it comes from another file of the run
    unwritable = _os_error(error, _UNWRITABLE) if keep_every is not None else None
    if isinstance(error, ScoreSDEError) or not (finds_no_room(error) or (unwritable and str(folder) in str(error))):
      raise
    _silence_abandoned_writes()
    if not finds_no_room(error):
      raise CannotSave(
        f"{str(folder)!r} can no longer be written to ({unwritable}). The newest checkpoint there is whole: make the "
        "folder writable and repeat the command, which resumes from it."
      ) from error
    raise DiskFull(
      f"The disk of {str(folder)!r} is full. The newest checkpoint there is whole: free some space and repeat the "
      "command, which resumes from it."
    ) from error


def _silence_abandoned_writes() -> None:
  """Keeps Python quiet about orbax's other writes, which are dropped when one of them fails."""
  warnings.filterwarnings("ignore", message="coroutine .* was never awaited")
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)


def _remove_unfinished(folder: Path) -> None:
  """Deletes the files of a killed save. (orbax would do so in a thread, which fails if the run ends at once.)"""
  for path in files_in(folder):
    if ".orbax-checkpoint-tmp" in path.name:
      path.rmtree()


def exists(workdir: str) -> bool:
  """Returns whether `workdir` holds any checkpoint."""
  whole = lambda p: not in_bucket(workdir) or (p / "commit_success.txt").exists()  # there orbax writes it last
  return any(p.name.isdigit() and whole(p) for p in files_in(path_of(workdir) / "checkpoints"))


def _weighted_sum(x: Any, xp: Any = np) -> Any:
  """Returns a checksum: the sum modulo 2³² of an array's words, each times its own odd number.

  A change of any single word changes the sum. The order of summation does not matter, so the sum does not depend on
  how the array is split among devices.
  """
  bits = x.view(f"uint{8 * min(x.dtype.itemsize, 4)}") if x.ndim else x.reshape(1).view(f"uint{8 * x.dtype.itemsize}")
  place = xp.zeros((), xp.uint32)
  for n, axis in zip(bits.shape, range(bits.ndim), strict=True):
    index = xp.arange(n, dtype=xp.uint32).reshape([-1 if i == axis else 1 for i in range(bits.ndim)])
    place = place * xp.uint32(n % 2**32) + index
  return xp.sum(bits.astype(xp.uint32) * (2 * place + 1), dtype=xp.uint32)


def _checksums(tree: Tree) -> list[int]:
  """Returns the checksum of every array. Arrays that are spread over hosts are summed on their devices."""
  leaves = jax.tree.leaves(tree)
  if all(not isinstance(x, jax.Array) or x.is_fully_addressable for x in leaves):
    with np.errstate(over="ignore"):
      return [int(_weighted_sum(np.asarray(x))) for x in jax.device_get(leaves)]
  return [int(x) for x in _weighted_sums(leaves)]


@jax.jit
def _weighted_sums(leaves: list[Any]) -> list[Any]:
  return [_weighted_sum(x, jnp) for x in leaves]


def _describe(tree: Tree) -> dict[str, Any]:
  """Returns {path: [shape, dtype, checksum]} of every array."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  sums = _checksums(tree)
  return {
    jax.tree_util.keystr(path): [list(np.shape(x)), str(x.dtype), total]
    for (path, x), total in zip(leaves, sums, strict=True)
  }


def digest(tree: Tree) -> str:
  """Returns eight hexadecimal digits that identify the values of a tree of arrays."""
  found = hashlib.sha256()
  for x in jax.tree.leaves(jax.device_get(tree)):
    found.update(np.ascontiguousarray(x).data)
  return found.hexdigest()[:8]


def check_space(folder: Path, *trees: Tree) -> None:
  """Raises DiskFull if the disk of `folder` has no room for another checkpoint of the trees."""
  leaves = jax.tree.leaves(trees)
  needed = sum(1.1 * x.size * x.dtype.itemsize + BLOCK for x in leaves)
  free = free_space(folder)
  if free < needed:
    raise DiskFull(
      f"The disk of {str(folder)!r} has {free / 2**20:.1f} MiB left, and a checkpoint takes {needed / 2**20:.1f} MiB. "
      "The newest one there is whole: free some space and repeat the command, which resumes from it."
    )


def save(manager: ocp.CheckpointManager, step: int, state: Tree, ema_params: Tree, signature: dict[str, Any]) -> None:
  """Writes a checkpoint in the background. Does nothing if the checkpoint of `step` exists.

  Raises:
    DiskFull: if there is no room for it.
  """
  if step in manager.all_steps():
    return
  manager.wait_until_finished()  # saving would wait, too; then check_space counts the previous save
  check_space(path_of(manager.directory), state, ema_params)
  manifest = {"signature": signature, "checksum": "weighted sum"}
  manifest |= {"state": _describe(state), "ema_params": _describe(ema_params)}
  items = ocp.args.Composite(
    state=ocp.args.StandardSave(state),
    ema_params=ocp.args.StandardSave(ema_params),
    manifest=ocp.args.JsonSave(manifest),
  )
  manager.save(step, args=items)


def _damage(tree: Tree, manifest: dict[str, Any], item: str) -> str | None:
  """Returns a message about the first array of `tree` that differs from its entry in the manifest; None if all agree.

  `tree` is the `item` of a checkpoint.
  """
  found, expected = _describe(tree), manifest[item]
  if "checksum" not in manifest:  # an older format: CRC-32 of the whole array
    whole = jax.tree_util.tree_leaves_with_path(jax.device_get(tree))
    found = {
      k: [*v[:2], zlib.crc32(np.ascontiguousarray(x).data)] for (k, v), (_, x) in zip(found.items(), whole, strict=True)
    }
  return next((f"{path} is damaged" for path, entry in expected.items() if found.get(path) != entry), None)


def check_signature(saved: dict[str, Any], signature: dict[str, Any], workdir: str) -> None:
  """Raises BadInput, with the differences, if a checkpoint has another model, SDE or scaling of data."""
  differ = [k for k in signature if k in saved and saved[k] != signature[k]]
  if differ:
    changes = "; ".join(f"{k} was {saved[k]!r}, is {signature[k]!r}" for k in differ)
    raise BadInput(
      f"workdir {workdir!r} holds checkpoints of another model ({changes}). Give another --workdir, or the config they "
      "were written with."
    )


def _manifest(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
  """Returns the manifest of a checkpoint. Raises ValueError if it is not one."""
  found: Any = manager.restore(step, args=ocp.args.Composite(manifest=ocp.args.JsonRestore()))
  manifest = found.manifest
  parts = (
    [manifest.get(name) for name in ("signature", "state", "ema_params")] if isinstance(manifest, dict) else [None]
  )
  if not all(isinstance(part, dict) and part for part in parts):
    raise ValueError("its manifest is empty or damaged")
  return manifest


def _check_arrays(saved: dict[str, Any], target: Tree, what: str) -> None:
  """Raises BadInput if a checkpoint's arrays are not those of `target`, for example of another optimizer."""
  wanted = {jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(target)}
  missing, more = sorted(wanted - set(saved)), sorted(set(saved) - wanted)
  if missing or more:
    lacks = f"lacks {len(missing)} arrays, such as {missing[0]}" if missing else ""
    has = f"has {len(more)} others, such as {more[0]}" if more else ""
    raise BadInput(
      f"{what} {lacks}{' and ' * bool(missing and more)}{has}: it was written with another network or optimizer. Use "
      "the config that it was written with (for example its optim.amsgrad or model.ema_widths), or another --workdir."
    )


def check(manager: ocp.CheckpointManager, signature: dict[str, Any], workdir: str) -> None:
  """Runs `check_signature` on the newest readable checkpoint. Called before any long work."""
  for step in sorted(manager.all_steps(), reverse=True):
    with contextlib.suppress(Exception):
      manifest = _manifest(manager, step)
      break
  else:
    return
  check_signature(manifest["signature"], signature, workdir)


def restore(
  manager: ocp.CheckpointManager,
  targets: dict[str, Tree],
  signature: dict[str, Any],
  workdir: str,
  step: int | None = None,
  mesh: devices.Mesh | None = None,
) -> tuple[int, dict[str, Tree]] | None:
  """Reads the newest undamaged checkpoint, or that of `step`. Logs a warning for each damaged one.

  Args:
    manager: see `manager`.
    targets: {item: abstract tree (shapes and dtypes)} of the items to read, "state" or "ema_params".
    signature: the `config.signature` that the checkpoint must have.
    workdir: the folder of the run, for error messages.
    step: the step to read; None for the newest.
    mesh: the mesh to split the arrays over, see `devices.placed`.

  Returns:
    (step, {item: tree}); None if there is no checkpoint.

  Raises:
    BadInput: if the checkpoint belongs to another model, `step` is not there, or all checkpoints are damaged.
  """
  steps = sorted(manager.all_steps(), reverse=True)
  if step is not None:
    if step not in steps:
      raise BadInput(f"workdir {workdir!r} has no checkpoint of step {step}; it has {sorted(steps) or 'none'}.")
    steps = [step]
  for candidate in steps:
    items = {name: ocp.args.StandardRestore(devices.placed(target, mesh)) for name, target in targets.items()}
    read: Any = {}
    try:
      manifest = _manifest(manager, candidate)
      check_signature(manifest["signature"], signature, workdir)
      for name, target in targets.items():
        _check_arrays(manifest[name], target, f"Checkpoint {candidate} of workdir {workdir!r}")
      read = manager.restore(candidate, args=ocp.args.Composite(**items))
      damage = next(filter(None, (_damage(read[name], manifest, name) for name in targets)), None)
    except (BadInput, MemoryError, jax.errors.JaxRuntimeError):  # of the device, not of the file
      raise
    except Exception as error:  # orbax raises many kinds for a damaged file
      if unreadable := _os_error(error, _UNREADABLE):
        raise CannotRead(
          f"Checkpoint {candidate} of workdir {workdir!r} cannot be read now ({unreadable}). It need not be damaged, "
          "and nothing was changed: repair the access to it and repeat the command."
        ) from error
      damage = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    if damage is None:
      return candidate, {name: read[name] for name in targets}
    if step is not None and not (path_of(manager.directory) / str(step)).exists():
      raise BadInput(
        f"The checkpoint of step {step} of workdir {workdir!r} vanished before it was read: the training that writes "
        "there keeps its last two and the multiples of training.snapshot_freq."
      )
    log.warning("Checkpoint %d of %s cannot be used: %s.", candidate, workdir, damage)
  if steps:
    raise BadInput(
      f"No checkpoint of workdir {workdir!r} can be read (steps {steps}). Start again in another --workdir."
    )
  return None


def remove_newer(manager: ocp.CheckpointManager, step: int) -> None:
  """Deletes the checkpoints after `step`. They are damaged ones, which a resumed run writes again."""
  for newer in [s for s in manager.all_steps() if s > step]:
    manager.delete(newer)
