"""Workdir: creates the folder of a run, claims it for one job and writes the small files in it."""

import contextlib
import fcntl
import json
import logging
import os
import pathlib
import socket
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from score_sde.run import devices
from score_sde.run.config import BadInput, as_dict
from score_sde.run.report.pictures import save_atomically

log = logging.getLogger(__name__)


def make_workdir(workdir: str) -> pathlib.Path:
  """Creates `workdir` and returns its path. Raises BadInput if it cannot be created or written to."""
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".write_test_{socket.gethostname()}_{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise BadInput(f"--workdir={workdir!r} cannot be written to ({error.strerror}). Give another.") from error
  return path


@contextlib.contextmanager
def claimed(path: pathlib.Path) -> Iterator[None]:
  """Claims the workdir `path`: no other job can train there within the context.

  The claim is a lock on the file `.claimed`, which the system releases when the process ends, even by a crash. The file
  stays: if it were removed, a second job could hold the lock of the removed file and a third that of a new one.

  Raises:
    BadInput: if another job holds the claim.
  """
  if not devices.is_first_host():
    yield
    return
  file = path / ".claimed"
  with file.open("a+") as handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      handle.seek(0)
      raise BadInput(
        f"--workdir={str(path)!r} is another job's, which trains there now ({handle.read().strip()}). Stop it, or give "
        "another."
      ) from error
    except OSError as error:  # a file system without locks
      log.warning("%s cannot be locked (%s): nothing keeps another job from writing there.", path, error.strerror)
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    try:
      yield
    finally:
      handle.truncate(0)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON atomically."""
  save_atomically(path, lambda file: file.write((json.dumps(value, indent=2, default=list) + "\n").encode()))


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the resolved config to config.json in `workdir`."""
  write_json(workdir / "config.json", as_dict(config))
