"""Feature extractors, from uint8 images to vectors, and the reference statistics that samples are compared with.

There are two extractors: Inception, for natural images in color, and a classifier trained on the data
(`configs/classifier/`), which tells more about gray or small images.
"""

import dataclasses
import functools
import hashlib
import logging
import os
import pathlib
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import Array
from score_sde.metrics import Moments
from score_sde.models.inception import Inception, from_pytorch
from score_sde.run import checkpoints, data, devices
from score_sde.run.checkpoints import torch_file
from score_sde.run.classifiers import load_classifier
from score_sde.run.config import BadInput, resolve
from score_sde.run.config.errors import foreign
from score_sde.run.report.progress import Bar
from score_sde.run.storage import save_atomically
from score_sde.run.workdir import make_file

log = logging.getLogger(__name__)

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# Noise level sigma / alpha that a classifier is given with clean images.
LEAST_NOISE = 0.01

# Images per device and call: Inception needs 10 MiB for each.
AT_ONCE = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
  """Feature extractor: computes features and class logits of images on all devices.

  Attributes:
    name: identifies the network and its weights. Statistics of another extractor are refused.
    run: (variables, images (B, H, W, C) uint8) -> (features (B, D), logits (B, K)).
    variables: weights of the network, as Flax variables.
  """

  name: str
  run: Callable[[Any, Array], tuple[Array, Array]]
  variables: Any

  @functools.cached_property
  def _mapped(self) -> Callable[..., Any]:
    return devices.map_batch(self.run, (None, 0), name="the feature network")

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (features (N, D), logits (N, K)) of uint8 images (N, H, W, C), in batches.

    Raises:
      BadInput: if there are no images, or if their type or shape is another.
    """
    if images.dtype != np.uint8 or images.ndim != 4 or not len(images):
      broken = "" if np.issubdtype(images.dtype, np.integer) or np.isfinite(images).all() else ", some not finite"
      span = f" from {images.min():.3g} to {images.max():.3g}" if images.size else ""
      raise BadInput(
        f"Features are of uint8 images (N, H, W, C), 0 to 255; got {images.dtype} {images.shape}{span}{broken}."
      )
    size = AT_ONCE * devices.device_count()
    parts = []
    for i in range(0, len(images), size):
      part = images[i : i + size]
      filled = np.concatenate([part, np.repeat(part[-1:], size - len(part), axis=0)])  # one shape, compiled once
      out = self._mapped(self.variables, devices.shard(filled))
      parts.append([np.asarray(a) for a in devices.unshard(out, len(part))])
    features, logits = zip(*parts, strict=True)
    return np.concatenate(features), np.concatenate(logits)

  def dims(self, shape: tuple[int, ...]) -> int:
    """Returns the length D of the features of images of `shape` (H, W, C), without computing features."""
    return jax.eval_shape(self.run, self.variables, jax.ShapeDtypeStruct((1, *shape), np.uint8))[0].shape[1]


def weights_file(path: str) -> pathlib.Path:
  """Returns the file of Inception's weights: `path`, or the download if it is "". Raises BadInput if there is none."""
  file = pathlib.Path(path) if path else downloaded()
  if not file.is_file():
    raise BadInput(f"eval.inception_path={path!r} is no file. Give {WEIGHTS} (from {URL}).")
  return file


def inception(path: str = "") -> Extractor:
  """Returns the Inception network that papers compute FIDs with. Its weights come from `path`, or are downloaded once.

  Raises:
    BadInput: if the weights cannot be read or downloaded, or belong to another network.
  """
  file = weights_file(path)
  try:
    variables = from_pytorch(torch_file.read(file))
  except ValueError as error:
    raise BadInput(f"{file} cannot be used: {error}") from error

  def run(variables: Any, images: Array) -> tuple[Array, Array]:
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))  # repeats a gray channel three times
    out: Any = Inception().apply(variables, images)
    return out["2048"], out["logits_unbiased"]

  return Extractor("inception-2015-12-05", run, variables)


def classifier(workdir: str, config: ConfigDict) -> Extractor:
  """Returns the extractor that is the last layer of the classifier trained in `workdir`, at LEAST_NOISE.

  Raises:
    BadInput: if there is no classifier, or if its images differ in size or channels from those of `config`.
  """
  its, params = load_classifier(workdir, config)
  for key in ("image_size", "num_channels"):
    if its.config.data[key] != config.data[key]:
      raise BadInput(
        f"eval.features={workdir!r} is a classifier of images with data.{key}={its.config.data[key]}, and these have "
        f"{config.data[key]}. Train one on such images."
      )
  network, scaling = its.network, dataclasses.replace(its.scaling, levels=256, uniform_dequantization=False)

  def run(variables: Any, images: Array) -> tuple[Array, Array]:
    x = scaling.prepare(None, images)
    out: Any = network.apply(variables, x, jnp.full(len(x), LEAST_NOISE), with_features=True)
    return out

  return Extractor(f"classifier-{checkpoints.digest(params)}", run, {"params": params})


