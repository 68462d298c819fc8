"""Few evaluations beside the papers' samplers: three SDEs, five families of few-step samplers, several seeds.

`python -m benchmarks.few_steps --data=digits|garments --runs=FOLDER --features=CLASSIFIER [--samples=500]
[--sdes=vesde,vpsde,subvpsde] [--budgets=10,20,35,50] [--seeds=0,1,2]`

FOLDER has a trained workdir for each SDE (`python run.py --config=CONFIG --workdir=FOLDER/vpsde
--config.training.sde=vpsde`, and so on, with CONFIG as in CONFIGS below), and CLASSIFIER is the workdir of
`configs/classifier/*_features.py`. Every row is an evaluation by run.py, whose command is printed; one whose report is
there is not made again, and one that was killed goes on. Seeds are those of sampling; "±" is half their range, and for
bits/dim, which are the model's whatever the sampler, the standard error over images. The last row has real test images
in place of samples: a perfect model of as many samples gets that.
"""

import argparse
import pathlib

import numpy as np

from benchmarks.reports import evaluated, spread
from configs import quickstart
from configs.fashion_mnist import ddpmpp
from score_sde.run import data, evaluate, features
from score_sde.run.config import resolve, sde_name
from score_sde.run.evaluate.reports import table

CONFIGS = {"digits": "configs/quickstart.py", "garments": "configs/fashion_mnist/ddpmpp.py"}
FILES = {"digits": quickstart, "garments": ddpmpp}
SDES = ("vesde", "vpsde", "subvpsde")
# The papers' samplers. Predictor and corrector follow the SDE, except that small configs have no Langevin steps.
OFFICIAL = {"sampling.num_steps": 1000, "sampling.grid": "official"}
LANGEVIN = {"sampling.corrector": "langevin", "sampling.norms": "batch"}
PAPERS = {"vesde": OFFICIAL | LANGEVIN, "vpsde": OFFICIAL, "subvpsde": OFFICIAL}
SA = {"sampling.method": "sa_solver", "sampling.grid": "log_snr"}
FEW = {
  "UniPC-3": {"sampling.method": "unipc", "sampling.grid": "log_snr"},
  "DPM-Solver++(2M) SDE": {"sampling.method": "dpm_solver_sde", "sampling.grid": "log_snr"},
  "SA-Solver, tau 0.5": SA | {"sampling.tau": 0.5},
  "SA-Solver, tau 1": SA | {"sampling.tau": 1.0},
  "SA-Solver, tau 1, below 0.5": SA | {"sampling.tau": 1.0, "sampling.tau_max": 0.5},
}


def real_row(args: argparse.Namespace, reference: pathlib.Path) -> list[str]:
  """Real test images, as many as samples (if there are so many), measured like these."""
  config = FILES[args.data].get_config()
  config.eval.features, config.eval.reference = args.features, str(reference)
  extractor, real = evaluate.compared_with(config, args.samples)
  config = resolve(config)
  images = data.scaling_of(config).as_uint8(data.load(config, "test").image)
  number = min(args.samples, len(images))
  found = []
  for seed in args.seeds:
    chosen = np.random.default_rng(seed).permutation(len(images))[:number]
    found.append(evaluate.measure(config, [extractor(images[chosen])], extractor, real))
  cells = [spread([f[k] for f in found], d) for k, d in (("fid", ".2f"), ("precision", ".3f"), ("recall", ".3f"))]
  return ["", f"{number} real test images", "", *cells, ""]


def main(args: argparse.Namespace) -> None:
  runs = pathlib.Path(args.runs)
  reference = runs / "reference.npz"
  if not reference.exists():
    config = FILES[args.data].get_config()
    config.eval.features = args.features
    features.stats(config, str(reference))
  drawn = {
    "eval.enable_bpd": False, "eval.enable_sampling": True, "eval.num_samples": args.samples,
    "eval.batch_size": args.batch_size, "eval.save_samples": "none", "eval.features": args.features,
    "eval.reference": reference,
  }  # fmt: skip
  samplers = {"official": None, "ODE, Dopri5": {"sampling.method": "ode"}}
  for nfe in args.budgets:
    samplers |= {f"{name}; {nfe}": its | {"sampling.num_steps": nfe} for name, its in FEW.items()}
  rows = []
  for sde in args.sdes:
    base = {"training.sde": sde, "eval.enable_loss": False}
    row = lambda report, its, sde=sde, base=base: evaluated(CONFIGS[args.data], runs / sde, report, base | its)
    bits = row("report_bpd", {"eval.enable_bpd": True, "seed": args.seeds[0]})
    for name, its in samplers.items():
      report = "report_" + "".join(c if c.isalnum() else "_" for c in name)
      found = [row(f"{report}_{s}", drawn | (its or PAPERS[sde]) | {"seed": s}) for s in args.seeds]
      of = lambda key, digits, found=found: spread([f[key] for f in found], digits)
      rows.append([
        sde_name(sde), name.split(";")[0], f"{np.mean([f['sampling_nfe'] for f in found]):.0f}",
        of("fid", ".3f"), of("precision", ".3f"), of("recall", ".3f"),
        f"{bits['bits_per_dim']:.3f} ± {bits['bits_per_dim_error']:.3f}",
      ])  # fmt: skip
      print(*rows[-1], sep="\t", flush=True)
  head = ["SDE", "sampler", "NFE", "FID", "precision", "recall", "bits/dim"]
  print(table(head, [*rows, real_row(args, reference)]))


if __name__ == "__main__":
  numbers = lambda text: [int(part) for part in text.split(",")]
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", required=True, choices=tuple(CONFIGS))
  parser.add_argument("--runs", required=True)
  parser.add_argument("--features", required=True)
  parser.add_argument("--sdes", type=lambda text: text.split(","), default=list(SDES))
  parser.add_argument("--samples", type=int, default=500)
  parser.add_argument("--batch_size", type=int, default=50)
  parser.add_argument("--budgets", type=numbers, default=[10, 20, 35, 50])
  parser.add_argument("--seeds", type=numbers, default=[0, 1, 2])
  main(parser.parse_args())
