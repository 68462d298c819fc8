"""An SDE, a network, a data set, a solver, a weighting and a metric of one's own: see docs/extending.md."""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

import score_sde as ss
from score_sde.options import option


@dataclasses.dataclass(frozen=True)
class Quadratic(ss.LinearSDE):
  """x_t = alpha x_0 + sigma z with alpha = 1 - 0.99 t² and sigma² = 1 - alpha²: all else follows."""

  def alpha(self, t):
    return 1 - 0.99 * t**2

  def sigma(self, t):
    return jnp.sqrt(0.99 * t**2 * (1 + self.alpha(t)))


def quadratic(model):
  """training.sde."""
  return Quadratic()


class Sines(nn.Module):
  """Two hidden layers of sines that see time: (B, D), (B,) -> (B, D)."""

  width: int = 128

  @nn.compact
  def __call__(self, x, t, y=None):
    h = jnp.concatenate([x, jnp.stack([t, jnp.sin(3 * t), jnp.cos(3 * t)], axis=1)], axis=1)
    for _ in range(2):
      h = jnp.sin(nn.Dense(self.width)(h))
    return nn.Dense(x.shape[1], kernel_init=nn.initializers.zeros)(h)


def sines(model):
  """model.name."""
  return Sines(width=model.nf)


def ring(data, split):
  """data.dataset: points on a circle of radius 1, with a little noise."""
  rng = np.random.default_rng(split == "train")
  angle = rng.uniform(0, 2 * np.pi, 20_000 if split == "train" else 1_000)
  points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return points + 0.05 * rng.standard_normal(points.shape)


@dataclasses.dataclass(frozen=True)
class Midpoint(ss.Solver):
  """The probability-flow ODE by the midpoint rule: two evaluations per step, of order 2."""

  share: float = option(0.5, "where in the step the second slope is taken", "(0, 1]")

  def step(self, sde, score, keys, state, t, start, stop):
    drift = ss.Reverse(sde, score, probability_flow=True).drift
    h = (stop - start)[:, None]
    first = drift(state.x, start)
    second = drift(state.x + self.share * h * first, start + self.share * (stop - start))
    weight = 1 / (2 * self.share)
    x = state.x + h * ((1 - weight) * first + weight * second)
    return ss.State(x, x)

  def evaluations(self, steps):
    return 2 * steps


def midpoint(sampling):
  """sampling.method."""
  return Midpoint()


def little_noise_first(loss, t, level):
  """training.weighting: twice the weight where the noise is less than the data."""
  return jnp.where(level.sigma < 0.5, 2.0, 1.0)


def radius(samples, examples):
  """eval.metrics: how far samples are from the circle, beside test examples."""
  off = lambda x: float(np.abs(np.linalg.norm(x, axis=1) - 1).mean())
  return {"distance from the circle": off(samples), "distance of test examples": off(examples)}
