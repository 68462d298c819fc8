"""Work against precision: `python -m benchmarks.samplers [--workdir=RUN] [--samples=4096] [--only=SA,Heun]
[--rows=FILE.json] [--picture=docs/images/samplers.png]`.

Every sampler at several numbers of score evaluations (NFE), on data whose score is known exactly: a mixture of eight
correlated Gaussians in 64 dimensions, under VP and VE; and with `--workdir`, on the model trained there by
configs/quickstart.py against the digits (there the floor is the distance of one half of them to the other, and what is
above it the model's own error). Three distances to the target,

  SW   sliced Wasserstein distance, the root mean square over 512 directions of W2 in one dimension,
  MMD  maximum mean discrepancy of the Gaussian kernel with the median distance as its width, unbiased square,
  ED   energy distance, the square root of 2 E|x - y| - E|x - x'| - E|y - y'|, unbiased (Székely & Rizzo 2013),

beside their Monte-Carlo floor: the size of the same numbers for sets of draws from the target itself (the root of the
root mean square of the unbiased squares of MMD and ED, over eight sets). Draws the energy distance against evaluations
and prints Markdown tables; some forty minutes on two CPU cores.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

from configs import quickstart
from score_sde.analytic import GaussianMixture
from score_sde.run import checkpoints, data
from score_sde.run.config import signature
from score_sde.run.experiment import build
from score_sde.run.sampler import Sampler, stepping
from score_sde.sampling import METHODS, AdaptiveODE, AdaptiveSDE, Interval, PredictorCorrector, Restart
from score_sde.sde import SDE, VE, VP

matplotlib.use("Agg")
import matplotlib.pyplot as plt

DIMS = 64
FLOOR = "floor: the target itself"
BUDGETS = (10, 20, 50, 100, 200, 500)


def mixture() -> GaussianMixture:
  """Eight modes 1.5 from the origin, each with a covariance of its own, standard deviations from 0.05 to 0.3."""
  rng = np.random.default_rng(0)
  means = rng.standard_normal((8, DIMS))
  means *= 1.5 / np.linalg.norm(means, axis=1, keepdims=True)
  roots = [np.linalg.qr(rng.standard_normal((DIMS, DIMS)))[0] * np.geomspace(0.05, 0.3, DIMS) for _ in range(8)]
  return GaussianMixture(means, np.stack([r @ r.T for r in roots]), np.arange(1.0, 9.0))


@jax.jit
def sliced_wasserstein(x: jax.Array, y: jax.Array) -> jax.Array:
  """Root mean square over random directions of the W2 distance of the projections of two sets of equal size."""
  directions = jax.random.normal(jax.random.key(7), (x.shape[1], 512))
  directions /= jnp.linalg.norm(directions, axis=0)
  return jnp.sqrt(jnp.mean((jnp.sort(x @ directions, axis=0) - jnp.sort(y @ directions, axis=0)) ** 2))


@jax.jit
def squared_mmd(x: jax.Array, y: jax.Array, width: jax.Array) -> jax.Array:
  """Unbiased squared maximum mean discrepancy with exp(-|x - y|² / 2 width²)."""
  n = len(x)

  def kernel(a, b):
    square = jnp.sum(a**2, 1)[:, None] + jnp.sum(b**2, 1)[None] - 2 * a @ b.T
    return jnp.exp(-square / (2 * width**2))

  within = lambda a: (jnp.sum(kernel(a, a)) - n) / (n * (n - 1))
  return within(x) + within(y) - 2 * jnp.mean(kernel(x, y))


@jax.jit
def squared_energy(x: jax.Array, y: jax.Array) -> jax.Array:
  """Unbiased squared energy distance of two sets of equal size, which may be negative."""
  n = len(x)

  def mean_distance(a, b, pairs):
    row = lambda total, one: (total + jnp.sum(jnp.linalg.norm(one - b, axis=1)), None)
    return jax.lax.scan(row, jnp.zeros(()), a)[0] / pairs

  within = lambda a: mean_distance(a, a, n * (n - 1))
  return 2 * mean_distance(x, y, n * n) - within(x) - within(y)


def samplers(sde: SDE, eps: float) -> dict[str, tuple[Callable, tuple[int, ...]]]:
  """name: (budget in evaluations -> sampler, budgets)."""
  ve = isinstance(sde, VE)
  predictor = "reverse_diffusion" if ve else "euler_maruyama"
  ordinary = "log_snr" if ve else "uniform"
  # Each on the grid of its paper.
  where = {"dpm_solver": "log_snr", "dpm_solver_sde": "log_snr", "unipc": "log_snr", "sa_solver": "log_snr"}

  def few(method, **options):
    def make(nfe):
      n = (nfe + 1) // 2 if method == "heun" else nfe  # the last step, to sigma = 0, is of one evaluation
      return stepping(METHODS[method](**options), sde, n, where.get(method, "karras"), eps=eps)

    return make, BUDGETS[:5]

  def restarted(nfe):
    n = round(0.35 * nfe)
    interval = Interval(0.06, 0.5, steps=(nfe - 2 * n + 1) // 2)
    return stepping(Restart(solver=METHODS["heun"](), restarts=(interval,)), sde, n, "karras", eps=eps)

  def pc(corrector, **options):
    def make(nfe):
      n = nfe // (1 if corrector == "none" else 2)
      official = options.get("grid") == "official"
      norms, scales = ("batch", n) if official else ("sample", 1000)
      solver = PredictorCorrector(predictor, corrector, norms=norms, num_scales=scales)
      return stepping(solver, sde, n, options.get("grid", ordinary), eps=eps)

    return make

  ode = lambda rtol: Sampler(sde, AdaptiveODE(rtol=rtol, atol=rtol), eps=eps)
  adaptive = lambda rtol: Sampler(sde, AdaptiveSDE(rtol=rtol, atol=rtol / 10), eps=eps)
  return {
    "official predictor-corrector": (pc("langevin", grid="official"), (100, 200, 500, 1000, 2000)),
    "predictor": (pc("none"), BUDGETS),
    "predictor-corrector": (pc("langevin"), BUDGETS),
    "ancestral": (lambda nfe: stepping(
      PredictorCorrector("ancestral_sampling", "none", posterior_variance=True), sde, nfe, "karras", eps=eps), BUDGETS),
    "probability flow, Euler": (lambda nfe: stepping(
      PredictorCorrector(corrector="none", probability_flow=True), sde, nfe, ordinary, eps=eps), BUDGETS),
    "probability flow, Dopri5": (ode, (1e-1, 1e-2, 1e-3, 1e-5)),
    "adaptive SDE": (adaptive, (0.5, 0.2, 0.05, 0.02)),
    "DDIM": few("ddim"),
    "DDIM, eta 1": few("ddim", eta=1.0),
    "DPM-Solver++(2M)": few("dpm_solver"),
    "DPM-Solver++(2M) SDE": few("dpm_solver_sde"),
    "UniPC-3": few("unipc"),
    "Heun": few("heun"),
    "Heun, churn 10": few("heun", churn=10.0),
    "Heun, restart": (restarted, BUDGETS[1:5]),
    "DPM-Solver++(3M) SDE": few("sa_solver", order=3, corrected=False),
    "SA-Solver, tau 0.5": few("sa_solver", tau=0.5),
    "SA-Solver, tau 1": few("sa_solver"),
    "SA-Solver, tau 1.4": few("sa_solver", tau=1.4),
    "SA-Solver, order 2, tau 1": few("sa_solver", order=2),
  }  # fmt: skip


def compare(
  name: str, sde: SDE, eps: float, score: Callable, target: np.ndarray, others: list[np.ndarray],
  only: tuple[str, ...] = ("",), file: pathlib.Path | None = None,
) -> list[tuple]:  # fmt: skip
  """(what, sampler, NFE, SW, MMD, ED, seconds) of every sampler, the floor first. Rows are kept in `file`.

  `others` are sets of draws from the target, for the floor.
  """
  kept: dict = json.loads(file.read_text()) if file and file.exists() else {}
  flat = lambda a: jnp.asarray(a.reshape(len(a), -1), jnp.float32)
  target, others = flat(target), [flat(a) for a in others]
  pairs = np.random.default_rng(1).integers(0, len(target), (2, 2000))
  width = jnp.median(jnp.linalg.norm(target[pairs[0]] - target[pairs[1]], axis=1))

  def squares(x):
    return np.array([sliced_wasserstein(x, target) ** 2, squared_mmd(x, target, width), squared_energy(x, target)])

  distances = lambda x: np.sqrt(np.maximum(squares(x), 0)).tolist()
  floor = np.sqrt(np.sqrt(np.mean(np.square([squares(x) for x in others]), axis=0)))
  rows = [(name, FLOOR, 0, *floor.tolist(), 0.0)]
  print(*rows[-1], sep="\t", flush=True)
  shape = (len(target), *([target.shape[1]] if name.startswith("mixture") else [8, 8, 1]))
  for sampler, (make, budgets) in samplers(sde, eps).items():
    if not sampler.startswith(only):
      continue
    jax.clear_caches()  # thousands of compiled programs exceed the number of memory maps of a process
    for budget in budgets:
      if f"{name}, {sampler}, {budget}" in kept:
        rows.append(tuple(kept[f"{name}, {sampler}, {budget}"]))
        continue
      start = time.perf_counter()
      x, info = make(budget)(score, jax.random.key(3), shape)
      row = (name, sampler, float(np.mean(info["nfe"])), *distances(x.reshape(len(x), -1)), time.perf_counter() - start)
      rows.append(row)
      kept[f"{name}, {sampler}, {budget}"] = row
      if file:
        file.write_text(json.dumps(kept))
      print(*row[:3], *(f"{v:.4f}" for v in row[3:]), sep="\t", flush=True)
  return rows


def plot(path: pathlib.Path, rows: list[tuple]) -> None:
  """Draws the energy distance against evaluations."""
  names = list(dict.fromkeys(r[0] for r in rows))
  stochastic = lambda sampler: (
    sampler.startswith(("SA", "DPM-Solver++(3M)", "Heun, ", "DDIM, ")) or "(2M) SDE" in sampler
  )
  titles = ("the papers' samplers, and solvers of the ODE", "stochastic solvers with few evaluations")
  figure, axes = plt.subplots(2, len(names), figsize=(6.5 * len(names), 9), squeeze=False, sharex=True, sharey="col")
  markers = "osD^v<>pP*Xhd8"
  for column, name in enumerate(names):
    mine = [r for r in rows if r[0] == name]
    floor = mine[0][5]
    for row, title in enumerate(titles):
      axis = axes[row, column]
      chosen = [
        s for s in dict.fromkeys(r[1] for r in mine[1:]) if s.startswith("official") or stochastic(s) == bool(row)
      ]
      for i, sampler in enumerate(chosen):
        points = sorted((r[2], max(r[5], floor)) for r in mine if r[1] == sampler)
        style = {"color": "black", "lw": 2.5} if sampler.startswith("official") else {"color": plt.cm.tab10(i % 10)}
        axis.plot(*zip(*points, strict=True), marker=markers[i % len(markers)], ms=5, label=sampler, **style)
      axis.axhline(floor, color="gray", ls="--", label="two sets of draws from the target")
      axis.set(xscale="log", yscale="log", title=f"{name}: {title}", ylabel="energy distance to the target")
      axis.grid(alpha=0.3, which="both")
      axis.legend(fontsize=7, loc="upper right", frameon=False)
  for axis in axes[-1]:
    axis.set_xlabel("score evaluations per sample")
  figure.tight_layout()
  figure.savefig(path, dpi=150)


def table(rows: list[tuple]) -> str:
  """Returns a Markdown table for each target: "NFE: ED (SW)" of each sampler."""
  parts = []
  for name in dict.fromkeys(r[0] for r in rows):
    mine = [r for r in rows if r[0] == name]
    parts += [f"## {name[0].upper()}{name[1:]}", "", f"Floor: ED {mine[0][5]:.4f}, SW {mine[0][3]:.4f}.", ""]
    parts += ["| sampler | NFE: ED (SW) |", "|---|---|"]
    for sampler in dict.fromkeys(r[1] for r in mine[1:]):
      cells = ", ".join(f"{r[2]:.0f}: {r[5]:.4f} ({r[3]:.4f})" for r in mine if r[1] == sampler)
      parts.append(f"| {sampler} | {cells} |")
    parts.append("")
  return "\n".join(parts)


def trained(workdir: str) -> tuple[SDE, float, Callable, np.ndarray, np.ndarray]:
  """The model of a quickstart's workdir, and all digits, dequantized, in two random halves."""
  experiment = build(quickstart.get_config())
  with checkpoints.manager(workdir) as opened:
    targets = {"ema_params": experiment.abstract_params()}
    _, items = checkpoints.restore(opened, targets, signature(experiment.config), workdir)
  config = experiment.config
  sources = [data.load(config, split) for split in ("train", "test")]
  real = np.concatenate([source.gather(np.arange(len(source)))["image"] for source in sources])
  real = np.random.default_rng(0).permutation(real)
  keys = jax.random.split(jax.random.key(5), len(real))
  real = np.asarray(experiment.scaling.prepare(keys, jnp.asarray(real)))
  half = len(real) // 2
  score = experiment.score(items["ema_params"])
  return experiment.sde, config.sampling.eps, score, real[:half], real[half : 2 * half]


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--workdir", help="a run of configs/quickstart.py")
  parser.add_argument("--samples", type=int, default=4096)
  parser.add_argument("--only", default="", help="beginnings of samplers' names, separated by commas; default: all")
  parser.add_argument("--rows", help="JSON file that keeps finished rows; the same command goes on from there")
  parser.add_argument("--picture", default="docs/images/samplers.png")
  options = parser.parse_args()
  exact, rows, only = mixture(), [], tuple(options.only.split(","))
  file = pathlib.Path(options.rows) if options.rows else None
  target, *others = (np.asarray(exact.sample(jax.random.key(i), options.samples)) for i in range(9))
  for name, sde, eps in (("mixture, VP", VP(), 1e-3), ("mixture, VE", VE(0.01, 10.0), 1e-5)):
    rows += compare(name, sde, eps, jax.tree_util.Partial(exact.score(sde)), target, others, only, file)
  if options.workdir:
    sde, eps, score, target, other = trained(options.workdir)
    rows += compare("digits, trained VP", sde, eps, score, target, [other], only, file)
  picture = pathlib.Path(options.picture)
  picture.parent.mkdir(parents=True, exist_ok=True)
  plot(picture, rows)
  print(table(rows))


if __name__ == "__main__":
  main()
