"""Workdir: creates the folder of a run, claims it for one job and writes the small files in it."""

import contextlib
import itertools
import json
import logging
import math
import os
import pathlib
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict

from score_sde.run import checkpoints, devices, storage
from score_sde.run.config import BadInput, as_dict
from score_sde.run.config.errors import foreign
from score_sde.run.data.sources import Source, identity
from score_sde.run.storage import Path, save_atomically

log = logging.getLogger(__name__)

# File of a workdir whose first checkpoint was imported, with the name of its source.
IMPORTED = "imported.txt"


def make_workdir(workdir: str) -> Path:
  """Creates `workdir` and returns its path. Raises BadInput if it cannot be created or written to."""
  path = storage.path_of(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".write_test_{socket.gethostname()}_{os.getpid()}"
    probe.touch()
    probe.unlink()
  except Exception as error:  # those of a bucket are of many kinds
    if not (isinstance(error, OSError) or storage.in_bucket(path)):
      raise
    reason = getattr(error, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    raise BadInput(f"--workdir={workdir!r} cannot be written to ({reason}). Give another.") from error
  return path


def make_file(output: str) -> pathlib.Path:
  """Creates the folder of the file `output` and returns its path. Raises BadInput if it cannot be written to."""
  if storage.in_bucket(output):
    raise BadInput(f"{output!r} lies in a bucket. Give a file of this machine, and copy it there.")
  path = pathlib.Path(output)
  make_workdir(str(path.parent))
  return path


@contextlib.contextmanager
def claimed(path: Path) -> Iterator[None]:
  """Claims the workdir `path`: no other job can train there within the context. See `storage.claimed`."""
  with storage.claimed(path) if devices.is_first_host() else contextlib.nullcontext():
    yield


def copy_stderr(workdir: Path) -> None:
  """Copies all that this process writes to stderr from now on to logs/host_INDEX.log in `workdir`.

  Another process, `tee`, does it. So the last lines of a process that dies are there, too, and those of C++ code. To a
  bucket, the file is copied every half minute and when the process ends well; one that fails leaves what was copied.
  """
  folder = storage.Folder(workdir / "logs")
  file = folder.local / f"host_{devices.host_index()}.log"
  if storage.in_bucket(workdir):
    with contextlib.suppress(FileNotFoundError):  # the log goes on where that of an earlier process ended
      file.write_bytes((workdir / "logs" / file.name).read_bytes())
  # A scheduler sends its signals to all processes of a job: tee must outlive this one.
  command = ["sh", "-c", 'trap "" TERM INT HUP; exec tee -a "$0"', str(file)]
  tee = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=sys.stderr.fileno(), stderr=subprocess.DEVNULL)
  assert tee.stdin is not None
  sys.stderr.flush()
  os.dup2(tee.stdin.fileno(), sys.stderr.fileno())
  tee.stdin.close()
  folder.keep_in_sync()


def note_command(workdir: Path, argv: Sequence[str]) -> None:
  """Adds a command to commands.txt in `workdir`: one line for each start of the run, with its time."""
  program, *arguments = (text.encode(errors="replace").decode() for text in argv)
  line = f"{time.strftime('%Y-%m-%d %H:%M:%S')}  {program.removeprefix('./')} {shlex.join(arguments)}\n"
  file = workdir / "commands.txt"
  known = file.read_text() if file.is_file() else ""
  save_atomically(file, lambda out: out.write((known + line).encode()))


def commands(workdir: Path) -> list[str]:
  """Returns the lines of commands.txt in `workdir`."""
  file = workdir / "commands.txt"
  return file.read_text().splitlines() if file.is_file() else []


def set_aside(workdir: Path, names: Sequence[str], when: str = "") -> None:
  """Renames results in `workdir`, files and folders, so that new ones do not replace them.

  So samples.png becomes samples_2026-11-29_120000.png.

  `when` is the time in their new names, by default that of the first file that exists.
  """
  found = [workdir / name for name in names if (workdir / name).exists()]
  if not found:
    return
  stamp = _stamp(when or time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(storage.changed(found[0]))))
  free = lambda suffix: not any((workdir / f"{file.stem}_{suffix}{file.suffix}").exists() for file in found)
  suffix = next(name for i in itertools.count(1) if free(name := stamp if i == 1 else f"{stamp}_{i}"))
  for file in found:
    file.rename(workdir / f"{file.stem}_{suffix}{file.suffix}")
  log.info("Kept the earlier %s, of other settings, as *_%s.", ", ".join(f.name for f in found), suffix)


