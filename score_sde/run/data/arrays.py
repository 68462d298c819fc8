"""Arrays of any shape: data.dataset=array reads .npy, .npz, .csv and .parquet files, and folders of .npy files."""

import dataclasses
import functools
import hashlib
import logging
import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde.run.config.errors import BadInput, foreign
from score_sde.run.config.plugins import is_plugin, load
from score_sde.run.data.sources import Arrays, Lazy, Source, as_stored, held_out_count, split_off

log = logging.getLogger(__name__)

TABLES = (".csv", ".parquet")
FORMATS = (".npy", ".npz", *TABLES)

# Bytes of examples that are checked together.
_CHUNK = 64 << 20

# Examples that stand for all in the statistics of a source of a user's own class.
_SAMPLED = 10_000

# Arrays of this size and larger get a name from their size and some examples, not from all bytes.
_LARGE = 1 << 30

_KINDS = "uint8, uint16 and floats"


@dataclasses.dataclass(frozen=True)
class Description:
  """Description of the examples of a data set, as resolved configs hold it (config.data).

  Attributes:
    shape: shape of one example, with the channels last.
    levels: levels of integers; None for floats.
    mean, std: of each channel, over the training examples; () for integers.
    condition_shape, condition_mean, condition_std: the same of the conditions; () without them.
  """

  shape: tuple[int, ...]
  levels: int | None
  mean: tuple[float, ...]
  std: tuple[float, ...]
  condition_shape: tuple[int, ...] = ()
  condition_mean: tuple[float, ...] = ()
  condition_std: tuple[float, ...] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
  """Content of a file: examples, and optionally labels and conditions, each along the first axis."""

  x: np.ndarray
  y: np.ndarray | None = None
  condition: np.ndarray | None = None
  names: tuple[str, ...] = ()  # of the classes
  columns: tuple[str, ...] = ()  # of a table


def array(config: ConfigDict, split: str) -> Source:
  """Reads the examples of data.path: points (N, D), series (N, L, C), images (N, H, W, C), volumes (N, D, H, W, C).

  data.path is one of

  - a .npy file, which is mapped into memory and not read at once;
  - a .npz file with `x`, and optionally `y` (classes), `condition`, and `x_test`, `y_test`, `condition_test`;
  - a .csv or .parquet table, of which data.columns are read (all columns of numbers, if unset), and data.label_column;
  - a folder of .npy files with one example each, whose subfolders are the classes;
  - FILE.py:FUNCTION, called with (config.data, split): it returns x, a dict of arrays such as those of a .npz, or an
    object as described in `own`.

  data.test_path, or the arrays `*_test`, are the test split. Without them a fixed tenth of the examples is.

  Raises:
    BadInput: for anything else; for values that are not finite, ragged shapes and constant columns.
  """
  d = config.data
  if is_plugin(d.path):
    return _of_function(d, split)
  tested = _sized(d.test_path or d.path, d, "data.test_path" if d.test_path else "data.path")
  if d.test_path and split == "test":
    whole = _sized(d.path, d, "data.path")("", None)
    names, given = getattr(whole, "names", ()), f"data.test_path={d.test_path!r}"
    return _renumbered(tested("", None), names, given, config.model.num_classes > 0)
  reader = tested if not d.test_path else _sized(d.path, d, "data.path")
  return reader("_test" if split == "test" else "", None if d.test_path else split)


def _sized(path: str, d: ConfigDict, key: str) -> Callable[[str, str | None], Source]:
  """Returns (suffix of the arrays' names, split or None for all) -> source, for the file or folder `path`."""
  root = pathlib.Path(path)
  if not path or not root.exists():
    raise BadInput(f"{key}={path!r} does not exist. Give a file ({', '.join(FORMATS)}) or a folder of .npy files.")
  if root.is_dir():
    return lambda _, split: _of_folder(root, key, d.cache_gib, split)
  if root.suffix.lower() not in FORMATS:
    raise BadInput(f"{key}={path!r} is no array: give a file ({', '.join(FORMATS)}) or a folder of .npy files.")
  return lambda suffix, split: _of_file(root, key, tuple(d.columns), d.label_column, suffix, split)


