"""Reads PyTorch's files without PyTorch, and without running anything in them.

Such a file is a pickle, which can call any function of the reader's Python, beside the raw bytes of the tensors. Here
an unpickler that knows nothing but dictionaries and tensors reads it; whatever else a file asks for is refused by name.
Both formats are read: the zip archive (PyTorch 1.6 and newer) and the stream before it, in which the models of the NCSN
papers were published.
"""

import collections
import io
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
  """Raw numbers; in the old format they follow the pickle that speaks of them."""

  def __init__(self, dtype: np.dtype, values: np.ndarray | None = None):
    self.dtype, self.values = dtype, values


class _Tensor:
  """A view of a storage, made an array once everything is read."""

  def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]):
    self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

  def array(self) -> np.ndarray:
    values = self.storage.values[self.offset :]
    last = sum((n - 1) * s for n, s in zip(self.shape, self.strides, strict=True))
    if min(self.shape, default=1) > 0 and not 0 <= last < len(values):
      raise ValueError("a tensor reaches beyond its storage")
    size = self.storage.dtype.itemsize
    return np.lib.stride_tricks.as_strided(values, self.shape, [s * size for s in self.strides]).copy()


def _rebuild_tensor(storage, offset, shape, strides, *_):
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


class _Unpickler(pickle.Unpickler):
  """Builds containers of Python, numbers, strings and tensors, and nothing else."""

  def __init__(self, file: io.BufferedIOBase, storage: Callable[[tuple], _Storage] | None = None):
    super().__init__(file, encoding="latin1")
    self._storage = storage

  def find_class(self, module: str, name: str) -> Any:
    try:
      return _ALLOWED[module, name]
    except KeyError:
      raise _Refused(f"it asks for {module}.{name}, which is no part of a tensor; nothing of it was run") from None

  def persistent_load(self, identifier: tuple) -> _Storage:
    if self._storage is None or identifier[0] != "storage":
      raise _Refused(f"it holds an object of unknown kind {identifier[0]!r}")
    return self._storage(identifier)


def _read_zip(path: pathlib.Path) -> Any:
  with zipfile.ZipFile(path) as archive:
    (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl") or n == "data.pkl"]
    prefix = name.removesuffix("data.pkl")
    if f"{prefix}byteorder" in archive.namelist() and archive.read(f"{prefix}byteorder") != b"little":
      raise _Refused("its numbers are big-endian")
    storages: dict[str, _Storage] = {}

    def storage(identifier):
      _, dtype, key, _, count = identifier[:5]
      if key not in storages:
        raw = archive.read(f"{prefix}data/{key}")
        storages[key] = _Storage(dtype, np.frombuffer(raw, dtype, count))
      return storages[key]

    return _Unpickler(io.BytesIO(archive.read(name)), storage).load()


def _read_stream(path: pathlib.Path) -> Any:
  with path.open("rb") as file:
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
      return storages.setdefault(key, _Storage(dtype))

    content = _Unpickler(file, storage).load()
    for key in _Unpickler(file).load():
      (count,) = struct.unpack("<q", file.read(8))
      entry = storages[key]
      entry.values = np.frombuffer(file.read(count * entry.dtype.itemsize), entry.dtype, count)
    return content


def _with_arrays(value: Any) -> Any:
  if isinstance(value, _Tensor):
    return value.array()
  if isinstance(value, dict):
    return {k: _with_arrays(v) for k, v in value.items()}
  if isinstance(value, (list, tuple)):
    return [_with_arrays(v) for v in value]
  return value


def read(path: str | pathlib.Path) -> Any:
  """What torch.save wrote, with NumPy arrays for tensors and plain dicts and lists for containers.

  Raises:
    BadInput: for a file that is damaged, or asks for anything but tensors. Nothing in it is ever run.
  """
  path = pathlib.Path(path)
  try:
    return _with_arrays(_read_zip(path) if zipfile.is_zipfile(path) else _read_stream(path))
  except _Refused as error:
    raise BadInput(f"{str(path)!r} is refused as a PyTorch checkpoint: {error}.") from error
  except Exception as error:  # a damaged pickle raises anything
    raise BadInput(
      f"{str(path)!r} cannot be read as a PyTorch checkpoint ({type(error).__name__}: {error}). Is the download "
      "complete?"
    ) from error
