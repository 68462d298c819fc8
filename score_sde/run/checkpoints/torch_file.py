"""Reads PyTorch's files without PyTorch, and without running anything in them.

Such a file holds the raw bytes of the tensors, and a pickle, which can call any Python function. The unpickler below
knows only the instructions that torch.save writes, and builds only containers, numbers, strings and tensors. It drops
attributes that a file wants to set (the instruction BUILD, by which PyTorch stores `_metadata`), and refuses other
classes by name. Every number of a tensor lies within its storage, and arrays are views of the file's bytes, so that
memory is bounded by the size of the file.

Both formats are read: the zip archive (PyTorch 1.6 and newer) and the older stream, in which the models of the NCSN
papers were published.
"""

import collections
import io
import math
import mmap
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np

from score_sde.run.config import BadInput

_STORAGES = {
  "FloatStorage": np.dtype("<f4"),
  "DoubleStorage": np.dtype("<f8"),
  "HalfStorage": np.dtype("<f2"),
  "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
  "LongStorage": np.dtype("<i8"),
  "IntStorage": np.dtype("<i4"),
  "ShortStorage": np.dtype("<i2"),
  "CharStorage": np.dtype("i1"),
  "ByteStorage": np.dtype("u1"),
  "BoolStorage": np.dtype("?"),
}

_MAGIC = 0x1950A86A20F9469CFC6C


class _Storage:
  """Raw numbers of tensors. In the old format they come after the pickle that refers to them."""

  def __init__(self, dtype: np.dtype, values: np.ndarray | None = None):
    self.dtype, self.values = dtype, values


class _Tensor:
  """View of a storage. It becomes an array once the whole file is read."""

  def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self) -> np.ndarray:
    """Returns the tensor. Raises ValueError where a number of it would lie outside its storage."""
    if self.storage.values is None:
      raise ValueError("a tensor's storage is missing")
    whole = [self.offset, *self.shape, *self.strides]
    if len(self.shape) != len(self.strides) or not all(type(n) is int for n in whole) or min(self.shape, default=0) < 0:
      raise ValueError("a tensor has no sound shape")
    count, available = math.prod(self.shape), len(self.storage.values)
    if count == 0:
      return np.empty(self.shape, self.storage.dtype)
    reach = [(n - 1) * s for n, s in zip(self.shape, self.strides, strict=True)]
    first, last = self.offset + sum(min(r, 0) for r in reach), self.offset + sum(max(r, 0) for r in reach)
    if self.offset < 0 or first < 0 or last >= available or count > available:
      raise ValueError("a tensor reaches beyond its storage")
    size = self.storage.dtype.itemsize
    values = self.storage.values[self.offset :]
    return np.lib.stride_tricks.as_strided(values, self.shape, [s * size for s in self.strides], writeable=False)


def _rebuild_tensor(storage, offset, shape, strides, *_):
  if not isinstance(storage, _Storage):
    raise _Refused("it builds a tensor of something that is no storage")
  return _Tensor(storage, offset, tuple(shape), tuple(strides))


_ALLOWED: dict[tuple[str, str], Any] = {
  ("collections", "OrderedDict"): collections.OrderedDict,
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
  ("torch._utils", "_rebuild_tensor"): _rebuild_tensor,
  ("torch._utils", "_rebuild_parameter"): lambda tensor, *_: tensor,
  ("torch", "Size"): tuple,
} | {("torch", name): dtype for name, dtype in _STORAGES.items()}


class _Refused(Exception):
  pass


# Pickle instructions that torch.save writes. Those that make objects (INST, OBJ, NEWOBJ, extensions) are missing.
_INSTRUCTIONS = """
  PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 FLOAT BINFLOAT
  STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINBYTES SHORT_BINBYTES EMPTY_DICT EMPTY_LIST
  EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 DICT LIST APPEND APPENDS SETITEM SETITEMS PUT BINPUT LONG_BINPUT GET BINGET
  LONG_BINGET MEMOIZE GLOBAL STACK_GLOBAL REDUCE BUILD PERSID BINPERSID
"""


