"""Folders of images, and zip files of them: which files are examples, of which class, and in which split."""

import collections
import hashlib
import io
import itertools
import json
import logging
import math
import os
import pathlib
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_sde.errors import ScoreSDEError
from score_sde.run.config.errors import BadInput, foreign
from score_sde.run.config.sections import height_and_width
from score_sde.run.data.files import IMAGE_SUFFIXES, Notes, as_array, check_image_options, fit, fitted
from score_sde.run.data.sources import Arrays, Lazy, Source, held_out_count

log = logging.getLogger(__name__)

# Folders that systems and tools leave beside images; so are those that begin with a dot.
_LITTER = ("__MACOSX", "@eaDir", "System Volume Information")

# Names of folders that are splits and not classes, if all images are in such folders. The first of _HELD_OUT that
# exists is the test split.
_TRAIN, _HELD_OUT = "train", ("test", "val", "valid", "validation")

# The largest file in a zip that is read, in bytes: a few bytes of a zip may stand for a thousand times as many.
_LARGEST = 1 << 30

# Files that are decoded together.
_CHUNK = 4096


class DataVanished(ScoreSDEError, OSError):
  """Error: an example could be read when the run started, and no longer can."""


class Folder(NamedTuple):
  """Files of a folder or a zip file.

  Attributes:
    root: the folder or the zip file.
    names: names of all its files, relative to it, with "/", sorted.
    open: from a name to a path or an open file.
    sizes: from a name to its size in bytes.
  """

  root: pathlib.Path
  names: list[str]
  open: Callable[[str], pathlib.Path | BinaryIO]
  sizes: Callable[[str], int]


class Layout(NamedTuple):
  """Layout: the images of a folder, sorted by name, and the classes and splits that their folders give.

  Attributes:
    names: names of the images.
    labels: the class of each.
    classes: names of the classes.
    train, test: indices of the images of the two splits.
    left_out: {reason: number} of the other files.
  """

  names: list[str]
  labels: np.ndarray
  classes: tuple[str, ...]
  train: np.ndarray
  test: np.ndarray
  left_out: dict[str, int]


