"""The probability-flow ODE as a bijection between data and latents: exact log-likelihoods, encoding, decoding.

    log p_0(x) = log p_T(x_T) + ∫₀ᵀ div f̃(x_t, t) dt,        div f̃ = E[eᵀ (∂f̃/∂x) e]

Song et al. 2021, eq. (39) and (40); Hutchinson 1990, Skilling 1989 for the estimate of the trace. Drift and divergence
come from one forward derivative (`jax.jvp`), some two evaluations of the score.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from score_sde.batch import Array, expand, norm, sum_over_dims
from score_sde.run import devices
from score_sde.sampling.ode import flow, solve
from score_sde.sde import SDE, Reverse, Score, as_argument, bind
from score_sde.trace import PROBES, along, basis


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
  prior_logp: Callable[[Array], Array] | None = None,
) -> Callable[[Score, Array, Array], tuple[Array, Array, Array, Array]]:
  """Builds `log_p(score, keys, x, condition=None) -> (log-density in nats, x_T, nfe, t)`.

  t (B,) is the time that the solve reached: T, unless it ran into `max_steps`, where the density is not to be used.

  It compiles once a shape of `x` (B, ...). With a `condition`, a pytree of (B, ...) arrays, each example's score is
  score(x, t, condition), as that of a class-conditional network is.

  Args:
    sde: the forward SDE.
    eps: time at which `x` stands; the density is that of x_eps.
    rtol, atol, solver, max_steps: of the adaptive solve, one for every sample.
    probe: "rademacher" or "gaussian" vectors estimate the divergence, one key of `keys` (B,) an example;
      "exact" computes it with as many derivatives as dimensions.
    num_probes: probes an example.
    prior_logp: log-density (B,) of x_T, in place of the SDE's prior: the exact one of `analytic` data, say.

  Raises:
    ValueError: for an unknown probe, or an SDE without a likelihood.
  """
  if prior_logp is None and sde.why_no_likelihood:
    raise ValueError(f"{type(sde).__name__} has no likelihood: {sde.why_no_likelihood}")
  prior_logp = prior_logp or sde.prior_logp
  if probe != "exact" and probe not in PROBES:
    raise ValueError(f"eval.probe={probe!r} is unknown; choose one of {', '.join(PROBES)}, exact.")

  def one(score: Score, key: Array, x: Array, condition: Any):
    reverse = Reverse(sde, bind(score, jax.tree.map(lambda c: c[None], condition)), probability_flow=True)
    dims = x.size
    if probe == "exact":
      probes, weight = basis(x, dims), 1.0
    else:
      probes = PROBES[probe](key, (num_probes, *x.shape), x.dtype)
      weight = 1 / num_probes

    def field(t, state, probes):
      x, _ = state
      drift = lambda x: reverse.drift(x[None], jnp.reshape(t, (1,)).astype(x.dtype))[0]
      value, products = along(drift, x, probes)
      return value, weight * jnp.sum(products * probes)

    options = {"rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps}
    state = (x, jnp.zeros((), x.dtype))
    (z, delta), nfe, t = solve(field, state, probes, eps, sde.T, **options)
    return prior_logp(z[None])[0] + delta, z, nfe, t

  mapped = devices.map_batch(lambda score, batch: jax.vmap(lambda b: one(score, *b))(batch), (None, 0))

  def log_p(score: Score, keys: Array, x: Array, condition: Any = None) -> tuple[Array, Array, Array, Array]:
    out = mapped(as_argument(score), devices.shard((keys, x, condition)))
    return devices.unshard(out, x.shape[0])

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


def normalize(
  log_density: Callable[[Array], Array], low: Array, high: Array, n: int = 200
) -> tuple[Array, Array, Array]:
  """Quadrature of an unnormalized density in one or two dimensions: (points, log-density, log-normalizer).

  log Z = log ∫ exp(log_density(x)) dx over the box from `low` to `high` (D,), by the midpoint rule with n points an
  axis; `points` are (n, 1) or (n, n, 2), and the log-density at them, in nats, integrates to one over the box.

  Raises:
    ValueError: for another number of dimensions, or an empty box.
  """
  low, high = (jnp.atleast_1d(jnp.asarray(a, jnp.float32)) for a in (low, high))
  if len(low) not in (1, 2) or low.shape != high.shape or not bool((low < high).all()):
    raise ValueError(f"Quadrature needs one or two dimensions and low < high, got {low} and {high}.")
  width = (high - low) / n
  axes = [a + w * (jnp.arange(n) + 0.5) for a, w in zip(low, width, strict=True)]
  points = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)
  values = log_density(points.reshape(-1, len(low))).reshape(points.shape[:-1])
  log_z = jax.nn.logsumexp(values) + jnp.sum(jnp.log(width))
  return points, values - log_z, log_z


Code = Callable[..., tuple[Array, dict[str, Array]]]


def encoder(
  sde: SDE, *, eps: float = 1e-5, rtol: float = 1e-6, atol: float = 1e-6, solver: str = "dopri5", max_steps: int = 4096
) -> tuple[Code, Code]:
  """Builds `(encode, decode)`, each `(score, x, condition=None) -> (y, info)` on x (B, ...).

  `encode` carries data, standing at time `eps`, to its latent at T, `decode` back: each datum has one latent, and each
  latent one datum. Under VP and sub-VP latents of data are standard normal, under VE N(0, sigma_max² I); scaled by a
  temperature below one they decode to smoother data. A tolerance of 1e-6 keeps data that lies between modes, where the
  flow stretches most, within 1e-3 after both ways. Song et al. 2021, Section 4.3 and Appendix D.5.

  `info` holds (B,) "nfe" and "t", the time reached, which tells a solve that ran into `max_steps`.

  Raises:
    ValueError: for an unknown solver or an eps outside (0, T).
  """
  if not 0 < eps < sde.T:
    raise ValueError(f"eps must lie in (0, {sde.T}), got {eps}.")
  options = {"rtol": rtol, "atol": atol, "solver": solver, "max_steps": max_steps}

  def along(start: float, stop: float) -> Code:
    move = flow(sde, start=start, stop=stop, **options)
    run = devices.map_batch(lambda score, batch: move(score, *batch), (None, 0))

    def code(score: Score, x: Array, condition: Any = None) -> tuple[Array, dict[str, Array]]:
      y, nfe, t = devices.unshard(run(as_argument(score), devices.shard((x, condition))), x.shape[0])
      return y, {"nfe": nfe, "t": t}

    return code

  return along(eps, sde.T), along(sde.T, eps)


def interpolate(a: Array, b: Array, weights: Array) -> Array:
  """Latents (K, B, ...) between `a` and `b` (B, ...): on the great circle, at `weights` (K,) in [0, 1] of the way.

  sin((1 - w) θ) / sin θ a + sin(w θ) / sin θ b, θ the angle between the two, so that norms stay those of latents, where
  straight lines would pass too close to the origin. Song et al. 2021, Appendix D.5.
  """
  cosine = sum_over_dims(a * b) / (norm(a) * norm(b))
  angle = jnp.maximum(jnp.arccos(jnp.clip(cosine, -1, 1)), 1e-4)
  share = lambda w: expand(jnp.sin(w * angle) / jnp.sin(angle), a)
  return jnp.stack([share(1 - w) * a + share(w) * b for w in jnp.asarray(weights, a.dtype)])
