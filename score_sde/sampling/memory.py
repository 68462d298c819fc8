"""Batches that do not fit into memory are split: a sample depends on its own key alone, so nothing else changes."""

import logging
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

log = logging.getLogger(__name__)


def _joined(parts: list[tuple[Any, dict[str, Any]]]) -> tuple[Any, dict[str, Any]]:
  """Samples and infos of consecutive parts of a batch as those of the whole."""
  info = {}
  for name, value in parts[0][1].items():
    values = [part[name] for _, part in parts]
    if name == "trajectory":
      join = lambda frames: None if frames[0] is None else np.concatenate(frames)
      steps = zip(*values, strict=True)
      info[name] = [(f[0][0], join([p[1] for p in f]), join([p[2] for p in f])) for f in steps]
    elif np.ndim(value):
      info[name] = jnp.concatenate(values)
    else:  # the same for every part
      info[name] = value
  return jnp.concatenate([x for x, _ in parts]), info


def split_to_fit(sample: Callable, devices: int = 1) -> Callable:
  """`sample`, whose batches are halved as often as the device runs out of memory, down to one sample a device.

  The size that fitted is kept for the batches after.
  """
  fits: dict[tuple[int, ...], int] = {}

  def split(score, key, shape, *, first=0, condition=None, start=None, progress=None, **options):
    total = shape[0]
    size = min(fits.get(shape[1:], total), total)
    while True:
      sizes = [min(size, total - i) for i in range(0, total, size)]
      try:
        parts = []
        for i, n in zip(range(0, total, size), sizes, strict=True):
          part, begin = jax.tree.map(lambda c, i=i, n=n: c[i : i + n], (condition, start))
          shown = progress and (lambda done, steps, i=i: progress(i // size * steps + done, len(sizes) * steps))
          options_of_part = {"first": first + i, "condition": part, "start": begin, "progress": shown} | options
          parts.append(sample(score, key, (n, *shape[1:]), **options_of_part))
        return parts[0] if len(parts) == 1 else _joined(parts)
      except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error) or size <= devices:
          raise
        size = fits[shape[1:]] = max(devices, size // 2 // devices * devices)
        log.warning("%d samples do not fit into memory together; drawing %d at a time.", total, size)

  return split
