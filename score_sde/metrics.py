"""Distances between sets of images from their features: FID, KID, inception score, precision and recall.

A feature extractor maps uint8 images to vectors (N, D). The functions here take these vectors and compute on the host
in float64.
"""

import dataclasses

import numpy as np

from score_sde.errors import InvalidArgument


@dataclasses.dataclass(frozen=True)
class Moments:
  """Mean and scatter of a stream of vectors. Batches are added one after the other and are not stored.

  Attributes:
    count: number of vectors so far.
    mean: (D,).
    scatter: sum of (x - mean)(x - mean)ᵀ, (D, D).
  """

  count: int
  mean: np.ndarray
  scatter: np.ndarray

  @classmethod
  def of(cls, features: np.ndarray) -> "Moments":
    """Returns the moments of one batch (N, D)."""
    x = np.asarray(features, np.float64)
    mean = x.mean(axis=0)
    return cls(len(x), mean, (x - mean).T @ (x - mean))

  def __add__(self, other: "Moments") -> "Moments":
    """Returns the moments of both streams together, without cancellation. Chan, Golub & LeVeque 1983."""
    count = self.count + other.count
    gap = other.mean - self.mean
    scatter = self.scatter + other.scatter + np.outer(gap, gap) * (self.count * other.count / count)
    return Moments(count, self.mean + gap * (other.count / count), scatter)

  @property
  def covariance(self) -> np.ndarray:
    """Returns the unbiased covariance, (D, D). Raises InvalidArgument for fewer than two vectors."""
    if self.count < 2:
      raise InvalidArgument(f"A covariance needs at least 2 vectors, got {self.count}.")
    return self.scatter / (self.count - 1)


def frechet_distance(mean1: np.ndarray, cov1: np.ndarray, mean2: np.ndarray, cov2: np.ndarray) -> float:
  """Returns the Fréchet distance of two Gaussians: |mean1 - mean2|² + tr(cov1 + cov2 - 2 (cov1 cov2)^½).

  Heusel et al. 2017, eq. (6). The trace of the root equals that of (cov1^½ cov2 cov1^½)^½, which is symmetric and
  therefore real.
  """
  values, basis = np.linalg.eigh(cov1)
  root = (basis * np.sqrt(np.maximum(values, 0))) @ basis.T
  inner = np.linalg.eigvalsh(root @ cov2 @ root)
  return float(np.sum((mean1 - mean2) ** 2) + np.trace(cov1) + np.trace(cov2) - 2 * np.sqrt(np.maximum(inner, 0)).sum())


def fid(features1: np.ndarray, features2: np.ndarray) -> float:
  """Returns the Fréchet distance of the Gaussians fitted to two sets of features, (N, D) and (M, D)."""
  a, b = Moments.of(features1), Moments.of(features2)
  return frechet_distance(a.mean, a.covariance, b.mean, b.covariance)


def kid(
  features1: np.ndarray, features2: np.ndarray, *, subsets: int = 100, subset_size: int = 1000, seed: int = 2020
) -> tuple[float, float]:
  """Returns the unbiased squared maximum mean discrepancy with kernel (x·y / D + 1)³: (mean, std) over subsets.

  Bińkowski et al. 2018, Section 4. torch-fidelity draws the same subsets.

  Raises:
    InvalidArgument: if a set is smaller than a subset.
  """
  if min(len(features1), len(features2)) < subset_size:
    raise InvalidArgument(
      f"KID draws subsets of {subset_size}, and there are {len(features1)} and {len(features2)} features. Use a "
      "smaller subset_size."
    )
  rng, values, m = np.random.RandomState(seed), [], subset_size
  kernel = lambda x, y: (x @ y.T / x.shape[1] + 1) ** 3
  for _ in range(subsets):
    x, y = (np.asarray(f[rng.choice(len(f), m, replace=False)], np.float64) for f in (features1, features2))
    within = sum(k.sum() - np.trace(k) for k in (kernel(x, x), kernel(y, y)))
    values.append(within / (m * (m - 1)) - 2 * kernel(x, y).mean())
  return float(np.mean(values)), float(np.std(values))


def kid_subset_size(n: int, m: int) -> int:
  """Returns the size of KID's subsets for sets of `n` and `m` features: 1,000, or half of the smaller set.

  Subsets as large as a set would all be the same, with a standard deviation of 0 that says nothing.
  """
  return max(min(1000, n // 2, m // 2), 2)


def inception_score(logits: np.ndarray, *, splits: int = 10, seed: int | None = None) -> tuple[float, float]:
  """Returns exp(E KL(p(y | x) ‖ p(y))): (mean, standard deviation) over `splits` parts of `logits` (N, K).

  Salimans et al. 2016. With a `seed` the logits are shuffled first: consecutive parts of samples that are ordered by
  class would each hold few classes, and score too low. None keeps the order, as published scores do.
  """
  logits = np.asarray(logits, np.float64)
  if seed is not None:
    logits = logits[np.random.default_rng(seed).permutation(len(logits))]
  logits = logits - logits.max(axis=1, keepdims=True)
  log_p = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
  scores = []
  for part in np.split(log_p, [i * len(log_p) // splits for i in range(1, splits)]):
    p = np.exp(part)
    scores.append(np.exp((p * (part - np.log(p.mean(axis=0)))).sum(axis=1).mean()))
  return float(np.mean(scores)), float(np.std(scores))


def precision_recall(generated: np.ndarray, real: np.ndarray, *, neighbours: int = 3) -> tuple[float, float]:
  """Returns (precision, recall): the share of each set that lies in a ball around some point of the other set.

  The radius of a ball is the distance to the `neighbours`-th nearest point of the same set. Kynkäänniemi et al. 2019,
  eq. (1).
  """
  generated, real = np.asarray(generated, np.float64), np.asarray(real, np.float64)
  return _covered(generated, real, neighbours), _covered(real, generated, neighbours)


def _covered(points: np.ndarray, centres: np.ndarray, neighbours: int) -> float:
  """Returns the share of `points` that lie in a ball around some point of `centres`."""
  radii = np.concatenate([np.partition(d, neighbours, axis=1)[:, neighbours] for d in _distances(centres, centres)])
  return float(np.mean(np.concatenate([(d <= radii).any(axis=1) for d in _distances(points, centres)])))


def _distances(a: np.ndarray, b: np.ndarray, rows: int = 2048):
  """Yields squared distances (rows, M) of `a` (N, D) to `b` (M, D), `rows` rows at a time."""
  lengths = (b**2).sum(axis=1)
  for i in range(0, len(a), rows):
    part = a[i : i + rows]
    yield np.maximum((part**2).sum(axis=1)[:, None] + lengths - 2 * part @ b.T, 0)
