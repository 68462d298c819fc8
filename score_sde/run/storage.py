"""Storage: the files of a run, in a folder of this machine or in a bucket such as gs://name/folder.

All paths are `etils.epath.Path`. What only a disk has, such as adding to the end of a file, is done in a local folder
first, see `Folder`.
"""

import atexit
import contextlib
import fcntl
import logging
import os
import pathlib
import secrets
import shutil
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, Any

import numpy as np
from etils import epath

from score_sde.run.config.errors import BadInput

log = logging.getLogger(__name__)

Path = epath.Path

# A job that has not renewed its claim on a bucket for so long is dead, in seconds.
LEASE_SECONDS = 60
# Interval at which the local copies of logs and curves are written to a bucket, in seconds.
SYNC_SECONDS = 30.0


def in_bucket(path: str | os.PathLike) -> bool:
  """Returns whether `path` lies in a bucket: whether it begins with gs://, or another scheme."""
  return "://" in os.fspath(path)


def _is_news(record: logging.LogRecord) -> bool:
  """Returns whether a message of gcsfs is worth showing. Not that it takes a bucket for one of the usual kind."""
  return "bucket type" not in str(record.msg)


def path_of(path: str | os.PathLike) -> Path:
  """Returns the path of a name; "~" is the user's home.

  Raises:
    BadInput: for a bucket, if what reads it is not installed.
  """
  name = os.fspath(path)
  if not in_bucket(name):
    return epath.Path(name).expanduser()
  scheme = name.partition("://")[0]
  if scheme != "gs":
    raise BadInput(
      f"{name!r}: {scheme}:// is not supported; give a folder or a bucket of Google Cloud, gs://NAME/FOLDER."
    )
  try:
    import fsspec.config
    import gcsfs  # noqa: F401
  except ImportError as error:
    raise BadInput(f"{name!r} needs a package that is not installed: pip install -e '.[gcs]'.") from error
  # Other hosts write to the bucket, too: a list of files must not be remembered.
  fsspec.config.conf.setdefault("gcs", {"use_listings_cache": False})
  logging.getLogger("gcsfs").addFilter(_is_news)
  return epath.Path(name)


def absolute(path: Path) -> Path:
  """Returns the path from the root of the disk; that of a bucket unchanged."""
  return path if in_bucket(path) else path.resolve()


def files_in(folder: Path) -> list[Path]:
  """Returns what is in `folder`; [] if it does not exist. (`glob` would take brackets in its name for a pattern.)"""
  return list(folder.iterdir()) if folder.is_dir() else []


def save_atomically(path: str | os.PathLike, write: Callable[[IO[bytes]], Any]) -> None:
  """Calls `write(file)` on a temporary file and then gives it the name `path`, so that `path` is never incomplete."""
  path = path_of(path)
  if in_bucket(path):
    with tempfile.NamedTemporaryFile() as file:
      write(file)
      file.flush()
      _put(file.name, path)
    return
  path.parent.mkdir(parents=True, exist_ok=True)
  unfinished = pathlib.Path(path.parent, f".{path.name}.{secrets.token_hex(4)}{path.suffix}")
  try:
    with unfinished.open("xb") as file:
      write(file)
    os.replace(unfinished, path)
  except BaseException:
    unfinished.unlink(missing_ok=True)
    raise


def _put(file: str, path: Path) -> None:
  """Copies a file to an object of a bucket, which appears once it is whole."""
  from fsspec.core import url_to_fs

  system, name = url_to_fs(os.fspath(path))
  system.put_file(file, name)


@contextlib.contextmanager
def arrays_of(path: str | os.PathLike) -> Iterator[Any]:
  """Opens an .npz or .npy file, as `np.load` does."""
  with path_of(path).open("rb") as file:
    found = np.load(file)
    with found if hasattr(found, "close") else contextlib.nullcontext():
      yield found


def read_array(path: Path) -> np.ndarray:
  """Returns the array of an .npy file."""
  with arrays_of(path) as found:
    return np.asarray(found)


def changed(path: Path) -> float:
  """Returns the time of the last change of a file, in seconds since 1970."""
  # epath's stat asks for the name of the file's owner, which a container may not have.
  return float(path.stat().mtime) if in_bucket(path) else os.path.getmtime(path)


def free_space(path: Path) -> float:
  """Returns the free bytes of the disk of `path`; infinity for a bucket."""
  return float("inf") if in_bucket(path) else shutil.disk_usage(path).free


