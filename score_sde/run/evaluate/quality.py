"""Quality of samples: Fréchet and kernel distances to real images, inception score, precision and recall."""

import importlib.metadata
import importlib.util
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from score_sde import metrics
from score_sde.run import data, features
from score_sde.run.config import BadInput
from score_sde.run.evaluate.samples import read_batch
from score_sde.run.experiment import Experiment
from score_sde.run.storage import Path

# A function (files of `samples.draw_batches`) -> metrics of their samples.
Measure = Callable[[list[Path]], dict[str, Any]]


def compared_with(
  config: ConfigDict, total: int, key: str = "eval.num_samples"
) -> tuple[features.Extractor, features.Reference]:
  """Returns the extractor and the reference for `total` samples, which `key` of the config asks for.

  The reference is eval.reference, or the statistics of the training images.

  Raises:
    BadInput: if the data are vectors, the samples are too few, the extractor or the reference cannot be read, or the
      two do not belong together.
  """
  if not data.is_image(config):
    raise BadInput(f"eval.features={config.eval.features!r} needs images, not {config.data.dataset!r}.")
  if config.eval.features == "inception":
    _check_channels(config)
  extractor, shape = features.make(config), data.example_shape(config)
  features.check_count(f"{key}={total}", total, extractor.dims(shape))
  if config.eval.reference:
    return extractor, features.read(config.eval.reference, extractor, shape)
  return extractor, features.of_data(config, extractor, "train")


def describe(extractor: features.Extractor) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
  """Returns images -> {"features", "logits"}, which `samples.draw_batches` stores with its images."""
  return lambda images: dict(zip(("features", "logits"), extractor(images), strict=True))


def measure(
  config: ConfigDict,
  parts: Iterable[tuple[np.ndarray, np.ndarray]],
  extractor: features.Extractor,
  reference: features.Reference,
) -> dict[str, Any]:
  """Returns the FID and inception score of a stream of samples. KID, precision and recall need reference.features.

  `parts` are (features, logits) of batches of samples. Only one batch is in memory at a time, apart from up to twice
  eval.num_features features and all logits.
  """
  found, logits = features.collect(extractor.name, parts, config.eval.num_features)
  a, b = found.moments, reference.moments
  score, spread = metrics.inception_score(logits, seed=0)  # samples may be ordered by class
  row = {
    "features": extractor.name,
    "images": a.count,
    "reference_images": b.count,
    "fid": metrics.frechet_distance(a.mean, a.covariance, b.mean, b.covariance),
    "inception_score": score,
    "inception_score_std": spread,
  }
  if reference.features is not None:
    assert found.features is not None
    size = metrics.kid_subset_size(len(found.features), len(reference.features))
    row["kid"], row["kid_std"] = metrics.kid(found.features, reference.features, subset_size=size)
    row["precision"], row["recall"] = metrics.precision_recall(found.features, reference.features)
  return row


def of_files(config: ConfigDict, extractor: features.Extractor, reference: features.Reference) -> Measure:
  """Returns `measure` as a function of the files that `samples.draw_batches` wrote with `describe`."""

  def run(files: list[Path]) -> dict[str, Any]:
    parts = ((b["features"], b["logits"]) for b in map(read_batch, files))
    return measure(config, parts, extractor, reference)

  return run


def own_metrics(
  function: Callable[..., dict[str, float]], drawn: np.ndarray, experiment: Experiment, source: data.Source
) -> dict[str, float]:
  """Calls the user's `function`(samples, examples) and returns its metrics. Both are uint8 images or points (N, ...).

  Raises:
    BadInput: if the function does not return {name: number}.
  """
  real = source.gather(np.arange(min(len(drawn), len(source))))["image"]
  few = experiment.scaling.has_levels and (experiment.scaling.levels or 0) <= 256
  found = function(drawn, experiment.scaling.as_uint8(real) if few else real)
  try:
    return {str(name): float(value) for name, value in found.items()}
  except (AttributeError, TypeError, ValueError) as error:
    raise BadInput(f"eval.metrics must return {{name: number}}, got {type(found).__name__}.") from error


# --- torch-fidelity -------------------------------------------------------------------------------------------------

_NAMES = {
  "fid": "frechet_inception_distance",
  "kid": "kernel_inception_distance_mean",
  "kid_std": "kernel_inception_distance_std",
  "inception_score": "inception_score_mean",
  "inception_score_std": "inception_score_std",
  "precision": "precision",
  "recall": "recall",
}


def _check_channels(config: ConfigDict) -> None:
  """Raises BadInput for images that Inception does not take."""
  channels = data.example_shape(config)[-1]
  if channels not in (1, 3):
    raise BadInput(f"eval.features='inception' needs images of 1 or 3 channels, not {channels}.")


def by_torch_fidelity(config: ConfigDict) -> Measure:
  """Returns the measurement of samples by the package torch-fidelity: its own Inception against the training images.

  Raises:
    BadInput: if torch or torch-fidelity is not installed, or the config asks for other features or a reference.
  """
  e = config.eval
  missing = [name for name in ("torch", "torch_fidelity") if importlib.util.find_spec(name) is None]
  if missing:
    raise BadInput(
      f"eval.fidelity_engine='torch-fidelity' needs {' and '.join(missing)}, not installed here: "
      "pip install -e '.[fidelity]', or leave eval.fidelity_engine at 'own'."
    )
  if e.features != "inception" or e.reference:
    raise BadInput(
      "eval.fidelity_engine='torch-fidelity' compares features of its own Inception with the training images: it "
      f"needs eval.features='inception' and no eval.reference, got {e.features!r} and {e.reference!r}."
    )
  if not data.is_image(config):
    raise BadInput(f"eval.fidelity_engine='torch-fidelity' needs images, not {config.data.dataset!r}.")
  _check_channels(config)
  weights = features.weights_file(e.inception_path)  # before samples are drawn

  def run(files: list[Path]) -> dict[str, Any]:
    import torch  # pyright: ignore[reportMissingImports]  # optional
    import torch_fidelity  # pyright: ignore[reportMissingImports]  # optional

    class Images(torch.utils.data.Dataset):
      """Images: uint8 (3, H, W) tensors. A gray channel is repeated three times."""

      def __init__(self, size: int, get: Callable[[int], np.ndarray]):
        self._size, self._get = size, get

      def __len__(self):
        return self._size

      def __getitem__(self, i):
        image = np.broadcast_to(self._get(i), (*self._get(i).shape[:2], 3))
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    samples = np.concatenate([read_batch(file)["samples"] for file in files])
    source = data.load(config, "train")
    real = lambda i: data.scaling_of(config).as_uint8(source.gather(np.array([i]))["image"])[0]
    found = torch_fidelity.calculate_metrics(
      input1=Images(len(samples), samples.__getitem__),
      input2=Images(len(source), real),
      isc=True, fid=True, kid=True, prc=True, verbose=False, cuda=torch.cuda.is_available(),
      save_cpu_ram=True,  # reads in this process: JAX does not survive a fork
      feature_extractor="inception-v3-compat",  # precision and recall have another network by default
      batch_size=features.AT_ONCE, kid_subset_size=metrics.kid_subset_size(len(samples), len(source)),
      feature_extractor_weights_path=str(weights),
    )  # fmt: skip
    version = importlib.metadata.version("torch-fidelity")
    row = {"features": f"torch-fidelity {version}", "reference_images": len(source)}
    return row | {name: float(found[theirs]) for name, theirs in _NAMES.items()}

  return run