def _stamp(moment: str) -> str:
  """Returns a time as part of a file name: "2026-11-29 12:00:00 UTC" becomes 2026-11-29_120000."""
  return moment[:19].replace(" ", "_").replace(":", "")


def write_json(path: Path, value: Any) -> None:
  """Writes JSON atomically. Infinities become texts, such as "inf", and NaN null: JSON has no such numbers."""
  text = json.dumps(_as_json(value), indent=2, allow_nan=False)
  save_atomically(path, lambda file: file.write((text + "\n").encode()))


def _as_json(value: Any) -> Any:
  if isinstance(value, Mapping):
    return {key: _as_json(part) for key, part in value.items()}
  if isinstance(value, float):
    return value if math.isfinite(value) else None if math.isnan(value) else str(value)
  if isinstance(value, str | int | bool) or value is None:
    return value
  return [_as_json(part) for part in value]


def check_data(config: ConfigDict, workdir: Path, sources: dict[str, Source], *, trains: bool) -> dict:
  """Compares the data with data.json, which describes the data that the run in `workdir` began with.

  `sources` are splits by name. With `trains`, data.json is written. Runs without checkpoints accept any data. Returns
  {split: {"examples": number, "identity": text}}.

  Raises:
    BadInput: if the examples of a split are others, or in another order, unless data.accept_changes is set.
  """
  file, kept = workdir / "data.json", {}
  if file.is_file() and checkpoints.exists(str(workdir)):
    with foreign(str(file), "Remove it if the data are the same as before."):
      splits = json.loads(file.read_text())["splits"]
      kept = {name: (int(split["examples"]), str(split["identity"])) for name, split in splits.items()}
  found = {name: {"examples": len(source), "identity": identity(source)} for name, source in sources.items()}
  changes = [
    f"{name} had {kept[name][0]:,} examples and has {now['examples']:,}"
    + (", not the same ones" if kept[name][0] == now["examples"] else "")
    for name, now in found.items()
    if name in kept and kept[name][1] != now["identity"]
  ]
  if changes:
    message = (
      f"The data are not those that the run in {str(workdir)!r} began with: {'; '.join(changes)}. Held-out examples "
      "may have been trained on"
    )
    if not config.data.accept_changes:
      raise BadInput(
        f"{message}. Restore the data, start in another --workdir, or go on with --config.data.accept_changes=True."
      )
    log.warning("%s (data.accept_changes=True).", message)
  if trains and devices.is_first_host():
    write_json(
      file, {"dataset": config.data.dataset, "splits": found, "classes": list(getattr(sources["train"], "names", ()))}
    )
  return found


# Values of config.data that are computed from the data when a run starts.
_DESCRIPTION = ("shape", "mean", "std", "condition_shape", "condition_mean", "condition_std")


def recalled(config: ConfigDict, workdir: str) -> ConfigDict:
  """Returns `config` with the description of the arrays that the run in `workdir` began with, if it did.

  So the scaling of the data stays that of the training, and the data need not be there anymore for sampling.
  """
  if config.data.dataset != "array" or config.data.shape or not workdir:
    return config
  file = storage.path_of(workdir) / "config.json"
  if not (file.is_file() and checkpoints.exists(workdir)):
    return config
  with foreign(str(file), "It is no config of a run: remove it."):
    kept = json.loads(file.read_text())["data"]
    known = {name: tuple(kept[name]) for name in _DESCRIPTION}
    known["levels"] = kept["levels"]
  # Values that are not the defaults: a config file without the flags of the training takes the training's scaling.
  given = {"levels": config.data.levels, "standardize": None if config.data.standardize else False}
  for name, value in given.items():
    if value is not None and value != kept.get(name, value):
      raise BadInput(
        f"data.{name}={value} was {kept[name]} when the run in {workdir!r} began, and its scaling stays. Leave it out, "
        "or give another --workdir."
      )
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked():
    for name, value in known.items():
      if not (name == "levels" and value is None):
        config.data[name] = value
  return config


def all_class_names(workdir: Path) -> list[str]:
  """Returns the names of the classes of a run's data, from data.json in `workdir`; [] if it has none."""
  names: Any = None
  with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
    names = json.loads((workdir / "data.json").read_text())["classes"]
  return names if isinstance(names, list) and all(isinstance(n, str) for n in names) else []


def class_names(workdir: Path, count: int) -> list[str]:
  """Returns the names of `count` classes, from data.json in `workdir`; their numbers if it has none."""
  names = all_class_names(workdir)
  return names[:count] if len(names) >= count else [str(i) for i in range(count)]


def write_config(config: ConfigDict, workdir: Path) -> None:
  """Writes the resolved config to config.json in `workdir`."""
  write_json(workdir / "config.json", as_dict(config))
