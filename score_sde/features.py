"""Feature extractors, from uint8 images to vectors, and the reference statistics that samples are compared with.

Two are here: Inception, for natural images in color, and a classifier of the data at hand
(`configs/classifier/`), which means more where images are gray or small.
"""

import dataclasses
import hashlib
import logging
import os
import pathlib
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import data, parallel
from score_sde.batch import Array
from score_sde.checkpoints import torch_file
from score_sde.config import BadInput, resolve
from score_sde.experiment import load_classifier, make_workdir
from score_sde.metrics import Moments
from score_sde.models.inception import Inception, from_pytorch
from score_sde.pictures import save_atomically
from score_sde.progress import Bar

log = logging.getLogger(__name__)

WEIGHTS = "pt_inception-2015-12-05-6726825d.pth"
URL = f"https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/{WEIGHTS}"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"

# sigma / alpha at which a classifier looks at images.
LEAST_NOISE = 0.01


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
  """Features and class logits of images, over all devices.

  Attributes:
    name: of the network and its weights; statistics of another are refused.
    run: (variables, images (B, H, W, C) uint8) -> (features (B, D), logits (B, K)).
    variables: of the network.
  """

  name: str
  run: Callable[[Any, Array], tuple[Array, Array]]
  variables: Any

  def __post_init__(self):
    object.__setattr__(self, "_mapped", parallel.map_batch(self.run, (None, 0)))

  def __call__(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(features, logits) of a batch of any size."""
    out = self._mapped(self.variables, parallel.shard(images))
    return tuple(np.asarray(a) for a in parallel.unshard(out, len(images)))


def inception(path: str = "") -> Extractor:
  """The Inception network of FIDs in papers, its weights from `path`, or downloaded once.

  Raises:
    BadInput: for weights that cannot be had, or are not these.
  """
  file = pathlib.Path(path) if path else _downloaded()
  if not file.is_file():
    raise BadInput(f"eval.inception_path={path!r} is no file. Give {WEIGHTS} (from {URL}).")
  try:
    variables = from_pytorch(torch_file.read(file))
  except ValueError as error:
    raise BadInput(f"{file} cannot be used: {error}") from error

  def run(variables: Any, images: Array) -> tuple[Array, Array]:
    images = jnp.broadcast_to(images, (*images.shape[:3], 3))  # gray is gray in three colors
    out = Inception().apply(variables, images)
    return out["2048"], out["logits_unbiased"]

  return Extractor("inception-2015-12-05", run, variables)


def classifier(workdir: str, config: ConfigDict) -> Extractor:
  """The last layer of the classifier trained in `workdir`, at the least noise.

  Raises:
    BadInput: where there is none, or its images are of another size than those of `config`.
  """
  its, params = load_classifier(workdir)
  for key in ("image_size", "num_channels"):
    if its.config.data[key] != config.data[key]:
      raise BadInput(
        f"eval.features={workdir!r} is a classifier of images with data.{key}={its.config.data[key]}, and these have "
        f"{config.data[key]}. Train one on such images."
      )
  network, centered = its.network, its.config.data.centered

  def run(variables: Any, images: Array) -> tuple[Array, Array]:
    x = images.astype(jnp.float32) / 255
    return network.apply(variables, 2 * x - 1 if centered else x, jnp.full(len(x), LEAST_NOISE), with_features=True)

  digest = hashlib.sha256(b"".join(np.asarray(p).tobytes() for p in jax.tree.leaves(params))).hexdigest()[:8]
  return Extractor(f"classifier-{digest}", run, {"params": params})


def make(config: ConfigDict) -> Extractor:
  """The extractor of `config.eval.features`: "inception", or the workdir of a classifier."""
  e = config.eval
  return inception(e.inception_path) if e.features == "inception" else classifier(e.features, config)


def _downloaded() -> pathlib.Path:
  """The weights in the cache, downloaded there and checked where they were not."""
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
      "and give it as --config.eval.inception_path."
    ) from error
  found = hashlib.sha256(content).hexdigest()
  if found != SHA256:
    raise BadInput(f"{URL} has the SHA-256 {found}, not {SHA256}: it was damaged or changed on its way. Try again.")
  save_atomically(file, lambda handle: handle.write(content))
  return file


@dataclasses.dataclass(frozen=True)
class Reference:
  """What samples are compared with: the moments of real images' features, and some of these features themselves.

  Attributes:
    extractor: the name of what computed them; "" where a file does not say.
    moments: mean and covariance.
    features: (N, D), for KID, precision and recall; None in files of moments alone.
  """

  extractor: str
  moments: Moments
  features: np.ndarray | None = None


def collect(extractor: Extractor, batches: Any, keep: int) -> tuple[Reference, np.ndarray]:
  """(statistics, logits) of batches of uint8 images, one after the other; the features of the first `keep` stay."""
  moments, kept, logits, count = None, [], [], 0
  for images in batches:
    features, classes = extractor(images)
    moments = Moments.of(features) if moments is None else moments + Moments.of(features)
    if count < keep:
      kept.append(features[: keep - count])
    count += len(images)
    logits.append(classes)
  return Reference(extractor.name, moments, np.concatenate(kept)), np.concatenate(logits)


def write(path: pathlib.Path, reference: Reference) -> None:
  """Writes a reference as an NPZ that pytorch-fid reads, too ("mu", "sigma")."""
  m = reference.moments
  arrays = {"mu": m.mean, "sigma": m.covariance, "count": m.count, "extractor": reference.extractor}
  if reference.features is not None:
    arrays["features"] = reference.features
  save_atomically(path, lambda file: np.savez_compressed(file, **arrays))


def read(path: str, extractor: Extractor) -> Reference:
  """A reference from ours, pytorch-fid's and EDM's files ("mu", "sigma"), or the official code's ("pool_3").

  Raises:
    BadInput: where there is none, or it is of another extractor.
  """
  try:
    with np.load(path) as file:
      arrays = {key: file[key] for key in file}
  except (OSError, ValueError) as error:
    raise BadInput(
      f"eval.reference={path!r} cannot be read ({error}). Make it: python -m score_sde.metrics."
    ) from error
  if "pool_3" in arrays:
    features = arrays["pool_3"]
    found = Reference("inception-2015-12-05", Moments.of(features), features)
  elif {"mu", "sigma"} <= set(arrays):
    count = int(arrays.get("count", 50_000))
    moments = Moments(count, arrays["mu"].astype(np.float64), arrays["sigma"].astype(np.float64) * (count - 1))
    found = Reference(str(arrays.get("extractor", "")), moments, arrays.get("features"))
  else:
    raise BadInput(f"eval.reference={path!r} holds {', '.join(arrays)}; expected mu and sigma, or pool_3.")
  name = found.extractor or ("inception-2015-12-05" if len(found.moments.mean) == 2048 else "another network")
  if name != extractor.name:
    raise BadInput(
      f"eval.reference={path!r} was computed with {name}, and eval.features asks for {extractor.name}: features of two "
      "networks cannot be compared. Compute it anew."
    )
  return found


def of_data(config: ConfigDict, extractor: Extractor, split: str) -> Reference:
  """The reference that the `split` of the config's data is."""
  source = data.load(config, split)
  scale = lambda images: np.round(images * (255 / (config.data.levels - 1))).astype(np.uint8)
  batches = (scale(read()["image"]) for read in data.in_order(source, config.eval.batch_size))
  with Bar(f"features of {data.name(config)}", len(source), " images") as bar:
    done = 0

    def shown():
      nonlocal done
      for images in batches:
        yield images
        done += len(images)
        bar.show(done)

    return collect(extractor, shown(), config.eval.num_features)[0]


def stats(config: ConfigDict, output: str) -> None:
  """`python -m score_sde.metrics stats OUTPUT.npz --config=FILE`: the reference that the training images are.

  Raises:
    BadInput: for vectors in place of images, an extractor that cannot be had, or an output that cannot be written.
  """
  config = resolve(config)
  if not data.is_image(config):
    raise BadInput(f"data.dataset={config.data.dataset!r} are vectors, which have no features.")
  if not config.eval.features:
    raise BadInput("eval.features is unset: give 'inception', or the workdir of a classifier (configs/classifier/).")
  if not output.endswith(".npz"):
    raise BadInput(f"{output!r} must end in .npz.")
  path = make_workdir(str(pathlib.Path(output).parent)) / pathlib.Path(output).name
  reference = of_data(config, make(config), "train")
  write(path, reference)
  log.info("Wrote %s: %s of %d images.", output, reference.extractor, reference.moments.count)