def _files(root: pathlib.Path) -> Iterator[str]:
  """Yields all files below `root`. Follows links to folders, except to a folder that they are in.

  A hidden or system folder is not entered: it is yielded as if it were one file.
  """

  def walk(folder: pathlib.Path, above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    try:
      status, entries = folder.stat(), sorted(os.scandir(folder), key=lambda e: e.name)
    except OSError as error:
      log.warning("The folder %s cannot be read (%s) and is left out.", folder, error.strerror)
      return
    here = (status.st_dev, status.st_ino)
    if here in above:
      return
    for entry in entries:
      path = folder / entry.name
      if _is_litter(entry.name):
        yield path.relative_to(root).as_posix()
        continue
      if entry.is_dir():
        yield from walk(path, (*above, here))
      elif entry.is_file():
        yield path.relative_to(root).as_posix()

  yield from walk(root, ())


def open_folder(path: str, key: str = "data.path") -> Folder:
  """Opens a folder or a zip file of images. `key` names it in messages.

  Raises:
    BadInput: if there is none at `path`, or the zip file is damaged.
  """
  root = pathlib.Path(path)
  if path and root.is_dir():
    return Folder(root, sorted(_files(root)), root.__truediv__, lambda name: (root / name).stat().st_size)
  if not path or not (root.is_file() and root.suffix.lower() == ".zip"):
    raise BadInput(f"{key}={path!r} is no existing folder of images and no .zip of them.")
  with foreign(f"{key}={path!r}", "It is no zip file, or a damaged one: copy it again."):
    archive = zipfile.ZipFile(root)
    infos = {info.filename: info for info in archive.infolist() if not info.is_dir()}

  def read(name: str) -> BinaryIO:
    if infos[name].file_size > _LARGEST:
      raise ValueError(f"larger than {_LARGEST >> 30} GiB")
    return io.BytesIO(archive.read(infos[name]))

  return Folder(root, sorted(infos), read, lambda name: infos[name].file_size)


def _is_litter(name: str) -> bool:
  """Returns True for a hidden file, or one in a hidden or system folder."""
  return any(part.startswith(".") or part in _LITTER for part in name.split("/"))


def _is_image(name: str) -> bool:
  return name.lower().endswith(IMAGE_SUFFIXES)


def _images(names: list[str]) -> list[str]:
  """Returns the names of image files, without hidden and system ones."""
  return [n for n in names if _is_image(n) and not _is_litter(n)]


def _class_of(name: str) -> str:
  """Returns the folder that gives the class: the first one, or "" for a file that is in none."""
  return name.split("/")[0] if "/" in name else ""


def _common_folder(names: list[str]) -> str:
  """Returns the one folder that holds all images of a zip file, with "/", or ""."""
  tops = set(map(_class_of, names))
  return f"{tops.pop()}/" if len(tops) == 1 and tops != {""} else ""


def _labels_of(folder: Folder, prefix: str) -> dict[str, int] | None:
  """Returns {name: class} of a dataset.json of StyleGAN and EDM, {"labels": [[name, class], ...]}; None without one.

  It is empty for a set without classes, {"labels": null}.
  """
  file = f"{prefix}dataset.json"
  if file not in folder.names:
    return None
  with foreign(f"{folder.root}/{file}", 'Expected {"labels": [["NAME", CLASS], ...]}.'):
    opened = folder.open(file)
    text = opened.read_bytes() if isinstance(opened, pathlib.Path) else opened.read()
    labels = json.loads(text)["labels"]
    if labels is None:  # no classes: their subfolders are only parts of the set
      return {}
    found = {f"{prefix}{name}": label for name, label in labels}
    if not all(isinstance(label, int) and 0 <= label < 2**31 for label in found.values()):
      raise ValueError("a class is no integer of 0 or more")
    return found


def layout(folder: Folder) -> Layout:
  """Finds out which files are images, their classes and their splits.

  Classes are those of dataset.json (none, if its labels are null), or else the first level of subfolders. If all images
  are in folders named train, val (valid, validation) and test, these are the splits: test, or else val, is held out.
  Otherwise a fixed tenth of each class is held out, at most 1,000 images in all, chosen by a hash of their names.

  Raises:
    BadInput: if there are no images, or too few of them.
  """
  files = [n for n in folder.names if not _is_litter(n)]
  images = _images(files)
  suffix = lambda name: pathlib.PurePosixPath(name).suffix.lower() or name
  others = collections.Counter(suffix(n) for n in files if not _is_image(n) and not n.endswith("dataset.json"))
  left_out = {f"{kind} files": count for kind, count in others.most_common(8)}
  if hidden := len(folder.names) - len(files):
    left_out["hidden or system files and folders"] = hidden
  if not images:
    found = f": {', '.join(sorted(others)[:8])}" if others else ""
    raise BadInput(
      f"data.path={str(folder.root)!r} holds no images (looked for {' '.join(IMAGE_SUFFIXES)}; 0 of {len(files)} files "
      f"match{found}). Point --config.data.path at the folder that holds them."
    )
  prefix = _common_folder(images) if folder.root.is_file() else ""
  if prefix.rstrip("/").lower() in (_TRAIN, *_HELD_OUT):
    prefix = ""
  short = [n.removeprefix(prefix) for n in images]
  tops = {_class_of(n).lower() for n in short}
  split_folders = _TRAIN in tops and tops <= {_TRAIN, *_HELD_OUT}
  inner = [n.split("/", 1)[1] if split_folders else n for n in short]
  given = _labels_of(folder, prefix)
  if given is None:
    of_image = [_class_of(n) for n in inner]
    classes = tuple(sorted(set(of_image)))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[c] for c in of_image], np.int32)
  elif not given:
    labels, classes = np.zeros(len(images), np.int32), ("",)
  else:
    missing = [n for n in images if n not in given]
    if missing:
      raise BadInput(
        f"{folder.root}/{prefix}dataset.json has no class for {len(missing)} of {len(images)} images, such as "
        f"{missing[0]}. Add them, or remove the file."
      )
    labels = np.array([given[n] for n in images], np.int32)
    classes = tuple(map(str, range(int(labels.max()) + 1)))

  held_out = next((name for name in _HELD_OUT if name in tops), "") if split_folders else ""
  if held_out:
    split = np.array([_class_of(n).lower() for n in short])
    train, test = np.flatnonzero(split == _TRAIN), np.flatnonzero(split == held_out)
    for name in sorted(tops - {_TRAIN, held_out}):
      left_out[f"images of {name}/"] = int((split == name).sum())
  else:
    if not held_out_count(len(images)):
      raise BadInput(
        f"data.path={str(folder.root)!r} holds {len(images)} images, and at least 10 are needed, because a tenth is "
        "held out of training. Add images, or put them into folders train/ and test/."
      )
    is_test = _held_out(inner, labels)
    train, test = np.flatnonzero(~is_test), np.flatnonzero(is_test)
  return Layout(images, labels, classes, train, test, left_out)


