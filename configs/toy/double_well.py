"""Two moons under a user's own SDE, a double well, without a closed-form kernel.

Paths are simulated, the score is learned by sliced score matching, and sampling starts from simulated end points.

    dx = -k (x - c(x)) dt + √(2k) s dw,    c(x) = (tanh 2 x₀, 0)

is an Ornstein-Uhlenbeck process with two wells near x₀ = ±1. This file only defines its drift and diffusion.
"""

import dataclasses
import math

import jax.numpy as jnp

from configs.toy import base
from score_sde.sde import SDE


@dataclasses.dataclass(frozen=True)
class DoubleWell(SDE):
  """Double well: an Ornstein-Uhlenbeck process with two wells.

  Attributes:
    stiffness: k, per unit of time.
    noise: s, the standard deviation in one well.
  """

  stiffness: float = 1.5
  noise: float = 0.8

  def drift(self, x, t):
    well = jnp.tanh(2 * x[:, :1])
    return -self.stiffness * jnp.concatenate([x[:, :1] - well, x[:, 1:]], axis=1)

  def diffusion(self, x, t):
    return jnp.full(t.shape, math.sqrt(2 * self.stiffness) * self.noise, x.dtype)


def double_well(model):
  """Returns the SDE. config.training.sde names this function."""
  return DoubleWell()


def get_config():
  config = base.get_config()
  config.data.dataset = "two_moons"
  config.training.sde = "configs/toy/double_well.py:double_well"
  config.eval.enable_bpd = False  # the start distribution of sampling has no known density
  return config
