"""Batches: shuffled ones for training, as a function of the global step, and ordered ones for evaluation."""

import functools
import os
import queue
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grain
import numpy as np
from ml_collections import ConfigDict

from score_sde.errors import ScoreSDEError
from score_sde.run import devices
from score_sde.run.data.sources import Arrays, Source


@functools.lru_cache(maxsize=2)
def _permutation(seed: int, n: int, epoch: int) -> np.ndarray:
  return np.random.default_rng([seed, epoch]).permutation(n)


def shuffled(seed: int, n: int, place: np.ndarray) -> np.ndarray:
  """Returns the index of the example at each `place` of an endless stream. Each epoch has all `n` in a new order."""
  epoch, position = np.divmod(place, n)
  chosen = np.zeros(len(place), np.int64)
  for e in np.unique(epoch):
    chosen[epoch == e] = _permutation(seed, n, int(e))[position[epoch == e]]
  return chosen


def batches(config: ConfigDict, source: Source, start: int) -> Iterator[dict[str, np.ndarray]]:
  """Yields this host's share of the training batches from step `start` on, without end. Threads read ahead.

  A batch is {"image" (b, ...), "label" (b,), "index" (b,)} with b = batch_size / hosts. `index` is the position of the
  example in the global batch.
  """
  n, size = len(source), config.training.batch_size
  local = size // devices.host_count()
  index = np.arange(local) + devices.host_index() * local

  def batch(step):
    place = step * size + index
    drawn = (place,) if getattr(source, "random", False) else ()
    return source.gather(shuffled(config.seed, n, place), *drawn) | {"index": index.astype(np.int32)}

  steps = grain.MapDataset.range(start, sys.maxsize // 2).map(batch)
  threads = 1 if isinstance(source, Arrays) else 2 * (os.cpu_count() or 1)
  return iter(steps.to_iter_dataset(grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads + 2)))


class Stalled(ScoreSDEError):
  """Error: reading of the data hangs."""


def within(batches: Iterator[Any], seconds: float) -> Iterator[Any]:
  """Yields the given batches. Raises Stalled if the next one does not come within `seconds`."""
  ready: queue.Queue = queue.Queue(maxsize=1)

  def read() -> None:
    try:
      for batch in batches:
        ready.put((batch, None))
    except BaseException as error:  # raised later in the thread that uses the batches
      ready.put((None, error))

  threading.Thread(target=read, daemon=True).start()
  while True:
    try:
      batch, error = ready.get(timeout=seconds)
    except queue.Empty as nothing:
      raise Stalled(
        f"No batch came within training.data_timeout={seconds:g} s: reading of the data hangs, for example on a lost "
        "network disk. Repair it and repeat the command: it resumes from the newest checkpoint."
      ) from nothing
    if error is not None:
      raise error
    yield batch


def in_order(
  source: Source, batch_size: int, limit: int | None = None
) -> Sequence[Callable[[], dict[str, np.ndarray]]]:
  """Returns functions that each read a batch of the first `limit` examples (None: all). The last batch may be short."""
  n = min(len(source), limit or len(source))

  def read(low: int) -> dict[str, np.ndarray]:
    index = np.arange(low, min(low + batch_size, n))
    places = (index,) if getattr(source, "random", False) else ()
    return source.gather(index, *places)

  return [functools.partial(read, low) for low in range(0, n, batch_size)]
