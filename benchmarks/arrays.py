"""What models of arrays have learned, against what is known.

`python -m benchmarks.arrays --runs=FOLDER [--samples=2000]`

FOLDER has the trained workdirs of configs/array/*.py under the configs' names (`python run.py
--config=configs/array/ar2.py --workdir=FOLDER/ar2`, and so on); one that is not there is left out. Errors of samples
are printed beside those of as many draws of the law itself, or of the data.
"""

import argparse
import pathlib

import jax
import numpy as np
from scipy import ndimage

import score_sde as ss
from configs.array import data
from score_sde.run.evaluate.reports import table


def autocovariance(x: np.ndarray, lags: int) -> np.ndarray:
  """Returns the covariance of x_t and x_{t+k} of series (N, L, 1) of mean 0, for k < `lags`."""
  x = x[..., 0]
  return np.array([np.mean(x[:, : x.shape[1] - k] * x[:, k:]) for k in range(lags)])


def band_powers(x: np.ndarray, bands: int = 8) -> np.ndarray:
  """Returns the mean power of fields (N, 64, 32, 1) in bands of the wave number, over the expected one.

  The fields are tapered (Hann), so that their edges, which do not fit together, add no power to high bands.
  """
  taper = np.multiply.outer(*(np.hanning(n + 2)[1:-1] for n in data.FIELD))
  power = np.mean(np.abs(np.fft.fft2(x[..., 0] * taper)) ** 2, axis=0)
  # The expectation is the transform of the covariance of each lag, times the taper's overlap with itself at that lag.
  torus = data.spectrum()
  overlap = np.fft.ifft2(np.abs(np.fft.fft2(taper, torus.shape)) ** 2).real
  expected = np.fft.fft2(np.fft.ifft2(torus).real * overlap).real[::2, ::2]  # the frequencies of a field
  rows, columns = (np.fft.fftfreq(n) for n in data.FIELD)
  radius = np.hypot(rows[:, None], columns[None])
  band = np.minimum((radius / 0.5 * bands).astype(int), bands - 1)
  return np.array([power[band == i].sum() / expected[band == i].sum() for i in range(bands)])


def largest(values: np.ndarray) -> str:
  return f"{100 * np.max(np.abs(values)):.1f}%"


def nats(folder: pathlib.Path, exact: np.ndarray) -> list[str]:
  """Returns two cells: the nats of the evaluated test examples with their mean distance from the exact ones, and these.

  `exact` are those of all test examples. The distance is made of the model's error and of the trace's random probes.
  """
  with np.load(folder / "eval" / "likelihood.npz") as kept:
    found, exact = kept["nats"][-1], exact[kept["name"].astype(int)]
  distance = found - exact
  error = distance.std() / len(distance) ** 0.5
  return [f"{found.mean():.2f}; distance {distance.mean():+.2f} ± {error:.2f}", f"{exact.mean():.2f}"]


def ar2(model: ss.Model, n: int, folder: pathlib.Path) -> list[list[str]]:
  known, lags = data.autocovariance(24), 24
  errors = [(autocovariance(x, lags) - known) / known[0] for x in (drawn(model, n), real("ar2", n))]
  precision = np.linalg.inv(data.autocovariance(64)[np.abs(np.subtract.outer(np.arange(64), np.arange(64)))])
  x = real("ar2", split="test")[..., 0]
  constant = 0.5 * (64 * np.log(2 * np.pi) - np.linalg.slogdet(precision)[1])
  exact = 0.5 * np.einsum("ni,ij,nj->n", x, precision, x) + constant
  return [
    ["series", "autocovariance at 24 lags, largest error in units of the variance", *map(largest, errors)],
    ["series", "nats of test series", *nats(folder, exact)],
  ]


def field(model: ss.Model, n: int, folder: pathlib.Path) -> list[list[str]]:
  errors = [band_powers(x) - 1 for x in (drawn(model, n), real("field", n))]
  exact = -data.log_density_of_field(real("field", split="test"))
  return [
    ["field", "power in 8 bands, largest relative error", *map(largest, errors)],
    ["field", "nats of test fields", *nats(folder, exact)],
  ]


def wine(model: ss.Model, n: int, folder: pathlib.Path) -> list[list[str]]:
  train, test = real("wine"), real("wine", split="test")
  labels = data.wine(None, "train")["y"]
  x = np.asarray(model.sample(jax.random.key(0), n, label=np.random.default_rng(0).choice(labels, n)))
  scale = train.std(axis=0)
  rows = []
  for name, of in {
    "means, in standard deviations": lambda a: (a.mean(0) - train.mean(0)) / scale,
    "standard deviations, relative": lambda a: a.std(0) / scale - 1,
    "correlations": lambda a: np.corrcoef(a.T) - np.corrcoef(train.T),
  }.items():
    rows.append(["wine", f"{name}, largest error", largest(of(x)), f"{largest(of(test))} (18 test wines)"])
  return rows


def blobs(model: ss.Model, n: int, folder: pathlib.Path) -> list[list[str]]:
  n = min(n, 500)
  samples, real_ones = np.round(255 * drawn(model, n)), real("blobs", n)
  rows = []
  for name, of in {
    "brightness, mean": lambda a: a.mean() / 255,
    "brightness of a volume, standard deviation": lambda a: a.mean((1, 2, 3, 4)).std() / 255,
    "balls in a volume (connected parts above half of white), mean": lambda a: np.mean([balls(x) for x in a]),
  }.items():
    rows.append(["volumes", name, f"{of(samples):.4f}", f"{of(real_ones):.4f}"])
  return rows


def balls(volume: np.ndarray) -> int:
  """Returns the number of connected parts of a volume (D, H, W, 1) that are brighter than half of white."""
  return ndimage.label(volume[..., 0] > 127)[1]


def drawn(model: ss.Model, n: int, size: int = 250) -> np.ndarray:
  parts = [model.sample(jax.random.key(i), size, steps=30) for i in range(-(-n // size))]
  return np.concatenate([np.asarray(p) for p in parts])[:n]


def real(name: str, n: int | None = None, split: str = "train") -> np.ndarray:
  return getattr(data, name)(None, split)["x"][:n]


def main(args: argparse.Namespace) -> None:
  rows = []
  for name, measure in {"ar2": ar2, "field": field, "wine": wine, "blobs": blobs}.items():
    folder = pathlib.Path(args.runs) / name
    if (folder / "report.json").exists():
      rows += measure(ss.load(str(folder), allow_code=True), args.samples, folder)
  print(table(["data", "measured", "model", "the law itself"], rows))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", required=True)
  parser.add_argument("--samples", type=int, default=2000)
  main(parser.parse_args())