def make(config: ConfigDict) -> Extractor:
  """Returns the extractor of `config.eval.features`: "inception", or the workdir of a classifier."""
  e = config.eval
  return inception(e.inception_path) if e.features == "inception" else classifier(e.features, config)


def downloaded() -> pathlib.Path:
  """Returns the file of Inception's weights in the cache. Downloads and checks it if it is not there.

  Raises:
    BadInput: if the file cannot be downloaded, or was damaged.
  """
  cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", pathlib.Path.home() / ".cache")) / "score_sde"
  file = cache / WEIGHTS
  if file.is_file():
    return file
  log.info("Downloading %s to %s.", URL, cache)
  try:
    with urllib.request.urlopen(URL, timeout=60) as response:
      content = response.read()
  except (urllib.error.URLError, TimeoutError) as error:
    raise BadInput(
      f"eval.features='inception' needs {WEIGHTS}, which cannot be downloaded here ({error}). Fetch {URL} elsewhere "
      "and give it as --config.eval.inception_path (fid: --inception_path)."
    ) from error
  found = hashlib.sha256(content).hexdigest()
  if found != SHA256:
    raise BadInput(f"{URL} has the SHA-256 {found}, not {SHA256}: it was damaged or changed on its way. Try again.")
  save_atomically(file, lambda handle: handle.write(content))
  return file


@dataclasses.dataclass(frozen=True)
class Reference:
  """Reference statistics: moments of the features of real images, and some of these features.

  Attributes:
    extractor: name of the extractor; "" if a file does not name it.
    moments: mean and covariance.
    features: (N, D), for KID, precision and recall; None for files that hold only moments.
    shape: (H, W, C) of the images; () if a file does not give it.
  """

  extractor: str
  moments: Moments
  features: np.ndarray | None = None
  shape: tuple[int, ...] = ()


def collect(name: str, parts: Iterable[tuple[np.ndarray, np.ndarray]], keep: int) -> tuple[Reference, np.ndarray]:
  """Returns (statistics, all logits) of a stream of (features, logits).

  `name` is the name of the extractor. Of more than `keep` features it keeps a fixed random choice, whatever the
  batches: images in a folder are sorted by class, and the first ones would be of the first classes.
  """
  moments, logits, rng = None, [], np.random.default_rng(0)
  kept: list[np.ndarray] = []
  places: list[np.ndarray] = []  # random numbers: the features with the smallest ones are kept
  largest = 1.0
  for features, classes in parts:
    moments = Moments.of(features) if moments is None else moments + Moments.of(features)
    logits.append(classes)
    place = rng.random(len(features))
    kept.append(features[place < largest])
    places.append(place[place < largest])
    if sum(map(len, places)) >= 2 * keep:
      all_kept, place = _smallest(kept, places, keep)
      kept, places, largest = [all_kept], [place], place.max()
  assert moments is not None
  return Reference(name, moments, _smallest(kept, places, keep)[0]), np.concatenate(logits)


def _smallest(kept: list[np.ndarray], places: list[np.ndarray], keep: int) -> tuple[np.ndarray, np.ndarray]:
  """Returns the `keep` features with the smallest places, in their order, and these places."""
  features, place = np.concatenate(kept), np.concatenate(places)
  chosen = np.sort(np.argsort(place)[:keep])
  return features[chosen], place[chosen]


def check_count(name: str, count: int, dims: int) -> None:
  """Raises BadInput if `count` images are too few for a covariance of `dims` features. `name` is their config key."""
  if count <= dims:
    raise BadInput(
      f"{name} gives {count} images, too few for the covariance of {dims} features: at least {dims + 1} are needed. "
      "FIDs of papers are of 50,000."
    )


# The largest statistics that are read, uncompressed: 50,000 features of 2,048 numbers are 0.8 GiB.
_MAX_REFERENCE = 8 << 30