def _held_out(names: list[str], labels: np.ndarray) -> np.ndarray:
  """Chooses a tenth of each class, (N,) bool, so that files that are added later move few others between the splits.

  In each class, the images with the smallest hashes of their names are held out. A class of two or more has at least
  one in each split, as far as the total allows.
  """
  total, chosen = held_out_count(len(names)), np.zeros(len(names), bool)
  place = np.array([hashlib.blake2b(n.encode(errors="surrogateescape"), digest_size=8).hexdigest() for n in names])
  members = {c: np.flatnonzero(labels == c) for c in np.unique(labels)}
  exact = {c: total * len(m) / len(names) for c, m in members.items()}
  quota = {c: int(q) for c, q in exact.items()}
  # What rounding has left goes first to classes that have none, then to the largest fractions.
  waiting = sorted(members, key=lambda c: (quota[c] > 0 or len(members[c]) < 2, quota[c] - exact[c]))
  for c in itertools.islice(itertools.cycle(waiting), total - sum(quota.values())):
    quota[c] += 1
  for c, indices in members.items():
    chosen[indices[np.argsort(place[indices])][: quota[c]]] = True
  return chosen


def _decoded(folder: Folder, name: str, change: Callable[..., np.ndarray]) -> np.ndarray | str:
  """Returns `change` of an image, or the reason why it cannot be read."""
  try:
    with Image.open(folder.open(name)) as image:
      return change(image)
  except Image.DecompressionBombError:
    return f"more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels, Pillow's limit: make it smaller"
  except Exception as error:  # decoders of damaged files raise errors of every kind
    return (str(error).splitlines() or [type(error).__name__])[0].replace(str(folder.root), "")[:60]


def _check(failures: dict[str, str], count: int, where: str, skip: bool) -> None:
  """Raises BadInput for images that cannot be read, or logs a warning if they are skipped."""
  if not failures:
    return
  some = ", ".join(f"{name} ({reason})" for name, reason in itertools.islice(failures.items(), 5))
  message = f"{len(failures)} of {count} images of {where} cannot be read: {some}" + ", ..." * (len(failures) > 5)
  if not skip or len(failures) == count:
    raise BadInput(f"{message}. Repair or remove them, or skip them with --config.data.on_corrupt=skip.")
  log.warning("%s. Skipped.", message)


def folder(config: ConfigDict, split: str) -> Source:
  """Reads the images of a folder and its subfolders, or of a .zip, see `layout`.

  Every file of the split is decoded once before training starts, so that an unreadable one is found early. Images that
  fit into data.cache_gib stay in memory, unless they are cropped at random.
  """
  check_image_options(config.data)
  files = open_folder(config.data.path)
  found = layout(files)
  if found.left_out and split == "train":
    log.info("Left out of %s: %s.", files.root, ", ".join(f"{n} {what}" for what, n in found.left_out.items()))
  # Parts of the test split (eval.num_examples, training.eval_freq) then have examples of all classes.
  chosen = found.train if split == "train" else np.random.default_rng(0).permutation(found.test)
  names, labels = [found.names[i] for i in chosen], found.labels[chosen]
  shape = (*height_and_width(config.data), config.data.num_channels)
  random = config.data.resize == "random_crop" and split == "train"
  in_memory = not random and len(found.names) * math.prod(shape) <= config.data.cache_gib * 2**30
  images = np.empty((len(names) if in_memory else 0, *shape), np.uint8)
  changes: list[Notes] = [[] for _ in names]

  def check(i: int) -> str | None:
    image = _decoded(files, names[i], lambda image: fitted(image, config.data, None, changes[i]))
    if isinstance(image, str):
      return image
    if in_memory:
      images[i] = image
    return None

  failures: dict[str, str] = {}
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for low in range(0, len(names), _CHUNK):
      part = range(low, min(low + _CHUNK, len(names)))
      failures |= {names[i]: why for i, why in zip(part, pool.map(check, part), strict=True) if why}
      if len(names) > _CHUNK:
        log.info("Read %d of %d images of %s.", part.stop, len(names), files.root)
  _check(failures, len(names), str(files.root), config.data.on_corrupt == "skip")
  if split == "train":
    _tell(changes, str(files.root))
  good = [i for i, name in enumerate(names) if name not in failures]
  identity = hashlib.sha256()
  for i in sorted(good, key=names.__getitem__):
    identity.update(f"{names[i]} {files.sizes(names[i])} {labels[i]}\n".encode(errors="surrogateescape"))
  if failures:  # moves the images together, in place
    for to, i in enumerate(good):
      if in_memory:
        images[to] = images[i]
    images, labels, names = images[: len(good)], labels[good], [names[i] for i in good]
  named = found.classes if len(found.classes) > 1 else ()  # a single class has no name
  known: dict[str, Any] = {"names": named, "examples": tuple(names), "identity": identity.hexdigest()[:16]}
  if in_memory:
    return Arrays(images, labels, **known)

  def read(i: int, rng: np.random.Generator | None = None) -> tuple[np.ndarray, int]:
    image = _decoded(files, names[i], lambda image: fitted(image, config.data, rng))
    if isinstance(image, str):
      raise DataVanished(
        f"{files.root / names[i]} could be read when the run started and no longer can ({image}). Restore it and "
        "repeat the command: it resumes."
      )
    return image, int(labels[i])

  return Lazy(len(names), read, len(found.classes), random=random, **known)


