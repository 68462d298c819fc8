"""Compiled programs of a run: their cache between processes, compilations that should not be, memory and profiles."""

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax

from score_sde.run.devices.targets import GIB, chip_of

log = logging.getLogger(__name__)

# JAX's event of a compilation, or of reading the cache: a scalar when it begins, and a duration when it ends.
COMPILED = "/jax/core/compile/backend_compile_duration"
_compiled = 0  # programs that this process has compiled, or read from the cache, since it first listened
_running = ""  # what is called now, and compiled if it has not been called before
_compiling: tuple[str, float] | None = None  # the program that is being compiled, and when that began
_listens = False


def cache_programs(folder: str) -> None:
  """Keeps compiled programs in `folder`, where a later process finds them: a resumed run starts at once.

  Does nothing if the user has chosen a cache (JAX_COMPILATION_CACHE_DIR) or turned it off
  (JAX_ENABLE_COMPILATION_CACHE=0).
  """
  config: Any = jax.config
  if config.jax_compilation_cache_dir is None and config.jax_enable_compilation_cache:
    jax.config.update("jax_compilation_cache_dir", folder)


def _on_event(event: str, duration_secs: float, **kwargs: Any) -> None:
  global _compiled, _compiling
  if event == COMPILED:
    _compiled += 1
    _compiling = None


def _on_begin(event: str, value: float | int, **kwargs: Any) -> None:
  global _compiling
  if event == COMPILED:
    own = str(kwargs.get("fun_name", "a program")).removeprefix("jit(").removesuffix(")")
    _compiling = _running or f"the function {own}", time.monotonic()


def _listen() -> None:
  """Makes the functions above hear of JAX's compilations, for the rest of the process."""
  global _listens
  if not _listens:
    jax.monitoring.register_event_duration_secs_listener(_on_event)
    jax.monitoring.register_scalar_listener(_on_begin)
    _listens = True


def _count() -> int:
  """Returns the number of compilations since its first call."""
  _listen()
  return _compiled


def named(name: str, fn: Callable[..., Any]) -> Callable[..., Any]:
  """Returns `fn`, a compiled function, under a name for `announces_compilations`."""

  def call(*args: Any) -> Any:
    global _running
    before, _running = _running, name
    try:
      return fn(*args)
    finally:
      _running = before

  return call


@contextlib.contextmanager
def announces_compilations(say: Callable[[str], None], first: float = 5.0, every: float = 30.0) -> Iterator[None]:
  """Calls `say` about long compilations: after `first` seconds, every `every` seconds, and when they end."""
  _listen()
  done = threading.Event()

  def watch() -> None:
    said: tuple[str, float] | None = None  # the compilation that was announced
    due = 0.0
    while not done.wait(min(0.5, first / 2)):
      now, current = time.monotonic(), _compiling
      if said and current != said:
        say(f"compiled {said[0]} in {now - said[1]:.0f} s")
        said = None
      if current and now - current[1] > first and (said is None or now > due):
        said, due = current, now + every
        say(f"compiling {current[0]}: {now - current[1]:.0f} s")

  thread = threading.Thread(target=watch, name="compilations", daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join()


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
