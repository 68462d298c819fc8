"""The table of Fashion-MNIST in the README: three SDEs, five samplers each, two seeds.

`python -m benchmarks.fashion_mnist --runs=FOLDER --features=CLASSIFIER [--samples=128] [--seeds=0,1]`

FOLDER has a trained workdir for each SDE (`python run.py --config=configs/fashion_mnist/ddpmpp.py
--workdir=FOLDER/vpsde --config.training.sde=vpsde`, and so on), and CLASSIFIER is the workdir of
`configs/classifier/fashion_mnist_features.py`. Every row is an evaluation by run.py, whose command is printed; one
whose report is there is not made again, and one that was killed goes on. Seeds are those of sampling; "±" is half the
distance of the two, and for bits/dim, which are the model's whatever the sampler, the standard error over images. The
last row is real test images in place of samples: what a perfect model of as many samples gets.
"""

import argparse
import pathlib

import numpy as np

from benchmarks.reports import evaluated, spread
from configs.fashion_mnist import ddpmpp
from score_sde.run import data, evaluate, features
from score_sde.run.config import resolve, sde_name
from score_sde.run.evaluate.reports import table

CONFIG = "configs/fashion_mnist/ddpmpp.py"
SDES = ("vesde", "vpsde", "subvpsde")
FEW = {"sampling.method": "unipc", "sampling.grid": "log_snr"}
ODE = {"sampling.method": "ode"}
# The papers' samplers. Predictor and corrector follow the SDE, except that small configs have no Langevin steps.
OFFICIAL = {"sampling.num_steps": 1000, "sampling.grid": "official"}
LANGEVIN = {"sampling.corrector": "langevin", "sampling.norms": "batch"}
PAPERS = {"vesde": OFFICIAL | LANGEVIN, "vpsde": OFFICIAL, "subvpsde": OFFICIAL}
SAMPLERS = {
  "official": PAPERS,
  "ode": dict.fromkeys(SDES, ODE),
  **{f"unipc_{n}": dict.fromkeys(SDES, FEW | {"sampling.num_steps": n}) for n in (10, 20, 50)},
}
# Seconds an image are taken in runs of their own, on a machine that does nothing else; those of the papers' thousand
# steps by fifty of them, in proportion.
SHORTER = {"official": {"sampling.num_steps": 50}}


def row_of(workdir: pathlib.Path, sde: str, report: str, seed: int, settings: dict) -> dict:
  """The measurements of a report."""
  return evaluated(CONFIG, workdir, report, {"training.sde": sde, "seed": seed, "eval.enable_loss": False} | settings)


def real_rows(args: argparse.Namespace, reference: pathlib.Path) -> list[list[str]]:
  """Real test images, as many as samples, measured like these."""
  config = ddpmpp.get_config()
  config.eval.features, config.eval.reference = args.features, str(reference)
  extractor, real = evaluate.compared_with(config, args.samples)
  config = resolve(config)
  images = data.scaling_of(config).as_uint8(data.load(config, "test").image)
  rows = []
  for seed in args.seeds:
    chosen = np.random.default_rng(seed).permutation(len(images))[: args.samples]
    rows.append(evaluate.measure(config, [extractor(images[chosen])], extractor, real))
  cells = [spread([r[k] for r in rows], d) for k, d in (("fid", ".2f"), ("precision", ".3f"), ("recall", ".3f"))]
  return [["real test images", "", "", *cells, "", ""]]


def main(args: argparse.Namespace) -> None:
  runs = pathlib.Path(args.runs)
  reference = runs / "reference.npz"
  if not reference.exists():
    config = ddpmpp.get_config()
    config.eval.features = args.features
    features.stats(config, str(reference))
  drawn = {
    "eval.enable_bpd": False, "eval.enable_sampling": True, "eval.num_samples": args.samples, "eval.batch_size": 32,
    "eval.save_samples": "none",
  }  # fmt: skip
  timed = dict(drawn)
  drawn |= {"eval.features": args.features, "eval.reference": reference}
  rows = []
  for sde in SDES:
    bits = row_of(runs / sde, sde, "report_bpd", args.seeds[0], {"eval.enable_bpd": True})
    for name, settings in SAMPLERS.items():
      found = [row_of(runs / sde, sde, f"report_{name}_{s}", s, drawn | settings[sde]) for s in args.seeds]
      of = lambda key, digits, found=found: spread([f[key] for f in found], digits)
      clock = row_of(runs / sde, sde, f"report_time_{name}", 0, timed | settings[sde] | SHORTER.get(name, {}))
      seconds = clock["seconds_per_image"] / clock["sampling_nfe"] * np.mean([f["sampling_nfe"] for f in found])
      rows.append([
        sde_name(sde), name.replace("_", ", "), f"{np.mean([f['sampling_nfe'] for f in found]):.0f}",
        of("fid", ".2f"), of("precision", ".3f"), of("recall", ".3f"),
        f"{bits['bits_per_dim']:.3f} ± {bits['bits_per_dim_error']:.3f}", f"{seconds:.2g}",
      ])  # fmt: skip
  head = ["SDE", "sampler", "NFE", "FID", "precision", "recall", "bits/dim", "s / image"]
  print(table(head, rows + real_rows(args, reference)))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--runs", required=True)
  parser.add_argument("--features", required=True)
  parser.add_argument("--samples", type=int, default=128)
  parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1])
  main(parser.parse_args())
