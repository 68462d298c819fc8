"""Every method of posterior sampling against posteriors in closed form, and guidance to a class against its cost.

    python -m benchmarks.guidance posteriors
    python -m benchmarks.guidance classes --config=configs/quickstart.py --workdir=runs/quickstart \\
      --classifier=runs/digits_classifier

`posteriors` prints the tables of docs/guidance.md: how far mean, covariance and mode weights of the samples are from
the posterior's, for a Gaussian and for a mixture in eight dimensions, of three noisy measurements. `classes` prints how
many samples an independent classifier (scikit-learn's, trained on real images) names as asked for, and their precision
and recall, at several scales. `--conditional=WORKDIR` adds the class-conditional network trained there.
"""

import argparse
import dataclasses
import runpy
import time

import jax
import jax.numpy as jnp
import numpy as np
from sklearn.svm import SVC

from score_sde import analytic, metrics
from score_sde.guidance import DDRM, DPS, TMPD, Analytic, Measurement, PiGDM, Projection, condition_on, operators
from score_sde.run import checkpoints, data, evaluate, guide
from score_sde.run.experiment import build
from score_sde.run.sampler import stepping
from score_sde.sampling import DPMSolverSDE, PredictorCorrector
from score_sde.sde import VE, VP, SubVP

D, M, NOISE, SAMPLES = 8, 3, 0.1, 4000
EVALUATIONS = (20, 50, 200, 1000)


def gaussian(rng: np.random.Generator, a: np.ndarray) -> analytic.GaussianMixture:
  root = rng.standard_normal((D, D)) / np.sqrt(D)
  return analytic.gaussian(rng.standard_normal(D), root @ root.T + 0.05 * np.eye(D))


def mixture(rng: np.random.Generator, a: np.ndarray) -> analytic.GaussianMixture:
  """Three modes, well apart in what is not measured and a tenth as far in what is, so that y leaves them all open."""
  means = 1.5 * rng.standard_normal((3, D))
  means -= 0.9 * means @ np.linalg.pinv(a) @ a
  return analytic.GaussianMixture(means, np.tile(0.1 * np.eye(D), (3, 1, 1)), np.ones(3))


@dataclasses.dataclass(frozen=True)
class Problem:
  """A prior, a measurement of one draw from it, and the posterior."""

  prior: analytic.GaussianMixture
  a: np.ndarray
  y: np.ndarray

  @property
  def posterior(self) -> analytic.GaussianMixture:
    return self.prior.posterior(self.a, self.y, NOISE)

  @property
  def variance(self) -> float:
    """Of the prior, in a dimension."""
    w, m, c = self.prior.weights, self.prior.means, self.prior.covariances
    mean = w @ m
    return float((w @ (np.trace(c, axis1=1, axis2=2) + ((m - mean) ** 2).sum(1))) / D)

  def measurement(self) -> Measurement:
    operator = operators.matrix(np.tile(self.a, (SAMPLES, 1, 1)))
    return Measurement(operator, jnp.tile(jnp.asarray(self.y, jnp.float32), (SAMPLES, 1)), jnp.full(SAMPLES, NOISE))


def make_problem(make_prior) -> Problem:
  rng = np.random.default_rng(0)
  a = rng.standard_normal((M, D)) / np.sqrt(D)
  prior = make_prior(rng, a)
  x = np.asarray(prior.sample(jax.random.key(1), 1))[0]
  return Problem(prior, a, a @ x + NOISE * rng.standard_normal(M))