class _Unpickler(pickle._Unpickler):  # pyright: ignore[reportAttributeAccessIssue]  # the one in Python, a table of steps
  """Builds containers of Python, numbers, strings and tensors, and nothing else."""

  def __init__(self, file: Any, storage: Callable[[tuple], _Storage] | None = None):
    super().__init__(file, encoding="latin1")
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise _Refused(f"it asks for {module}.{name}, which is no part of a tensor; nothing of it was run") from None

  def persistent_load(self, pid: Any) -> _Storage:
    if self._storage is None or not isinstance(pid, tuple) or pid[0] != "storage":
      raise _Refused(f"it holds an object of unknown kind {pid!r:.60}")
    return self._storage(pid)


def _drop_state(unpickler: Any) -> None:
  """BUILD: takes the state off the stack and sets nothing."""
  unpickler.stack.pop()


def _refuse(_: Any) -> None:
  raise _Refused("it has an instruction that torch.save does not write; nothing of it was run")


_CODES = [getattr(pickle, name)[0] for name in _INSTRUCTIONS.split()]
_Unpickler.dispatch = (
  dict.fromkeys(range(256), _refuse)
  | {code: _Unpickler.dispatch[code] for code in _CODES}
  | {pickle.BUILD[0]: _drop_state}
)


def _read_zip(path: pathlib.Path) -> Any:
  with zipfile.ZipFile(path) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
    prefix = name.removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
      raise _Refused("its numbers are big-endian")
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
      raise _Refused("its parts are compressed, as torch.save never writes them")
    if sum(entry.file_size for entry in archive.infolist()) > path.stat().st_size:
      raise _Refused("its parts are larger than the file")
    storages: dict[str, _Storage] = {}

    def storage(identifier):
      _, dtype, key, _, count = identifier[:5]
      if not isinstance(dtype, np.dtype) or count < 0:
        raise _Refused("it holds a storage of no known type or size")
      if key not in storages:
        raw = archive.read(f"{prefix}data/{key}")
        storages[key] = _Storage(dtype, np.frombuffer(raw, dtype, count))
      return storages[key]

    return _Unpickler(io.BytesIO(archive.read(name)), storage).load()


def _read_stream(path: pathlib.Path) -> Any:
  # A memory map gives at most the bytes that are there; a file's own read(n) allocates n bytes first.
  with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as file:
    if _Unpickler(file).load() != _MAGIC:
      raise _Refused("it does not start as a file of PyTorch does")
    _Unpickler(file).load()  # protocol version
    if not _Unpickler(file).load().get("little_endian", True):
      raise _Refused("its numbers are big-endian")
    storages: dict[str, _Storage] = {}

    def storage(identifier):
      _, dtype, key, _, _, view = identifier[:6]
      if view is not None:
        raise _Refused("it holds a view of a storage, which PyTorch stopped writing in 2017")
      if not isinstance(dtype, np.dtype):
        raise _Refused("it holds a storage of no known type")
      return storages.setdefault(key, _Storage(dtype))

    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
      (count,) = struct.unpack("<q", file.read(8))
      entry = storages[key]
      if not 0 <= count * entry.dtype.itemsize <= len(file) - file.tell():
        raise _Refused(f"it holds a storage of {count} numbers, more than the file has")
      entry.values = np.frombuffer(file.read(count * entry.dtype.itemsize), entry.dtype, count)
    return content


def _with_arrays(value: Any, done: dict[int, Any]) -> Any:
  """Returns plain containers with arrays for tensors. `done` holds each object by its id: shared ones are made once."""
  if id(value) not in done:
    if isinstance(value, _Tensor):
      made = value.array()
    elif isinstance(value, dict):
      made = {k: _with_arrays(v, done) for k, v in value.items()}
    elif isinstance(value, (list, tuple)):
      made = [_with_arrays(v, done) for v in value]
    else:
      return value
    done[id(value)] = made
  return done[id(value)]


def read(path: str | pathlib.Path) -> Any:
  """Reads a file of torch.save. Returns read-only NumPy arrays for tensors, plain dicts and lists for containers.

  Raises:
    BadInput: for a file that is damaged, or asks for anything but tensors. Nothing in it is ever run.
  """
  path = pathlib.Path(path)
  try:
    return _with_arrays(_read_zip(path) if zipfile.is_zipfile(path) else _read_stream(path), {})
  except _Refused as error:
    raise BadInput(f"{str(path)!r} is refused as a PyTorch checkpoint: {error}.") from error
  except Exception as error:  # a damaged pickle raises anything
    raise BadInput(
      f"{str(path)!r} cannot be read as a PyTorch checkpoint ({type(error).__name__}: {error}). Is the download "
      "complete?"
    ) from error
