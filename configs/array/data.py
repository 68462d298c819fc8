"""Data of `configs/array`: functions for `data.path` that draw arrays whose law is known, and a table of scikit-learn.

Each takes (config.data, split), and returns the arrays of that split as a dict, see docs/data.md.
"""

import numpy as np

# x_t = PHI[0] x_{t-1} + PHI[1] x_{t-2} + e_t, e_t ~ N(0, 1): a sine with noise in amplitude and phase, of period 13.
PHI = (1.6, -0.8)
LENGTH = 64
FIELD = (64, 32)


def autocovariance(lags: int) -> np.ndarray:
  """Returns the covariance of x_t and x_{t+k} for k < `lags`, by the Yule-Walker equations."""
  first, second = PHI
  variance = (1 - second) / ((1 + second) * ((1 - second) ** 2 - first**2))
  found = [variance, variance * first / (1 - second)]
  while len(found) < lags:
    found.append(first * found[-1] + second * found[-2])
  return np.array(found[:lags])


def ar2(section, split):
  """Draws stationary series (N, 64, 1) of the autoregression: 20,000 for training, 1,000 others for the test."""
  rng = np.random.default_rng([1, split == "train"])
  n, burn_in = (20_000 if split == "train" else 1_000), 200
  x = np.zeros((n, burn_in + LENGTH))
  noise = rng.standard_normal(x.shape)
  for t in range(2, x.shape[1]):
    x[:, t] = PHI[0] * x[:, t - 1] + PHI[1] * x[:, t - 2] + noise[:, t]
  return {"x": x[:, burn_in:, None].astype(np.float32)}


def spectrum() -> np.ndarray:
  """Returns the variance of each Fourier coefficient of the torus, (128, 64), in the orthonormal transform."""
  rows, columns = (2 * np.pi * np.fft.fftfreq(2 * n) for n in FIELD)
  return 20 / (1 + (4 * rows[:, None]) ** 2 + (4 * columns[None]) ** 2) ** 1.5 + 0.02


def field(section, split):
  """Draws Gaussian random fields (N, 64, 32, 1), quarters of a torus with `spectrum`: 8,000, and 500 for the test."""
  rng = np.random.default_rng([2, split == "train"])
  parts = []
  for _ in range(16 if split == "train" else 1):  # whole, they would take a gigabyte
    white = rng.standard_normal((500, *spectrum().shape))
    torus = np.fft.ifft2(np.fft.fft2(white) * np.sqrt(spectrum())).real
    parts.append(torus[:, : FIELD[0], : FIELD[1], None].astype(np.float32))
  return {"x": np.concatenate(parts)}


def covariance_of_field() -> np.ndarray:
  """Returns the covariance (2048, 2048) of the pixels of a field, row by row."""
  of_lags = np.fft.ifft2(spectrum()).real
  rows, columns = (np.subtract.outer(np.arange(n), np.arange(n)) for n in FIELD)
  both = of_lags[rows[:, None, :, None], columns[None, :, None, :]]
  return both.reshape(np.prod(FIELD), -1)


def log_density_of_field(x: np.ndarray) -> np.ndarray:
  """Returns the exact log-density (N,) of fields (N, 64, 32, 1), in nats."""
  factor = np.linalg.cholesky(covariance_of_field())
  white = np.linalg.solve(factor, x.reshape(len(x), -1).T.astype(np.float64))
  return -0.5 * np.sum(white**2 + np.log(2 * np.pi), axis=0) - np.sum(np.log(np.diag(factor)))


def wine(section, split):
  """Returns scikit-learn's table of 178 wines: 13 measurements, and the cultivar as class. A tenth is the test."""
  from sklearn.datasets import load_wine

  wines = load_wine()
  order = np.random.default_rng(0).permutation(len(wines.data))
  chosen = order[:18] if split == "test" else order[18:]
  return {"x": wines.data[chosen].astype(np.float32), "y": wines.target[chosen].astype(np.int32)}


def blobs(section, split):
  """Draws volumes (N, 16, 16, 16, 1), uint8, of two soft balls of random place and radius."""
  rng = np.random.default_rng([3, split == "train"])
  n = 2_000 if split == "train" else 100
  places = np.stack(np.meshgrid(*[np.arange(16.0)] * 3, indexing="ij"), axis=-1)
  x = np.zeros((n, 16, 16, 16))
  for _ in range(2):
    centre, radius = rng.uniform(4, 12, (n, 1, 1, 1, 3)), rng.uniform(2, 4, (n, 1, 1, 1))
    distance = np.linalg.norm(places[None] - centre, axis=-1)
    x = np.maximum(x, 1 / (1 + np.exp(2 * (distance - radius))))
  return {"x": np.round(255 * x)[..., None].astype(np.uint8)}
