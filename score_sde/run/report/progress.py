"""Progress bars, and orderly stops after a signal."""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
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
  """Makes SIGTERM and Ctrl-C only set a flag, which long work checks. A Ctrl-C after that ends the program at once.

  Python runs a handler only between its own instructions, and a compilation takes minutes without one. So a thread
  watches, too: it says at once that the signal came, and ends the program at the next Ctrl-C. (A second SIGTERM does
  not: schedulers send several.)
  """

  def handler(number, frame):
    _asked.set()

  _asked.clear()
  previous = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
  woken, wakes = socket.socketpair()
  wakes.setblocking(False)
  old_fd = signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
  threading.Thread(target=_watch, args=(woken,), name="signals", daemon=True).start()
  try:
    yield
  finally:
    signal.set_wakeup_fd(old_fd)
    wakes.close()  # which ends the thread
    for number, old in previous.items():
      signal.signal(number, old)


def _watch(woken: socket.socket) -> None:
  """Reads the numbers of signals as they come, and answers them."""
  came = False
  with woken:
    while number := woken.recv(1):
      if number[0] not in (signal.SIGTERM, signal.SIGINT):
        continue
      if came and number[0] == signal.SIGINT:
        _say("Stopped at once. The same command resumes from the newest checkpoint.")
        os._exit(128 + signal.SIGINT)
      if not came:
        again = " again" if number[0] == signal.SIGINT else ""
        _say(f"Stopping after this step or compilation. Press Ctrl-C{again} to stop now.")
      came = True


def _say(text: str) -> None:
  """Writes a line to stderr, below a progress bar if there is one."""
  if not _silent:
    with contextlib.suppress(OSError):
      os.write(sys.stderr.fileno(), f"\n{text}\n".encode())


def tell(text: str) -> None:
  """Writes a line to stderr, above a progress bar if there is one."""
  if not _silent:
    tqdm.write(text, file=sys.stderr)


class Bar:
  """Progress bar with rate and time left. If the output is no terminal, it prints a plain line every half minute."""

  def __init__(self, name: str, total: int, unit: str, done: int = 0, every: float = 30.0):
    self._name, self._total, self._unit, self._every = name, total, unit, every
    self._done = self._first = done
    self._numbers: dict[str, str] = {}
    self._began = self._said = time.monotonic()
    self._bar = None
    if sys.stderr.isatty() and not _silent:
      self._bar = tqdm(
        desc=name, total=total, initial=done, unit=unit, mininterval=0.2, file=sys.stderr, dynamic_ncols=True
      )

  def __enter__(self) -> "Bar":
    return self

  def __exit__(self, *_) -> None:
    if self._bar is not None:
      self._bar.close()
    elif self._done > self._first:
      self._print()

  def show(self, done: int, **numbers: float) -> None:
    """Sets the amount of finished work, and numbers to show beside the bar."""
    self._numbers = {k: f"{v:.4g}" for k, v in numbers.items()} or self._numbers
    self._done = done
    if self._bar is not None:
      if numbers:
        self._bar.set_postfix(self._numbers, refresh=False)
      self._bar.update(done - self._bar.n)
    elif time.monotonic() - self._said > self._every:
      self._print()

  def _print(self) -> None:
    """Prints a line: work done, speed, time left and the numbers."""
    self._said = time.monotonic()
    if _silent:
      return
    rate = (self._done - self._first) / max(self._said - self._began, 1e-9)
    left = tqdm.format_interval((self._total - self._done) / rate) if rate else "?"
    numbers = "".join(f", {k} {v}" for k, v in self._numbers.items())
    share = 100 * self._done / max(self._total, 1)
    print(
      f"{self._name}: {self._done:,} of {self._total:,}{self._unit} ({share:.0f}%), {rate:.3g}{self._unit}/s, "
      f"{left} left{numbers}",
      file=sys.stderr, flush=True,
    )  # fmt: skip

  def step(self, done: int, total: int) -> None:
    """Does the same as `show` for work that may stop at any time. Raises Interrupted if a signal asked for a stop."""
    self._total = total
    if self._bar is not None:
      self._bar.total = total
    self.show(done)
    if stop_asked():
      raise Interrupted