def write(path: pathlib.Path, reference: Reference) -> None:
  """Writes a reference as an NPZ that pytorch-fid can also read ("mu", "sigma")."""
  m = reference.moments
  arrays = {"mu": m.mean, "sigma": m.covariance, "count": m.count, "extractor": reference.extractor}
  arrays["shape"] = np.array(reference.shape, np.int64)
  if reference.features is not None:
    arrays["features"] = reference.features
  save_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def _reference(arrays: dict[str, np.ndarray], given: str) -> Reference:
  """Returns the reference that the arrays of a file hold. `given` names the file in error messages."""
  if "pool_3" in arrays:
    features = arrays["pool_3"]
    found = Reference("inception-2015-12-05", Moments.of(features), features)
  elif {"mu", "sigma"} <= set(arrays):
    count = int(arrays.get("count", 50_000))
    moments = Moments(count, arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64) * (count - 1))
    its_shape = tuple(int(n) for n in arrays.get("shape", ()))
    found = Reference(str(arrays.get("extractor", "")), moments, arrays.get("features"), its_shape)
  else:
    raise BadInput(f"{given} holds {', '.join(arrays)}; expected mu and sigma, or pool_3.")
  dims = len(found.moments.mean)
  if found.moments.mean.shape != (dims,) or found.moments.scatter.shape != (dims, dims):
    raise BadInput(
      f"{given} has a mean {found.moments.mean.shape} and a covariance {found.moments.scatter.shape}; "
      "expected (D,) and (D, D)."
    )
  if not (np.isfinite(found.moments.mean).all() and np.isfinite(found.moments.scatter).all()):
    raise BadInput(f"{given} holds numbers that are not finite. Compute it anew.")
  return found


def read(path: str, extractor: Extractor, shape: tuple[int, ...] = (), key: str = "eval.reference=") -> Reference:
  """Reads a reference: our files, pytorch-fid's and EDM's ("mu", "sigma"), or the official code's ("pool_3").

  `key` stands before the path in messages.

  Raises:
    BadInput: if the file cannot be read, or is of another extractor, or of images of another `shape`.
  """
  given, advice = f"{key}{path!r}", "Make it: python -m score_sde stats OUTPUT.npz --config=FILE."
  with foreign(given, advice):
    with zipfile.ZipFile(path) as archive:
      size = sum(entry.file_size for entry in archive.infolist())
    if size > _MAX_REFERENCE:
      raise BadInput(f"{given} holds {size / 2**30:.1f} GiB, more than any statistics have. {advice}")
    with np.load(path) as file:
      arrays = {key: file[key] for key in file}
    found = _reference(arrays, given)
  dims = len(found.moments.mean)
  check_count(given, found.moments.count, dims)
  name = found.extractor or ("inception-2015-12-05" if len(found.moments.mean) == 2048 else "another network")
  if name != extractor.name:
    raise BadInput(
      f"{given} was computed with {name}, and {extractor.name} is asked for: features of two "
      "networks cannot be compared. Compute it anew."
    )
  if shape and found.shape and found.shape != shape:
    raise BadInput(f"{given} is of images {found.shape}, and these are {shape}. Compute it anew.")
  return found


# The last reference of data, under what it depends on: a run that measures while it trains needs it several times.
_LAST: dict[tuple, Reference] = {}


def of_data(config: ConfigDict, extractor: Extractor, split: str) -> Reference:
  """Computes the reference of a `split` of the config's data; the last one is kept."""
  source = data.load(config, split)
  check_count(f"data.dataset={config.data.dataset!r}", len(source), extractor.dims(data.example_shape(config)))
  depends = (data.identity(source), extractor.name, config.data.levels, config.eval.num_features)
  if depends not in _LAST:
    _LAST.clear()
    _LAST[depends] = _of_source(config, extractor, source)
  return _LAST[depends]


def _of_source(config: ConfigDict, extractor: Extractor, source: data.Source) -> Reference:
  scaling = data.scaling_of(config)

  def parts(bar: Bar) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    done = 0
    for read in data.in_order(source, config.eval.batch_size):
      images = scaling.as_uint8(read()["image"])
      yield extractor(images)
      done += len(images)
      bar.step(done, len(source))

  with Bar(f"features of {data.name(config)}", len(source), " images") as bar:
    found, _ = collect(extractor.name, parts(bar), config.eval.num_features)
  return dataclasses.replace(found, shape=data.example_shape(config))


def stats(config: ConfigDict, output: str) -> None:
  """Runs `python -m score_sde stats OUTPUT.npz --config=FILE`: writes the reference of the training images.

  Raises:
    BadInput: if the data are vectors, the extractor is missing, or the output cannot be written.
  """
  config = resolve(config)
  if not data.is_image(config):
    raise BadInput(f"data.dataset={config.data.dataset!r} are vectors, which have no features.")
  if not config.eval.features:
    raise BadInput("eval.features is unset: give 'inception', or the workdir of a classifier (configs/classifier/).")
  if not output.endswith(".npz"):
    raise BadInput(f"{output!r} must end in .npz.")
  path = make_file(output)
  reference = of_data(config, make(config), "train")
  write(path, reference)
  log.info("Wrote %s: %s of %d images.", output, reference.extractor, reference.moments.count)
