"""Compiled programs of a run: their cache between processes, compilations that should not be, memory and profiles."""

import logging
from collections.abc import Callable
from typing import Any

import jax

from score_sde.run.devices.targets import GIB, chip_of

log = logging.getLogger(__name__)

_compiled = 0  # programs that this process has compiled, or read from the cache, since `_count` was first called


def cache_programs(folder: str) -> None:
  """Keeps compiled programs in `folder`, where a later process finds them: a resumed run starts at once.

  Does nothing if the user has chosen a cache (JAX_COMPILATION_CACHE_DIR) or turned it off
  (JAX_ENABLE_COMPILATION_CACHE=0).
  """
  config: Any = jax.config
  if config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache:
    jax.config.update("jax_compilation_cache_dir", folder)


def _on_event(event: str, duration_secs: float, **kwargs: Any) -> None:
  global _compiled
  if event == "/jax/core/compile/backend_compile_duration":
    _compiled += 1


_listens = False


def _count() -> int:
  """Returns the number of compilations since its first call."""
  global _listens
  if not _listens:
    jax.monitoring.register_event_duration_secs_listener(_on_event)
    _listens = True
  return _compiled


def warns_of_recompilation(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `fn`, a compiled function. It logs a warning the first time that it compiles again, with the reason.

  The first argument of `fn` must be donated: it is kept until the next call.
  """
  shapes: list[Any] = []
  last: tuple[Any, ...] = ()
  warned = False

  def call(*args: Any) -> Any:
    nonlocal last, warned
    before = _count()
    out = fn(*args)
    if _count() > before:
      new = _kinds(args)
      known = {path: kind[:2] for path, kind in new.items()}
      if known in shapes and not warned:
        warned = True
        old = _kinds(last)
        changed = [
          f"{p}: {' '.join(map(str, old[p]))} became {' '.join(map(str, new[p]))}" for p in new if new[p] != old[p]
        ]
        reason = "; ".join(changed[:3]) or "nothing that the arguments show"
        log.warning("The %s was compiled again, although no shape is new. What changed: %s.", name, reason)
      shapes.append(known)
    last = args
    return out

  return call


def _kinds(tree: Any) -> dict[str, tuple[Any, ...]]:
  """Returns {path: (shape, dtype, sharding)} of the arrays in a tree."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  return {jax.tree_util.keystr(path): _kind(x) for path, x in leaves}


def _kind(x: Any) -> tuple[Any, ...]:
  return tuple(getattr(x, "shape", ())), str(getattr(x, "dtype", type(x).__name__)), str(getattr(x, "sharding", "host"))


def memory() -> dict[str, float]:
  """Returns {"memory_gib", "highest_memory_gib"} of the fullest device of this host; {} where it is unknown (CPU)."""
  stats = [s for s in (d.memory_stats() for d in jax.local_devices()) if s and "bytes_in_use" in s]
  if not stats:
    return {}
  most = lambda key: max(s.get(key, 0) for s in stats) / GIB
  return {"memory_gib": most("bytes_in_use"), "highest_memory_gib": most("peak_bytes_in_use")}


def peak_flops(dtype: str) -> float | None:
  """Returns the peak operations per second of all devices of this run; None if their kind is in no table."""
  chip = chip_of(jax.devices()[0])
  return chip.flops[dtype] * jax.device_count() if chip and dtype in chip.flops else None