class Folder:
  """Folder of a run whose files grow, such as logs and curves. Programs write to `local`, a folder of this machine.

  For a bucket, `local` is a temporary folder, and `sync` copies what has changed. Otherwise it is the folder itself.

  Attributes:
    path: the folder of the run.
    local: the folder to write to.
  """

  def __init__(self, path: Path):
    self.path = path
    self._synced: dict[pathlib.Path, tuple[int, int]] = {}
    self._lock = threading.Lock()
    self._closed = threading.Event()
    if in_bucket(path):
      self.local = pathlib.Path(tempfile.mkdtemp(prefix="score_sde_"))
    else:
      self.local = pathlib.Path(path).absolute()
      self.local.mkdir(parents=True, exist_ok=True)

  def sync(self) -> None:
    """Copies the files that have changed to the bucket."""
    if not in_bucket(self.path):
      return
    with self._lock:
      if self._closed.is_set():
        return
      for file in sorted(p for p in self.local.rglob("*") if p.is_file()):
        try:
          self._copy(file)
        except Exception as error:  # the network may be away for a moment, or another program removed its file
          log.warning("%s could not be copied to %s (%s); it is tried again.", file.name, self.path, error)

  def _copy(self, file: pathlib.Path) -> None:
    state = _state_of(file)
    if self._synced.get(file) == state:
      return
    with tempfile.NamedTemporaryFile() as kept:  # the file may grow while it is read
      shutil.copyfile(file, kept.name)
      _put(kept.name, self.path / file.relative_to(self.local).as_posix())
    self._synced[file] = state

  def keep_in_sync(self) -> None:
    """Copies changes every SYNC_SECONDS from now on, in a thread, and the last ones when the process ends."""
    if not in_bucket(self.path):
      return

    def run() -> None:
      while not self._closed.wait(SYNC_SECONDS):
        self.sync()

    threading.Thread(target=run, daemon=True).start()
    atexit.register(self.close)

  def close(self) -> None:
    """Copies the last changes and removes the temporary folder, unless a file in it could not be copied."""
    if not in_bucket(self.path) or self._closed.is_set():
      return
    self.sync()
    with self._lock:
      if all(self._synced.get(file) == _state_of(file) for file in self.local.rglob("*") if file.is_file()):
        self._closed.set()
        shutil.rmtree(self.local, ignore_errors=True)
      else:
        log.error("Not all files of %s could be copied: they are kept in %s.", self.path, self.local)


def _state_of(file: pathlib.Path) -> tuple[int, int]:
  """Returns size and time of a file: others after each change."""
  state = file.stat()
  return state.st_size, state.st_mtime_ns


# --- claims -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
  """Claims the folder `path`: no other job can do so within the context.

  On a disk, the claim is a lock on the file `.claimed`, which the system releases when the process ends, even by a
  crash. The file stays: if it were removed, a second job could hold the lock of the removed file and a third that of a
  new one. In a bucket, the job renews the file, and a claim that is not renewed for LEASE_SECONDS is free. A job that
  finds its claim taken over stops as if by SIGTERM.

  Raises:
    BadInput: if another job holds the claim.
  """
  owner = f"process {os.getpid()} on {socket.gethostname()}"
  with _leased(path, owner) if in_bucket(path) else _locked(path, owner):
    yield


def _taken(path: Path, owner: str) -> BadInput:
  return BadInput(
    f"--workdir={str(path)!r} is another job's, which trains there now ({owner.strip()}). Stop it, or give another."
  )


@contextlib.contextmanager
def _locked(path: Path, owner: str) -> Iterator[None]:
  with open(path / ".claimed", "a+") as handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      handle.seek(0)
      raise _taken(path, handle.read()) from error
    except OSError as error:  # a file system without locks
      log.warning("%s cannot be locked (%s): nothing keeps another job from writing there.", path, error.strerror)
    handle.truncate(0)
    handle.write(owner)
    handle.flush()
    try:
      yield
    finally:
      handle.truncate(0)


def _claim(file: Path) -> str:
  """Returns what a claim in a bucket says: its owner and a number that changes when it is renewed; "" for none."""
  try:
    return file.read_text()
  except FileNotFoundError:
    return ""


@contextlib.contextmanager
def _leased(path: Path, owner: str) -> Iterator[None]:
  file, name = path / ".claimed", f"{owner}, {secrets.token_hex(4)}"
  held, since = _claim(file), time.monotonic()
  if held:
    log.info("%s was claimed by %s. Waiting up to %d s: is that job alive?", path, _owner(held), LEASE_SECONDS)
  while held and time.monotonic() - since < LEASE_SECONDS:
    time.sleep(LEASE_SECONDS / 20)
    now = _claim(file)
    if now and now != held:
      raise _taken(path, _owner(now))
    held = now
  file.write_text(f"{name}\n0")
  time.sleep(LEASE_SECONDS / 60)  # two jobs may have found the claim free at once: the later writer has it
  if _owner(_claim(file)) != name:
    raise _taken(path, _owner(_claim(file)))
  done = threading.Event()

  def renew() -> None:
    number = 0
    while not done.wait(LEASE_SECONDS / 5):
      number += 1
      try:
        if (now := _claim(file)) and _owner(now) != name:  # this job was silent for too long
          log.error("%s has been taken over by %s. This job stops.", path, _owner(now))
          os.kill(os.getpid(), signal.SIGTERM)
          return
        file.write_text(f"{name}\n{number}")
      except Exception as error:  # the network may be away for a moment
        log.warning("The claim of %s could not be renewed (%s).", path, error)

  thread = threading.Thread(target=renew, daemon=True)
  thread.start()
  try:
    yield
  finally:
    done.set()
    thread.join(LEASE_SECONDS / 5)
    with contextlib.suppress(Exception):
      if _owner(_claim(file)) == name:
        file.unlink(missing_ok=True)


def _owner(claim: str) -> str:
  return claim.partition("\n")[0]
