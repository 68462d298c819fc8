"""FID of two sets of existing images: `python -m score_sde fid A B`."""

import logging
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from PIL import Image

from score_sde.run import features
from score_sde.run.classifiers import load_classifier
from score_sde.run.config import BadInput, default_config
from score_sde.run.config.errors import foreign
from score_sde.run.data.files import as_array
from score_sde.run.data.folders import read_images
from score_sde.run.evaluate.quality import measure
from score_sde.run.report.progress import Bar

log = logging.getLogger(__name__)


def _batches(path: str, size: Any, channels: int) -> Iterator[np.ndarray]:
  """Yields uint8 images (B, H, W, C) of a folder, a .zip, or an .npz with images under "samples" or "arr_0"."""
  sides = (size, size) if isinstance(size, int) else size
  if not path.endswith(".npz"):
    yield from read_images(path, sides, channels, features.AT_ONCE)
    return
  with foreign(repr(path)), np.load(path) as file:
    name = next((n for n in ("samples", "arr_0") if n in file), None)
    if name is None:
      raise BadInput(f"{path!r} holds {', '.join(file)}; expected images under samples or arr_0.")
    images = file[name]
  if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] not in (1, 3):
    raise BadInput(f"{path!r} holds {images.dtype}{list(images.shape)}; expected uint8 images (N, H, W, 1 or 3).")
  change = lambda x: as_array(Image.fromarray(x.squeeze(-1) if x.shape[-1] == 1 else x), sides, channels)
  for i in range(0, len(images), features.AT_ONCE):
    yield np.stack([change(image) for image in images[i : i + features.AT_ONCE]])


def _features(path: str, extractor: features.Extractor, size: Any, channels: int) -> Iterator[Any]:
  with Bar(f"features of {pathlib.Path(path).name}", 1, " images") as bar:
    done = 0
    for images in _batches(path, size, channels):
      yield extractor(images)
      done += len(images)
      bar.step(done, done)


def _is_statistics(path: str) -> bool:
  if not path.endswith(".npz"):
    return False
  with foreign(repr(path)), np.load(path) as file:
    return "mu" in file or "pool_3" in file


def fid(
  a: str, b: str, network: str = "inception", inception_path: str = "", size: int | None = None
) -> dict[str, Any]:
  """Prints and returns FID, KID, inception score, precision and recall of the images `a` against the images `b`.

  Each is a folder or a .zip of images, or an .npz of images; `b` may also be an .npz of statistics, see
  `features.read`. Images are used as they are, and must have one size. With `size`, their central squares are resized.

  Args:
    a, b: the two sets.
    network: "inception", or the workdir of a classifier; then images are resized to its images' size.
    inception_path: weights of Inception; "" to download them once.
    size: pixels per side, or None.

  Raises:
    BadInput: if a set or the network cannot be read, or a set has too few images for the features' covariance.
  """
  config = default_config()
  channels = 3
  if network == "inception":
    extractor = features.inception(inception_path)
  elif size is not None:
    raise BadInput(f"--image_size={size}: images are resized to the size of the classifier's. Leave it out.")
  else:
    its = load_classifier(network)[0].config.data
    config.data.image_size, config.data.num_channels = its.image_size, its.num_channels
    size, channels = its.image_size, its.num_channels
    extractor = features.classifier(network, config)
  if _is_statistics(b):
    reference = features.read(b, extractor, key="")
  else:
    parts = list(_features(b, extractor, size, channels))
    features.check_count(repr(b), sum(len(p[0]) for p in parts), parts[0][0].shape[1] if parts else 1)
    reference, _ = features.collect(extractor.name, parts, config.eval.num_features)
  if _is_statistics(a):
    raise BadInput(f"{a!r} holds statistics, which only the second set may be. Exchange the two.")
  parts = list(_features(a, extractor, size, channels))
  features.check_count(repr(a), sum(len(p[0]) for p in parts), len(reference.moments.mean))
  row = measure(config, parts, extractor, reference)
  print(
    f"{row['images']} images of {a} against {row['reference_images']} of {b}, {row['features']}: FID {row['fid']:.4f}"
    + (f", KID {row['kid']:.5f} ± {row['kid_std']:.5f}" if "kid" in row else "")
    + (f", precision {row['precision']:.3f}, recall {row['recall']:.3f}" if "precision" in row else "")
    + f", inception score {row['inception_score']:.3f}",
    flush=True,
  )
  return row