def _renumbered(source: Any, names: tuple[str, ...], given: str, conditional: bool) -> Any:
  """Returns a test split whose classes have the numbers of the training split, which has the classes `names`."""
  if not names or source.names == names:
    return source
  if not source.names:
    if conditional and source.classes == 1:
      raise BadInput(f"{given} has no classes, and data.path has {len(names)}: put its examples into such folders.")
    return source
  unknown = sorted(set(source.names) - set(names))
  if unknown:
    raise BadInput(f"{given} has the classes {', '.join(unknown)}, which data.path does not have.")
  number = np.array([names.index(name) for name in source.names], np.int32)
  if isinstance(source, Arrays):
    return dataclasses.replace(source, label=number[source.label], names=names)

  def read(i: int, *rest: Any) -> tuple[np.ndarray, int]:
    example, label = source.read(i, *rest)
    return example, int(number[label])

  return dataclasses.replace(source, read=read, classes=len(names), names=names)


# --- files ------------------------------------------------------------------------------------------------------------


@functools.lru_cache(maxsize=4)
def _read(path: pathlib.Path, changed: float, key: str, columns: tuple[str, ...], label: str) -> dict[str, Arrays]:
  """Returns {"": training or all examples, "_test": test examples, if the file has them}, checked."""
  given = f"{key}={str(path)!r}"
  return {end: _checked(file, given) for end, file in _files(path, given, columns, label).items()}


def _files(path: pathlib.Path, given: str, columns: tuple[str, ...], label: str) -> dict[str, _File]:
  suffix = path.suffix.lower()
  if suffix in TABLES:
    with foreign(given, "Write the table again: a header line, commas between columns, decimal points."):
      return {"": _table(path, given, columns, label)}
  if columns or label:
    raise BadInput(f"data.columns and data.label_column are for tables ({', '.join(TABLES)}), and {given} is none.")
  with foreign(given, "Arrays of objects and of ragged shapes are not accepted; all examples must have one shape."):
    if suffix == ".npy":
      return {"": _File(np.load(path, mmap_mode="r", allow_pickle=False))}
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
  return _named(arrays, given)


def _named(arrays: dict[str, np.ndarray], given: str) -> dict[str, _File]:
  known = [name + end for end in ("", "_test") for name in ("x", "y", "condition")]
  if len(arrays) == 1 and "x" not in arrays:
    arrays = {"x": next(iter(arrays.values()))}
  unknown = sorted(set(arrays) - set(known))
  if "x" not in arrays or unknown:
    raise BadInput(
      f"{given} has the arrays {', '.join(sorted(arrays))}. Name the examples x, classes y, conditions condition, and "
      "those of the test split x_test, y_test and condition_test."
    )
  ends = ("", "_test") if "x_test" in arrays else ("",)
  return {end: _File(arrays["x" + end], arrays.get("y" + end), arrays.get("condition" + end)) for end in ends}


def _table(path: pathlib.Path, given: str, columns: tuple[str, ...], label: str) -> _File:
  import pyarrow
  import pyarrow.csv
  import pyarrow.parquet

  table = (pyarrow.csv.read_csv if path.suffix.lower() == ".csv" else pyarrow.parquet.read_table)(path)
  columns = tuple(map(str, columns))  # names such as 1 and 2
  if len(columns) == 1 and columns[0] not in table.column_names:  # --config.data.columns=height,width
    columns = tuple(name.strip() for name in columns[0].split(","))
  unknown = [name for name in (*columns, *([label] if label else [])) if name not in table.column_names]
  if unknown:
    raise BadInput(f"{given} has no column {', '.join(unknown)}. Its columns are {', '.join(table.column_names)}.")
  of_numbers = [
    field.name for field in table.schema
    if pyarrow.types.is_integer(field.type) or pyarrow.types.is_floating(field.type) or
    pyarrow.types.is_boolean(field.type) or pyarrow.types.is_decimal(field.type)
  ]  # fmt: skip
  rows = [name for name in of_numbers if re.fullmatch(r"|Unnamed: 0|__index_level_\d+__", name)]
  if rows and not columns:
    log.warning("The column %s of %s numbers the rows, and is left out. data.columns chooses others.", rows, path)
  chosen = columns or tuple(name for name in of_numbers if name not in (label, *rows))
  text = [name for name in chosen if name not in of_numbers]
  if text or not chosen:
    raise BadInput(f"{given}: the columns {', '.join(text)} hold no numbers. Choose others as data.columns.")
  if not columns:
    log.info("Columns of %s: %s.", path, ", ".join(chosen))
  if all(_is_number(name) for name in table.column_names):
    log.warning("The first line of %s is taken as the columns' names, and it holds only numbers.", path)
  x = np.stack([_floats(table[name]) for name in chosen], axis=1)
  if not label:
    return _File(x, columns=tuple(chosen))
  values = table[label].to_pylist()
  if None in values:
    raise BadInput(f"{given}: data.label_column={label!r} has no value in row {values.index(None)}.")
  names = tuple(sorted(set(values), key=lambda v: (str(type(v)), v)))
  number = {name: i for i, name in enumerate(names)}
  return _File(x, np.array([number[v] for v in values], np.int32), names=tuple(map(str, names)), columns=tuple(chosen))


