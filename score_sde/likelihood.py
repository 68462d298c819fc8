"""Exact log-likelihoods by the instantaneous change of variables along the probability-flow ODE.

    log p_0(x) = log p_T(x_T) + ∫₀ᵀ div f̃(x_t, t) dt,        div f̃ = E[eᵀ (∂f̃/∂x) e]

Song et al. 2021, eq. (39) and (40); Hutchinson 1990, Skilling 1989 for the estimate of the trace. Drift and divergence
come from one forward derivative (`jax.jvp`), some two evaluations of the score.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde import parallel
from score_sde.batch import Array
from score_sde.sampling.ode import solve
from score_sde.sde import SDE, Reverse, Score, as_argument, bind

PROBES = {
  "rademacher": lambda key, shape, dtype: jax.random.rademacher(key, shape, dtype),
  "gaussian": lambda key, shape, dtype: jax.random.normal(key, shape, dtype),
}


def log_likelihood(
  sde: SDE,
  *,
  eps: float = 1e-5,
  rtol: float = 1e-5,
  atol: float = 1e-5,
  solver: str = "dopri5",
  probe: str = "rademacher",
  num_probes: int = 1,
  max_steps: int = 4096,
) -> Callable[[Score, Array, Array], tuple[Array, Array, Array, Array]]:
  """Builds `log_p(score, keys, x, condition=None) -> (log-density in nats, x_T, nfe, success)`.

  It compiles once a shape of `x` (B, ...). With a `condition`, a pytree of (B, ...) arrays, each example's score is
  score(x, t, condition), as that of a class-conditional network is.

  Args:
    sde: the forward SDE.
    eps: time at which `x` stands; the density is that of x_eps.
    rtol, atol, solver, max_steps: of the adaptive solve, one for every sample.
    probe: "rademacher" or "gaussian" vectors estimate the divergence, one key of `keys` (B,) an example;
      "exact" computes it with as many derivatives as dimensions.
    num_probes: probes an example.

  Raises:
    ValueError: for an unknown probe.
  """
  if probe != "exact" and probe not in PROBES:
    raise ValueError(f"eval.probe={probe!r} is unknown; choose one of {', '.join(PROBES)}, exact.")

  def one(score: Score, key: Array, x: Array, condition: Any):
    flow = Reverse(sde, bind(score, jax.tree.map(lambda c: c[None], condition)), probability_flow=True)
    dims = x.size
    if probe == "exact":
      probes = jnp.eye(dims, dtype=x.dtype).reshape(dims, *x.shape)
      weight = 1.0
    else:
      probes = PROBES[probe](key, (num_probes, *x.shape), x.dtype)
      weight = 1 / num_probes

    def field(t, state, probes):
      x, _ = state
      drift = lambda x: flow.drift(x[None], jnp.reshape(t, (1,)).astype(x.dtype))[0]
      if len(probes) == 1:
        value, along = jax.jvp(drift, (x,), (probes[0],))
        return value, jnp.sum(along * probes[0])
      value, derivative = jax.linearize(drift, x)
      return value, weight * jnp.sum(jax.vmap(derivative)(probes) * probes)

    options = {"rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps}
    state = (x, jnp.zeros((), x.dtype))
    (z, delta), nfe, success = solve(field, state, probes, eps, sde.T, **options)
    return sde.prior_logp(z[None])[0] + delta, z, nfe, success

  mapped = parallel.map_batch(lambda score, batch: jax.vmap(lambda b: one(score, *b))(batch), (None, 0))

  def log_p(score: Score, keys: Array, x: Array, condition: Any = None) -> tuple[Array, Array, Array, Array]:
    out = mapped(as_argument(score), parallel.shard((keys, x, condition)))
    return parallel.unshard(out, x.shape[0])

  return log_p


def bits_per_dim(log_p: Array, dims: int, levels: int, scale: float) -> Array:
  """-log2 p / dims + log2(levels) + log2(scale): bits a dimension of the discrete image that `levels` bins quantize.

  Args:
    log_p: log-density, in nats, of the data as the model sees it, from uniformly dequantized images.
    dims: dimensions of an image.
    levels: gray levels, 256 for ordinary images.
    scale: d(image in [0, 1]) / d(model's data): 1 for data in [0, 1], 1/2 for data in [-1, 1].
  """
  return -log_p / (dims * math.log(2)) + math.log2(levels) + math.log2(scale)
