"""UniPC: a multistep predictor with a corrector. Each evaluation serves the corrector and the next step."""

import dataclasses
import math

import jax.numpy as jnp

from score_sde.batch import Array, Time
from score_sde.sampling.multistep import Multistep, Transition, through
from score_sde.sde import LinearSDE


@dataclasses.dataclass(frozen=True)
class UniPC(Multistep):
  """UniPC-3: order 3, one evaluation per step and one at the start. Zhao et al. 2023, Algorithms 5 and 6.

  B(h) = exp(h) - 1. The first two steps have fewer previous points. Their orders are 1 and 2 before correction, and 2
  and 3 after it, see `Multistep`. The last step, to sigma = 0, reuses the evaluation that corrected the previous step.
  So n steps take n evaluations.

  Example:
    >>> import jax, score_sde as ss
    >>> ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (4, 2), solver=ss.UniPC(), steps=20).shape
    (4, 2)
  """

  def transition(self, sde: LinearSDE, start: Time, stop: Time, h: Array) -> Transition:
    gained = -sde.alpha(stop) * jnp.expm1(-h)

    def weights(places: list[Array]) -> list[Array]:
      """Returns the weights of Zhao et al. 2023, eq. (5)."""
      b_h, phi, right = jnp.expm1(-h), jnp.expm1(-h) / -h - 1, []
      for j in range(len(places)):
        right.append(math.factorial(j + 1) * phi / b_h)
        phi = phi / -h - 1 / math.factorial(j + 2)
      found = through(places, jnp.stack(right, axis=-1))
      return [gained * found[:, k] for k in range(len(places))]

    return Transition(sde.sigma(stop) / sde.sigma(start), gained, weights)