def _is_number(text: str) -> bool:
  try:
    float(text)
  except ValueError:
    return False
  return True


def _floats(column: Any) -> np.ndarray:
  """Returns a table's column (N,) as floats; empty cells are NaN."""
  return np.array([np.nan if value is None else float(value) for value in column.to_pylist()], np.float64)


def _of_file(
  path: pathlib.Path, key: str, columns: tuple[str, ...], label: str, suffix: str, split: str | None
) -> Arrays:
  found = _read(path, path.stat().st_mtime, key, columns, label)
  if len(found) == 2:  # the file has its own splits
    return found[suffix]
  return found[""] if split is None else _part(found[""], split, f"{key}={str(path)!r}")


def _part(source: Arrays, split: str, given: str) -> Arrays:
  """Returns a fixed tenth of the examples for "test", and the others for "train"."""
  n = len(source)
  if not held_out_count(n):
    raise BadInput(
      f"{given} holds {n} examples, and at least 10 are needed, because a tenth is held out of training. Add examples, "
      "or give a file of test examples as data.test_path."
    )
  chosen = np.sort(split_off(n, split))
  take = lambda a: None if a is None else (a[chosen] if a.nbytes < _LARGE else _Rows(a, chosen))
  identity = f"{source.identity} {split}" if source.identity else ""
  return dataclasses.replace(
    source, image=take(source.image), label=source.label[chosen], condition=take(source.condition), identity=identity
  )


class _Rows:
  """Some rows of an array that is too large to copy."""

  def __init__(self, array: np.ndarray, rows: np.ndarray):
    self.array, self.rows = array, rows
    self.shape, self.dtype, self.ndim = (len(rows), *array.shape[1:]), array.dtype, array.ndim
    self.nbytes = array.nbytes // max(len(array), 1) * len(rows)

  def __len__(self) -> int:
    return len(self.rows)

  def __getitem__(self, index: Any) -> np.ndarray:
    return self.array[self.rows[index]]


# --- checks -----------------------------------------------------------------------------------------------------------