# Changes that are told if they concern this share of the images. Those of the second line are always told.
_MANY = 0.2
_ALWAYS = ("first frame of an animation", "colour profile ignored")


def _tell(changes: list[Notes], where: str) -> None:
  """Logs what was changed in a fifth of the images or more, and which parts of others are left out."""
  counts = collections.Counter(change for notes in changes for change in set(notes))
  told = [
    f"{what}: {count:,}" for what, count in counts.most_common() if count >= _MANY * len(changes) or what in _ALWAYS
  ]
  if told:
    log.info("Of %s images of %s: %s.", f"{len(changes):,}", where, "; ".join(told))


def read_images(path: str, size: tuple[int, int] | None, channels: int, batch: int) -> Iterator[np.ndarray]:
  """Yields all images of a folder or a .zip, uint8 (B, H, W, channels), whatever their classes and splits.

  With `size`, (height, width), the central part of each is resized to it. Without it they keep their size,
  which must be one.

  Raises:
    BadInput: if there are no images, one cannot be read, or their sizes differ.
  """
  files = open_folder(path, "The path of the images")
  names = _images(files.names)
  if not names:
    raise BadInput(f"{path!r} holds no images (looked for {' '.join(IMAGE_SUFFIXES)}).")
  read = lambda name: _decoded(files, name, lambda image: as_array(image, size, channels))
  shape: tuple[int, ...] = ()
  with ThreadPoolExecutor(os.cpu_count()) as pool:
    for low in range(0, len(names), batch):
      images = dict(zip(names[low : low + batch], pool.map(read, names[low : low + batch]), strict=True))
      for name, image in images.items():
        if isinstance(image, str):
          raise BadInput(f"{files.root / name} cannot be read: {image}.")
        shape = shape or image.shape
        if image.shape != shape:
          raise BadInput(
            f"{path!r} holds images of several sizes, such as {shape} and {image.shape} ({name}). Give --image_size."
          )
      yield np.stack(list(images.values()))  # pyright: ignore[reportArgumentType]


def read_inputs(config: ConfigDict) -> list[tuple[str, np.ndarray]]:
  """Returns (name, image after `fit`) of the first guidance.num_inputs images of guidance.input, sorted by name.

  guidance.input is an image file, or a folder or a .zip of them.

  Raises:
    BadInput: if there is no image, or one cannot be read.
  """
  root = pathlib.Path(config.guidance.input)
  if root.is_file() and root.suffix.lower() in IMAGE_SUFFIXES:
    files = Folder(root.parent, [root.name], root.parent.__truediv__, lambda _: 0)
  else:
    files = open_folder(config.guidance.input, "guidance.input")
  names = _images(files.names)
  if not names:
    raise BadInput(f"guidance.input={str(root)!r} is no image and no folder of images ({' '.join(IMAGE_SUFFIXES)}).")
  names = names[: config.guidance.num_inputs]
  images = {name: _decoded(files, name, lambda image: fit(image, config)) for name in names}
  bad = {name: why for name, why in images.items() if isinstance(why, str)}
  if bad:
    some = ", ".join(f"{name} ({why})" for name, why in itertools.islice(bad.items(), 5))
    raise BadInput(f"{len(bad)} of {len(names)} images of guidance.input={str(root)!r} cannot be read: {some}.")
  unique: list[str] = []
  for name in images:
    flat = "_".join(pathlib.PurePosixPath(name).with_suffix("").parts)
    candidates = (flat if i == 1 else f"{flat}_{i}" for i in itertools.count(1))
    unique.append(next(candidate for candidate in candidates if candidate not in unique))
  return [(name, image) for name, image in zip(unique, images.values(), strict=True) if not isinstance(image, str)]