def samplers(problem: Problem, sde, n: int) -> dict:
  """{method: (sampler of n evaluations, conditional or plain score)}."""
  score, v = problem.prior.score(sde), problem.variance
  options = {"grid": "log_snr", "eps": 1e-5 if isinstance(sde, VE) else 1e-4}
  by_sde = stepping(DPMSolverSDE(), sde, n, **options)
  scores = {
    "analytic": Analytic(sde, problem.prior),
    "tmpd": TMPD(sde, covariance="full", iterations=M),
    "tmpd, diagonal": TMPD(sde),
    "pigdm": PiGDM(sde, prior_variance=v),
    "dps": DPS(sde, prior_variance=v),
  }
  out = {name: (by_sde, condition_on(score, method)) for name, method in scores.items()}
  projected = lambda solver, n, strength=1.0: stepping(solver, sde, n, constraint=Projection(strength), **options)
  out["replacement"] = (projected(DPMSolverSDE(), n), score)
  out["replacement, corrected"] = (projected(PredictorCorrector(corrector="ald", snr=0.3), n // 2), score)
  out["projection, strength 1/2"] = (projected(DPMSolverSDE(), n, 0.5), score)
  out["ddrm"] = (stepping(DDRM(), sde, n, **options), score)
  return out


def errors(x: np.ndarray, posterior: analytic.GaussianMixture) -> tuple[float, float, float]:
  """(mean, in the posterior's standard deviations; covariance, relative; largest error of a mode's weight)."""
  w, m, c = posterior.weights, posterior.means, posterior.covariances
  mean = w @ m
  covariance = np.einsum("k,kij->ij", w, c) + np.einsum("k,ki,kj->ij", w, m - mean, m - mean)
  off = np.sqrt(np.mean((x.mean(0) - mean) ** 2 / np.diag(covariance)))
  relative = np.linalg.norm(np.cov(x.T) - covariance) / np.linalg.norm(covariance)
  log_p = [
    -0.5 * np.einsum("ni,ij,nj->n", x - mk, np.linalg.inv(ck), x - mk) - 0.5 * np.linalg.slogdet(ck)[1] + np.log(wk)
    for wk, mk, ck in zip(w, m, c, strict=True)
  ]
  share = np.bincount(np.argmax(log_p, axis=0), minlength=len(w)) / len(x)
  return off, relative, np.abs(share - w).max()


def posteriors() -> None:
  """Prints a table for each prior and SDE."""
  for make_prior in (gaussian, mixture):
    problem = make_problem(make_prior)
    exact = np.asarray(problem.posterior.sample(jax.random.key(2), SAMPLES), np.float64)
    print(f"\n## {make_prior.__name__}, weights {problem.posterior.weights.round(3)}\n")
    show = lambda e: f"{e[0]:.3f} / {e[1]:.3f}" + (f" / {e[2]:.3f}" if len(problem.prior.weights) > 1 else "")
    print(f"{SAMPLES} exact draws: {show(errors(exact, problem.posterior))}\n")
    for sde in (VP(), VE(0.01, 30.0), SubVP()):
      print(f"| {type(sde).__name__} | " + " | ".join(f"{n} evaluations" for n in EVALUATIONS) + " |")
      print("|---" * (1 + len(EVALUATIONS)) + "|")
      rows: dict[str, list[str]] = {}
      for n in EVALUATIONS:
        for name, (sample, score) in samplers(problem, sde, n).items():
          x, _ = sample(score, jax.random.key(0), (SAMPLES, D), condition=problem.measurement())
          rows.setdefault(name, []).append(show(errors(np.asarray(x, np.float64), problem.posterior)))
      for name, cells in rows.items():
        print(f"| {name} | " + " | ".join(cells) + " |", flush=True)
      print()


def features(images: np.ndarray) -> np.ndarray:
  return images.reshape(len(images), -1)


def classes(args: argparse.Namespace) -> None:
  """Prints agreement, precision and recall against the scale."""
  config = runpy.run_path(args.config)["get_config"]()
  train, test = (data.load(config, split) for split in ("train", "test"))
  scaled = lambda source, n: features(source.gather(np.arange(min(n, len(source))))["image"] / (levels - 1))
  levels = 17 if config.data.dataset == "digits" else 256
  real = scaled(train, args.fit)
  judge = SVC(C=10).fit(real, train.gather(np.arange(len(real)))["label"])
  held_out = scaled(test, 2000)
  right = np.mean(judge.predict(held_out) == test.gather(np.arange(len(held_out)))["label"])
  print(f"independent classifier: {right:.1%} of {len(held_out)} held-out images\n")
  print("| guidance | scale | agrees | precision | recall | seconds |\n|---|---|---|---|---|---|")
  reference = real[: args.samples]
  runs = [("none", 0.0, args.workdir)]
  runs += [("classifier", s, args.workdir) for s in args.scales]
  runs += [("classifier_free", s, args.conditional) for s in (args.scales if args.conditional else ())]
  for method, scale, workdir in runs:
    config = runpy.run_path(args.config)["get_config"]()
    config.sampling.method, config.sampling.grid, config.sampling.num_steps = "dpm_solver_sde", "log_snr", args.steps
    config.eval.batch_size = args.batch
    if method != "none":
      config.guidance.task, config.guidance.scale = "class", scale
      config.guidance.classifier = args.classifier if method == "classifier" else ""
      config.model.num_classes = 10 if method == "classifier_free" else 0
    experiment = build(config)
    experiment = guide.with_class(experiment) if method != "none" else experiment
    with checkpoints.manager(workdir) as opened:
      _, params = evaluate.restore(opened, experiment, workdir)
    start = time.monotonic()
    x, *_ = evaluate.draw_samples(experiment, params, args.samples)
    seconds = time.monotonic() - start
    x = features(evaluate.to_uint8(x) / 255)
    agrees = f"{np.mean(judge.predict(x) == np.arange(len(x)) % 10):.1%}" if method != "none" else "-"
    precision, recall = metrics.precision_recall(x, reference)
    print(f"| {method} | {scale:g} | {agrees} | {precision:.3f} | {recall:.3f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("what", choices=("posteriors", "classes"))
  parser.add_argument("--config")
  parser.add_argument("--workdir")
  parser.add_argument("--classifier")
  parser.add_argument("--conditional")
  parser.add_argument("--scales", type=lambda text: [float(s) for s in text.split(",")], default=[1.0, 2.0, 3.0, 5.0])
  parser.add_argument("--samples", type=int, default=1000)
  parser.add_argument("--batch", type=int, default=500)
  parser.add_argument("--steps", type=int, default=50)
  parser.add_argument("--fit", type=int, default=10_000, help="real images that the independent classifier learns from")
  options = parser.parse_args()
  posteriors() if options.what == "posteriors" else classes(options)
