"""Speed and profile of a training run."""

import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

import jax

from score_sde.run.devices import programs
from score_sde.run.storage import Folder, Path

log = logging.getLogger(__name__)


class Speed:
  """Speed of training between two times at which the host waits for the devices.

  Attributes:
    shown: the last measurement, under short names.
  """

  def __init__(self, batch_size: int, dtype: str, count_flops: Callable[[], float]):
    """Calls `count_flops`, which returns the operations of a step, only on chips whose peak is known."""
    self._batch_size, self._began, self.shown = batch_size, (-1, 0.0), dict[str, float]()
    self._peak = programs.peak_flops(dtype)
    self._flops = count_flops() if self._peak else 0.0

  def start(self, step: int) -> None:
    """Starts the clock at `step`."""
    self._began = (step, time.monotonic())

  def measure(self, step: int) -> dict[str, float]:
    """Returns images per second, the share of the peak operations (for known chips) and memory (not on CPU)."""
    first, began = self._began
    if first < 0 or step <= first:  # the first interval compiles
      return {}
    steps_per_second = (step - first) / max(time.monotonic() - began, 1e-9)
    found = {"images_per_second": steps_per_second * self._batch_size}
    self.shown = {"images/s": found["images_per_second"]}
    if self._peak and self._flops:
      found["model_flops_utilization"] = self.shown["mfu"] = steps_per_second * self._flops / self._peak
    memory = programs.memory()
    self.shown |= {"GiB": memory["highest_memory_gib"]} if memory else {}
    return found | memory


class Profile:
  """Context that records the steps `first` to `last` in the folder `profile` of the workdir; none without `steps`."""

  def __init__(self, workdir: Path, steps: Sequence[int]):
    self._steps, self._runs = tuple(steps), False
    self._folder = Folder(workdir / "profile") if steps else None

  def __enter__(self) -> "Profile":
    return self

  def __exit__(self, *_: Any) -> None:
    if self._runs:
      self._stop()

  def _stop(self) -> None:
    assert self._folder is not None
    self._runs, self._steps = False, ()
    jax.profiler.stop_trace()
    self._folder.close()
    log.info("Profile in %s: tensorboard --logdir=%s", self._folder.path, self._folder.path)

  def at(self, step: int, state: Any) -> None:
    """Starts or ends the recording if it is time. Call it before each block of steps."""
    if not self._steps or self._folder is None:
      return
    first, last = self._steps
    if first <= step < last and not self._runs:
      jax.block_until_ready(state)
      jax.profiler.start_trace(str(self._folder.local))
      self._runs = True
    elif step >= last and self._runs:
      jax.block_until_ready(state)
      self._stop()
