"""Energy-based models: the score is the gradient of a scalar, made from any network f by a scalar head.

    inner   φ(x) = <x, f(x)>
    norm    φ(x) = <x, f(x)> - ½ ‖f(x)‖²,  that is ½ ‖x‖² - ½ ‖x - f(x)‖²
    sum     φ(x) = Σ f(x)

The gradient of a scalar is the score of a density. The output of a network is in general not. Salimans & Ho 2021,
eq. (6) to (8), for the heads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from score_sde.batch import Array, sum_over_dims

Network = Callable[..., Array]  # (params, x, ...) -> like x

# name: (x, f(x)) -> (B,).
HEADS = {
  "inner": lambda x, f: sum_over_dims(x * f),
  "norm": lambda x, f: sum_over_dims(x * f - f**2 / 2),
  "sum": lambda x, f: sum_over_dims(f),
}


def potential(network: Network, head: str) -> Network:
  """Returns φ(params, x, ...) -> (B,) of a network (params, x, ...) -> like x. `head` is a name in HEADS."""
  return lambda params, x, *rest: HEADS[head](x, network(params, x, *rest))


def gradient(scalar: Network) -> Network:
  """Returns ∇φ(params, x, ...) -> like x, the network for a `ScoreModel`."""
  return lambda params, x, *rest: jax.grad(lambda x: jnp.sum(scalar(params, x, *rest)))(x)
