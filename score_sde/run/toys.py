"""Toy data: points in the plane, drawn from a generator."""

import numpy as np

from score_sde.analytic import GaussianMixture


def swiss_roll(rng: np.random.Generator, n: int) -> np.ndarray:
  """Draws points (n, 2) of a spiral of one and a half turns, with a little noise."""
  from sklearn.datasets import make_swiss_roll

  points, _ = make_swiss_roll(n, noise=0.5, random_state=int(rng.integers(2**31)))
  return points[:, [0, 2]] / 7.0


def two_moons(rng: np.random.Generator, n: int) -> np.ndarray:
  """Draws points (n, 2) of two interleaved half circles."""
  from sklearn.datasets import make_moons

  points, _ = make_moons(n, noise=0.06, random_state=int(rng.integers(2**31)))
  return (points - [0.5, 0.25]) * 1.5


def checkerboard(rng: np.random.Generator, n: int) -> np.ndarray:
  """Draws points (n, 2) of the dark squares of a 4 x 4 board on [-2, 2]²."""
  column, row = rng.integers(4, size=n), rng.integers(2, size=n)
  corner = np.stack([column, 2 * row + column % 2], axis=1) - 2.0
  return corner + rng.uniform(size=(n, 2))


def eight_gaussians(rng: np.random.Generator, n: int) -> np.ndarray:
  """Draws points (n, 2) of eight equally likely Gaussians of standard deviation 0.1 on a circle of radius 1.5."""
  angle = rng.integers(8, size=n) * np.pi / 4
  return 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1) + 0.1 * rng.standard_normal((n, 2))


def eight_gaussians_density() -> GaussianMixture:
  """Returns the density of `eight_gaussians`."""
  angle = np.arange(8) * np.pi / 4
  means = 1.5 * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return GaussianMixture(means, np.tile(0.01 * np.eye(2), (8, 1, 1)), np.ones(8))


TOYS = {
  "swiss_roll": swiss_roll,
  "two_moons": two_moons,
  "checkerboard": checkerboard,
  "eight_gaussians": eight_gaussians,
}


# Toys whose density is known in closed form.
DENSITIES = {"eight_gaussians": eight_gaussians_density}