def _chunks(x: Any) -> Iterator[tuple[int, np.ndarray]]:
  size = max(1, _CHUNK // max(1, x.nbytes // max(len(x), 1)))
  for low in range(0, len(x), size):
    yield low, np.asarray(x[low : low + size])


def _check_finite(x: Any, given: str, what: str, columns: tuple[str, ...] = ()) -> None:
  for low, part in _chunks(x) if x.dtype.kind == "f" else ():
    with np.errstate(over="ignore"):
      bad = ~np.isfinite(part.astype(np.float32))
    if bad.any():
      at = np.argwhere(bad)[0]
      place = f"column {columns[at[-1]]!r}" if columns else f"entry {tuple(int(i) for i in at[1:])}"
      raise BadInput(
        f"{given}: {what} of example {low + at[0]} is {part[tuple(at)]} at {place}; all values must be finite in "
        "float32. Remove or fill such examples."
      )


def _checked(file: _File, given: str) -> Arrays:
  """Returns the content of a file as a source. Raises BadInput for anything that cannot be trained on."""
  x = _kind_of(file.x, given, "x")
  if x.ndim == 1:
    x = x[:, None]
  if x.ndim > 5 or 0 in x.shape:
    raise BadInput(
      f"{given} has x of shape {x.shape}. Accepted are points (N, D), series (N, L, C), images (N, H, W, C) and "
      "volumes (N, D, H, W, C), with at least one example."
    )
  if x.ndim == 3 and x.dtype.kind == "u" and x.shape[2] > 16:
    what = "%s has x of shape %s: read as series of %d channels. Gray images have the shape (N, H, W, 1)."
    log.info(what, given, x.shape, x.shape[2])
  _check_finite(x, given, "x", file.columns)
  labels = np.zeros(len(x), np.int32)
  if file.y is not None:
    labels = np.asarray(file.y)
    if labels.shape != (len(x),) or labels.dtype.kind not in "iub" or labels.min(initial=0) < 0:
      raise BadInput(
        f"{given} has y of {labels.dtype}{list(labels.shape)}: classes must be integers from 0, ({len(x)},)."
      )
    labels = labels.astype(np.int32)
  condition = None
  if file.condition is not None:
    condition = _kind_of(file.condition, given, "condition")
    condition = condition[:, None] if condition.ndim == 1 else condition
    if len(condition) != len(x):
      raise BadInput(f"{given} has {len(x)} examples in x and {len(condition)} in condition.")
    _check_finite(condition, given, "condition")
  identity = _identity(x, labels, condition) if x.nbytes >= _LARGE else ""
  return Arrays(x, labels, file.names, identity=identity, condition=condition, columns=file.columns)


def _kind_of(x: np.ndarray, given: str, name: str) -> np.ndarray:
  if x.dtype in (np.uint8, np.uint16) or x.dtype.kind == "f":
    return x
  advice = "Save it as uint8, and set data.levels=2" if x.dtype == bool else "Save text and objects as numbers"
  if x.dtype.kind in "iu" and x.size:
    low, high = int(x.min()), int(x.max())
    fits = "uint8" if low >= 0 and high < 256 else "uint16" if low >= 0 and high < 65536 else ""
    advice = f"Its values run from {low} to {high}: save it " + (
      f"as {fits} for integers with levels, or as float32 for real numbers" if fits else "as float32"
    )
  raise BadInput(f"{given} has {name} of {x.dtype}{list(x.shape)}; accepted are {_KINDS}. {advice}.")


def _identity(*arrays: np.ndarray | None) -> str:
  found = hashlib.sha256()
  for a in arrays:
    if a is not None:
      found.update(f"{a.dtype}{a.shape}".encode())
      found.update(np.ascontiguousarray(a[np.unique(np.linspace(0, len(a) - 1, 64).astype(int))]).data)
  return found.hexdigest()[:16]


# --- folders and functions --------------------------------------------------------------------------------------------


def _of_folder(root: pathlib.Path, key: str, cache_gib: float, split: str | None) -> Source:
  """Reads a folder of .npy files with one example each. Its subfolders are classes."""
  given = f"{key}={str(root)!r}"
  files = sorted(p for p in root.rglob("*.npy") if not any(part.startswith(".") for part in p.relative_to(root).parts))
  if not files:
    raise BadInput(f"{given} holds no .npy files. For a folder of images use --config.data.dataset=folder.")
  tops = [p.relative_to(root).parts[0] if len(p.relative_to(root).parts) > 1 else "" for p in files]
  names = tuple(sorted(set(tops)))
  labels = np.array([names.index(top) for top in tops], np.int32)
  shapes: dict[tuple, pathlib.Path] = {}
  for file in files:
    with foreign(str(file), "It is no .npy file of numbers, or a damaged one."):
      x = np.load(file, mmap_mode="r", allow_pickle=False)
    shapes.setdefault((_kind_of(x[None], str(file), "x").dtype, x.shape), file)
    if len(shapes) > 1:
      (first, one), (second, other) = list(shapes.items())[:2]
      raise BadInput(
        f"{given} holds files of several shapes: {one.name} has {first[0]}{list(first[1])} and {other.name} "
        f"{second[0]}{list(second[1])}. All examples must have one; cut or pad them."
      )
  known: dict[str, Any] = {"names": names if len(names) > 1 else ()}
  sizes = "".join(f"{p.relative_to(root)} {p.stat().st_size}\n" for p in files)
  if sum(p.stat().st_size for p in files) <= cache_gib * 2**30:
    source = _checked(_File(np.stack([np.load(p, allow_pickle=False) for p in files]), labels, **known), given)
    return source if split is None else _part(source, split, given)
  chosen = np.arange(len(files)) if split is None else split_off(len(files), split)

  def read(i: int) -> tuple[np.ndarray, int]:
    x = as_stored(_kind_of(np.load(files[chosen[i]], allow_pickle=False), str(files[chosen[i]]), "x"))
    if x.dtype.kind == "f" and not np.isfinite(x).all():
      raise BadInput(f"{files[chosen[i]]} has values that are not finite. Remove or fill them.")
    return x, int(labels[chosen[i]])

  return Lazy(len(chosen), read, len(names), identity=_identity(np.frombuffer(sizes.encode(), np.uint8)), **known)


def _of_function(d: ConfigDict, split: str) -> Source:
  found = load("data.path", d.path, "from (config.data, split) to examples")(d, split)
  if hasattr(found, "gather"):
    return found
  given = f"data.path={d.path!r}, split {split!r},"
  arrays = found if isinstance(found, dict) else {"x": found}
  arrays = {name: np.asarray(a) for name, a in arrays.items() if a is not None}
  named = _named(arrays, given)
  return _checked(named["_test" if split == "test" and "_test" in named else ""], given)


# --- descriptions -----------------------------------------------------------------------------------------------------


def describe(source: Any, standardize: bool, name: str) -> Description:
  """Returns the description of training examples: their shape, and mean and standard deviation of each channel.

  Raises:
    BadInput: for a channel that is constant, which has no density.
  """
  first, columns = source.gather(np.array([0])), getattr(source, "columns", ())
  x = first["image"]
  levels = {np.dtype(np.uint8): 256, np.dtype(np.uint16): 65536}.get(x.dtype)
  mean = std = ()
  if levels is None and standardize:
    mean, std = _moments(source, "image")
    constant = [i for i, s in enumerate(std) if not s > 1e-7 * abs(mean[i])]
    if constant:
      names = ", ".join(repr(columns[i]) if columns else str(i) for i in constant[:8])
      raise BadInput(
        f"{name}: channel {names} is constant ({mean[constant[0]]:g}), so the data have no density. Leave it out"
        + (" of data.columns." if columns else ".")
      )
    coarse = [i for i, s in enumerate(std) if s < 2**-16 * abs(mean[i])]
    if coarse:
      log.warning(
        "%s: channel %s varies by %.2g around %.6g. float32 keeps few of its digits: subtract an offset first.",
        name, repr(columns[coarse[0]]) if columns else coarse[0], std[coarse[0]], mean[coarse[0]],
      )  # fmt: skip
  of_condition = {}
  if "condition" in first:
    c = first["condition"]
    its_mean, its_std = _moments(source, "condition")
    its_std = tuple(s if s > 1e-7 * abs(m) else 1.0 for m, s in zip(its_mean, its_std, strict=True))
    of_condition = {"condition_shape": c.shape[1:], "condition_mean": its_mean, "condition_std": its_std}
  return Description(x.shape[1:], levels, mean, std, **of_condition)


def _moments(source: Any, name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """Returns mean and standard deviation of each channel of the source's arrays `name`, in float64."""
  n = len(source)
  index = np.arange(n)
  if not isinstance(source, Arrays) and n > _SAMPLED:
    index = np.unique(np.linspace(0, n - 1, _SAMPLED).astype(int))
  flat = lambda part: np.asarray(source.gather(part)[name], np.float64).reshape(-1, channels)
  first = source.gather(index[:1])[name]
  channels = first.shape[-1]
  shift = flat(index[:1]).mean(axis=0)  # nothing cancels where the mean is large
  count, total, squares = 0, np.zeros(channels), np.zeros(channels)
  for part in np.array_split(index, max(1, len(index) * first.nbytes // _CHUNK)):
    values = flat(part) - shift
    count, total, squares = count + len(values), total + values.sum(axis=0), squares + (values**2).sum(axis=0)
  mean = total / count
  std = np.sqrt(np.maximum(squares / count - mean**2, 0))
  return tuple((mean + shift).tolist()), tuple(std.tolist())
