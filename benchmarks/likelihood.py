"""Likelihoods, counted and pictured: `python -m benchmarks.likelihood [--out=docs/images]`.

Cost: drift and divergence of the probability-flow ODE by one `jax.jvp`, against one forward pass of the same network
and against two separate calls as in the official code, in FLOPs by XLA's count and in time.

Picture: for a Gaussian whose score is off by a known factor, the error of the score weighted by g(t)², against log-SNR,
in bits/dim. Its area is the bound of ScoreFlow's Theorem 1 on KL(p ‖ p_SDE); beside it the exact KL of the
reverse-time SDE, which obeys the bound, and that of the ODE, which does not. Under a minute on two CPU cores.
"""

import argparse
import math
import pathlib
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from score_sde.analytic import gaussian
from score_sde.bounds import kl_bound
from score_sde.run.config import default_config
from score_sde.run.experiment import build
from score_sde.sde import VE, VP, LinearSDE, Reverse, SubVP

matplotlib.use("Agg")
import matplotlib.pyplot as plt

STD, EPS = 0.5, 1e-3


def cost() -> None:
  """Prints what one evaluation of drift and divergence costs."""
  config = default_config()
  config.data.image_size, config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 32, 64, (1, 2), 1
  config.training.sde = "vpsde"
  experiment = build(config)
  params = jax.jit(experiment.init_params)(jax.random.key(0))
  x, t = jnp.ones((4, 32, 32, 3)), jnp.full(4, 0.5)

  def drift(params, x):
    return Reverse(experiment.sde, experiment.score(params), probability_flow=True).drift(x, t)

  def one_jvp(params, x, probe):
    value, along = jax.jvp(lambda x: drift(params, x), (x,), (probe,))
    return value, jnp.sum(along * probe, axis=(1, 2, 3))

  def two_calls(params, x, probe):
    inner = jax.grad(lambda x: jnp.sum(drift(params, x) * probe))(x)
    return jax.lax.optimization_barrier(drift(params, jax.lax.optimization_barrier(x))), jnp.sum(inner * probe)

  programs = {
    "forward": (drift, (params, x)),
    "one jvp": (one_jvp, (params, x, x)),
    "two calls, as official": (two_calls, (params, x, x)),
  }
  measured = {}
  for name, (fn, args) in programs.items():
    compiled, times = jax.jit(fn).lower(*args).compile(), []
    for _ in range(12):
      start = time.perf_counter()
      jax.block_until_ready(compiled(*args))
      times.append(time.perf_counter() - start)
    measured[name] = compiled.cost_analysis()["flops"], statistics.median(times[2:])
  flops, seconds = measured["forward"]
  print("| program | FLOPs, in forward passes | time, in forward passes |\n|---|---|---|")
  for name, (f, s) in measured.items():
    print(f"| {name} | {f / flops:.2f} | {s / seconds:.2f} |")


def divergences(sde: LinearSDE, slope: Callable) -> tuple[float, float]:
  """KL of N(0, STD²) at EPS to what reverse SDE and ODE make of the prior with the score slope(t) x, in nats.

  The variance v of either obeys a linear ODE backward in time, dv = -(2 f - 2 c g² slope) v + (g² or 0), c = 1 or 1/2.
  """
  times = np.linspace(sde.T, EPS, 20_001)
  middle = jnp.asarray((times[1:] + times[:-1]) / 2)
  f, g2, s = (np.asarray(jax.vmap(a)(middle), np.float64) for a in (sde.dlog_alpha, lambda t: _g2(sde, t), slope))
  found, h = [], times[0] - times[1]
  seen = float(_variance(sde, jnp.asarray(EPS)))
  for share, noise in ((1.0, 1.0), (0.5, 0.0)):
    variance = sde.prior_std**2
    for grown, added in zip(np.exp(-2 * h * (f - share * g2 * s)), noise * g2 * h, strict=True):
      variance = grown * variance + added
    ratio = seen / variance
    found.append((ratio - 1 - math.log(ratio)) / 2)
  return found[0], found[1]


def _variance(sde: LinearSDE, t: jax.Array) -> jax.Array:
  return (sde.alpha(t) * STD) ** 2 + sde.sigma(t) ** 2


def _g2(sde: LinearSDE, t: jax.Array) -> jax.Array:
  return sde.diffusion(jnp.zeros(1), t) ** 2


def picture(path: pathlib.Path) -> None:
  figure, axes = plt.subplots(1, 3, figsize=(15, 4.4))
  sdes = {"VE": VE(0.01, 20.0), "VP": VP(), "sub-VP": SubVP()}
  for axis, (name, sde) in zip(axes, sdes.items(), strict=True):
    slope = lambda t, sde=sde: -0.8 / _variance(sde, t)
    score = lambda x, t, slope=slope: slope(t)[:, None] * x
    data = gaussian([0.0], [[STD**2]])
    bound = kl_bound(sde, data, score, jax.random.key(0), eps=EPS, n=20_000, num_times=300)
    to_sde, to_ode = divergences(sde, slope)
    bits = 1 / math.log(2)
    axis.fill_between(bound["log_snr"], bits * bound["density"], alpha=0.35)
    axis.set(title=name, xlabel="log-SNR (noise on the left)", ylim=(0, None))
    label = (
      f"bound {bits * float(bound['bound']):.3f}\nKL(p ‖ SDE) {bits * to_sde:.3f}\nKL(p ‖ ODE) {bits * to_ode:.3f}"
    )
    axis.text(0.97, 0.96, label, transform=axis.transAxes, va="top", ha="right", family="monospace")
    axis.grid(alpha=0.3)
    print(name, label.replace("\n", ", "))
  axes[0].set_ylabel("½ g² E|score error|² per unit of log-SNR, bits/dim")
  figure.suptitle("A score 20% too small, of N(0, 0.5²): what Theorem 1 bounds, and what it does not")
  figure.tight_layout()
  path.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(path, dpi=110)


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--out", default="docs/images")
  options = parser.parse_args()
  picture(pathlib.Path(options.out) / "kl_bound.png")
  cost()


if __name__ == "__main__":
  main()
