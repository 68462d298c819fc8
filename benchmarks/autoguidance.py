"""Autoguidance in two dimensions, with exact scores: `python -m benchmarks.autoguidance`.

The data are two spirals of narrow Gaussians. Both models see them blurred, the weaker one twice as much in variance, as
networks of too few parameters do. Draws docs/images/autoguidance.png and prints, for each scale, the mean distance of a
sample to the nearest point of the curve, and the largest error in the share of an eighth of the data.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np

import score_sde as ss
from score_sde.analytic import GaussianMixture
from score_sde.guidance import Autoguidance

matplotlib.use("Agg")
import matplotlib.pyplot as plt

POINTS = 96
WIDTH, GOOD, WEAK = 0.02, 0.006, 0.012  # the curve's standard deviation; variances added by the models


def curve(n: int) -> np.ndarray:
  """n points on each of two spiral arms, (2 n, 2), evenly along them."""
  angle = np.sqrt(np.linspace(0.05, 1, n)) * 2.2 * np.pi
  arm = (angle / (2.2 * np.pi))[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return 1.6 * np.concatenate([arm, -arm])


def blurred(variance: float) -> GaussianMixture:
  points = curve(POINTS // 2)
  return GaussianMixture(points, np.stack([(WIDTH**2 + variance) * np.eye(2)] * len(points)), np.ones(len(points)))


def main() -> None:
  sde, n = ss.VP(), 4000
  good, weak = (blurred(v).score(sde) for v in (GOOD, WEAK))
  scores = {"the data": blurred(0.0).score(sde), "the weaker model": weak, "the model": good}
  scores |= {f"guided, scale {w:g}": Autoguidance(sde, w).of(good, weak) for w in (2.0, 3.0)}
  fine, parts = curve(2000), np.array_split(np.arange(4000), 8)
  figure, axes = plt.subplots(1, len(scores), figsize=(3.2 * len(scores), 3.5), sharex=True, sharey=True)
  print("| score | distance to the curve | largest error of a share |\n|---|---|---|")
  for axis, (name, score) in zip(axes, scores.items(), strict=True):
    draw = jax.jit(lambda key, score=score: ss.sample(key, sde, score, (n, 2), solver=ss.UniPC(), steps=40))
    x = np.asarray(draw(jax.random.key(0)))
    apart = jnp.linalg.norm(x[:, None] - fine[None], axis=2)
    nearest = np.asarray(jnp.argmin(apart, axis=1))
    shares = np.array([np.isin(nearest, part).mean() for part in parts])
    print(f"| {name} | {float(jnp.min(apart, axis=1).mean()):.4f} | {np.abs(shares - 1 / 8).max():.3f} |")
    axis.plot(*fine[:2000].T, *fine[2000:].T, color="0.75", lw=1, zorder=0)
    axis.scatter(*x[:1500].T, s=1.5, color="C0", alpha=0.6)
    axis.set(title=name, aspect="equal", xlim=(-2, 2), ylim=(-2, 2), xticks=[], yticks=[])
  figure.tight_layout()
  file = pathlib.Path("docs/images/autoguidance.png")
  file.parent.mkdir(parents=True, exist_ok=True)
  figure.savefig(file, dpi=110)


if __name__ == "__main__":
  main()
