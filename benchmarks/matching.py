"""Every objective of score matching, trained on one 2-D mixture at one noise level: how exact, how noisy, how slow.

    python -m benchmarks.matching [--steps=3000] [--picture=docs/images/matching.png]

The error is that of the learned score against the exact one, ‖s - grad log p‖ / ‖grad log p‖ in the mean square over
the densest 90% of fresh noisy data. The standard deviation is that of the objective over examples at the exact score,
where nothing is left to learn. Everything runs in one process, one objective after the other.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from score_sde import analytic
from score_sde.batch import example_keys
from score_sde.losses import OBJECTIVES, ScoreMatching
from score_sde.models import MLP, energy
from score_sde.parameterization import ScoreModel
from score_sde.sde import VE

DATA = analytic.GaussianMixture(
  means=[[1.4, 0.6], [-1.2, 0.9], [0.1, -1.3]],
  covariances=[[[0.30, 0.15], [0.15, 0.20]], [[0.15, -0.05], [-0.05, 0.25]], [[0.4, 0.0], [0.0, 0.1]]],
  weights=[0.3, 0.3, 0.4],
)
SDE, SIGMA, BATCH = VE(), 0.3, 1024


def level(n: int) -> jax.Array:
  """The time at which sigma is SIGMA, n times."""
  return jnp.full(n, SDE.time_of_log_snr(jnp.asarray(-2 * np.log(SIGMA))))


def make_loss(model: ScoreModel, objective: str) -> ScoreMatching:
  """The objective at the one noise level."""
  exact = DATA.score(SDE)
  return ScoreMatching(
    model, objective=objective, target=exact, time_sampling="single", single_sigma=SIGMA, reduce_mean=False
  )


def train(objective: str, steps: int, with_energy: bool = False) -> tuple:
  """(score of the trained network as a function of x, seconds a step)."""
  network = MLP(nf=64, num_res_blocks=2, fourier_scale=0.2)
  apply = lambda params, *args: network.apply({"params": params}, *args)
  params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
  potential = energy.potential(apply, "inner") if with_energy else None
  function = energy.gradient(potential) if with_energy else apply
  model = ScoreModel(SDE, function, "edm", "sigma", sigma_data=1.3, potential=potential)
  loss, optimizer = make_loss(model, objective), optax.adam(optax.cosine_decay_schedule(3e-3, steps))

  @jax.jit
  def advance(carry, i):
    params, state = carry
    key = jax.random.fold_in(jax.random.key(1), i)
    x0, keys = DATA.sample(key, BATCH), example_keys(key, jnp.arange(BATCH))
    gradient = jax.grad(lambda p: loss(p, keys, x0, jnp.arange(BATCH), BATCH).mean())(params)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), ()

  many = jax.jit(lambda carry, first: jax.lax.scan(advance, carry, first + jnp.arange(100))[0], donate_argnums=0)
  carry = many((params, optimizer.init(params)), 0)
  jax.block_until_ready(carry)
  start = time.perf_counter()
  for first in range(100, steps, 100):
    carry = many(carry, first)
  jax.block_until_ready(carry)
  return jax.jit(lambda x: model.score(carry[0], x, level(len(x)))), (time.perf_counter() - start) / (steps - 100)


def error(score, n: int = 20_000) -> float:
  """Relative L2 error of `score` on the densest 90% of noisy data."""
  x = DATA.sample(jax.random.key(2), n) + SIGMA * jax.random.normal(jax.random.key(3), (n, 2))
  density = DATA.log_density(SDE, x, level(n))
  x = x[density > jnp.quantile(density, 0.1)]
  exact = DATA.score(SDE)(x, level(len(x)))
  return float(jnp.sqrt(jnp.sum((score(x) - exact) ** 2) / jnp.sum(exact**2)))


def spread(objective: str, n: int = 20_000) -> float:
  """Standard deviation of the objective over examples, at the exact score."""
  exact = DATA.score(SDE)
  model = ScoreModel(SDE, lambda params, x, labels, keys: exact(x, level(len(x))), "score", "sigma")
  x0, keys = DATA.sample(jax.random.key(4), n), example_keys(jax.random.key(5), jnp.arange(n))
  return float(make_loss(model, objective)(None, keys, x0, jnp.arange(n), n).std())


def draw(path: str, fields: dict) -> None:
  """The learned fields over the density of the noisy data."""
  from matplotlib.figure import Figure

  axis = jnp.linspace(-3, 3, 19)
  grid = jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
  fine = jnp.linspace(-3, 3, 121)
  points = jnp.stack(jnp.meshgrid(fine, fine), axis=-1)
  density = jnp.exp(DATA.log_density(SDE, points.reshape(-1, 2), level(121**2))).reshape(121, 121)
  figure = Figure(figsize=(14, 7.4))
  for i, (name, (score, off)) in enumerate(fields.items()):
    axes = figure.add_subplot(2, 4, i + 1)
    axes.contourf(fine, fine, density, levels=12, cmap="Blues")
    arrows = np.asarray(score(grid))
    length = np.linalg.norm(arrows, axis=1, keepdims=True)
    arrows = arrows / np.maximum(length, 1e-9) * np.tanh(length / 6)
    axes.quiver(*np.asarray(grid).T, *arrows.T, scale=22, width=0.004)
    axes.set_title(name + ("" if off is None else f": {100 * off:.1f}% off"), fontsize=11)
    axes.set(xticks=[], yticks=[], aspect="equal")
  figure.suptitle("Scores learned by every objective, over the density of the noisy data", fontsize=12)
  figure.savefig(path, dpi=80, bbox_inches="tight")


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--steps", type=int, default=3000)
  parser.add_argument("--picture", default="")
  options = parser.parse_args()
  fields = {"exact": (lambda x: DATA.score(SDE)(x, level(len(x))), None)}
  print(f"{'objective':12} {'error':>7} {'of an energy':>13} {'std':>7} {'ms/step':>8} {'of an energy':>13}")
  for name in OBJECTIVES:
    score, seconds = train(name, options.steps)
    by_energy, slower = train(name, options.steps, with_energy=True)
    fields[name] = (score, error(score))
    if name == "ssm_vr":
      fields["ssm_vr, an energy"] = (by_energy, error(by_energy))
    print(
      f"{name:12} {100 * error(score):6.1f}% {100 * error(by_energy):12.1f}% {spread(name):7.2f} "
      f"{1e3 * seconds:8.1f} {1e3 * slower:13.1f}",
      flush=True,
    )
  if options.picture:
    draw(options.picture, fields)


if __name__ == "__main__":
  main()
