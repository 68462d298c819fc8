"""Progress bars, and orderly stops after a signal."""

import contextlib
import signal
import sys
import threading
from collections.abc import Iterator

from tqdm import tqdm

from score_sde.errors import ScoreSDEError


class Interrupted(ScoreSDEError):
  """Interruption: SIGTERM or SIGINT asked the run to stop. Finished work is saved."""


_asked = threading.Event()
_silent = False


def be_silent() -> None:
  """Turns progress bars off. Called on all hosts but the first."""
  global _silent
  _silent = True


def stop_asked() -> bool:
  """Returns whether a signal asked the run to stop."""
  return _asked.is_set()


def wait(seconds: float) -> None:
  """Sleeps for `seconds`. Raises Interrupted as soon as a signal asks the run to stop."""
  if _asked.wait(seconds):
    raise Interrupted


@contextlib.contextmanager
def stops_on_signal() -> Iterator[None]:
  """Makes SIGTERM and Ctrl-C only set a flag, which long work checks. A second Ctrl-C interrupts at once."""

  def handler(number, frame):
    if number == signal.SIGINT and _asked.is_set():
      raise KeyboardInterrupt
    _asked.set()

  _asked.clear()
  previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
  try:
    yield
  finally:
    for number, old in previous.items():
      signal.signal(number, old)


class Bar:
  """Progress bar with rate and time left. If the output is no terminal, it prints a line every few seconds."""

  def __init__(self, name: str, total: int, unit: str, done: int = 0):
    terminal = sys.stderr.isatty()
    self._bar = tqdm(
      desc=name,
      total=total,
      initial=done,
      unit=unit,
      mininterval=0.2 if terminal else 5.0,
      file=sys.stderr,
      dynamic_ncols=terminal,
      ncols=None if terminal else 110,
      leave=True,
      disable=_silent,
    )

  def __enter__(self) -> "Bar":
    return self

  def __exit__(self, *_) -> None:
    self._bar.close()

  def show(self, done: int, **numbers: float) -> None:
    """Sets the amount of finished work, and numbers to show beside the bar."""
    if numbers:
      self._bar.set_postfix({k: f"{v:.4g}" for k, v in numbers.items()}, refresh=False)
    self._bar.update(done - self._bar.n)

  def step(self, done: int, total: int) -> None:
    """Does the same as `show` for work that may stop at any time. Raises Interrupted if a signal asked for a stop."""
    self._bar.total = total
    self.show(done)
    if stop_asked():
      raise Interrupted
