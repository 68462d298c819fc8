"""Samples in 1, 2 and 4 evaluations: consistency models beside their teacher.

`python -m benchmarks.consistency --data=digits|garments --runs=FOLDER --features=CLASSIFIER [--samples=500]`

FOLDER has the trained workdirs: `teacher`, and of each method in METHODS that is to be in the table. CLASSIFIER is the
workdir of `configs/classifier/*_features.py`. Every row is an evaluation by run.py, whose command is printed. "±" is
half the range over the seeds, which are those of sampling.
"""

import argparse
import pathlib

import numpy as np

from benchmarks.reports import evaluated, spread
from configs import quickstart
from configs.fashion_mnist import ddpmpp
from score_sde.run import features
from score_sde.run.evaluate.reports import table

TEACHERS = {"digits": "configs/quickstart.py", "garments": "configs/fashion_mnist/ddpmpp.py"}
STUDENTS = {"digits": "configs/consistency/digits.py", "garments": "configs/consistency/fashion_mnist.py"}
UNIPC = {"sampling.method": "unipc", "sampling.grid": "log_snr"}
ENDS = {"sampling.method": "ddim", "sampling.noise_removal": False}
# name of the workdir: (name in the table, settings of its loss)
METHODS = {
  "ect": ("easy consistency tuning", {"training.objective": "ect"}),
  "cd": ("consistency distillation", {"training.objective": "cd"}),
  "scm": ("continuous-time distillation", {"training.objective": "scm"}),
  "ict": ("consistency training, no teacher", {"training.objective": "ict", "training.finetune": False}),
  "progressive": (
    "progressive distillation",
    {"training.objective": "progressive"},
  ),
}  # fmt: skip


def main(args: argparse.Namespace) -> None:
  runs = pathlib.Path(args.runs)
  reference = runs / "reference.npz"
  if not reference.exists():
    config = {"digits": quickstart, "garments": ddpmpp}[args.data].get_config()
    config.eval.features = args.features
    features.stats(config, str(reference))
  drawn = {
    "eval.enable_loss": False, "eval.enable_bpd": False, "eval.enable_sampling": True, "eval.save_samples": "none",
    "eval.num_samples": args.samples, "eval.batch_size": args.batch_size, "eval.features": args.features,
    "eval.reference": reference,
  }  # fmt: skip
  rows = []

  def add(name: str, config: str, workdir: pathlib.Path, report: str, nfe: int, settings: dict) -> None:
    found = [evaluated(config, workdir, f"report_{report}_{s}", drawn | settings | {"seed": s}) for s in args.seeds]
    of = lambda key, digits: spread([f[key] for f in found], digits)
    rows.append([name, str(nfe), of("fid", ".2f"), of("precision", ".3f"), of("recall", ".3f")])

  for nfe in (1, 2, 4, 10, 20):
    settings = UNIPC | {"sampling.num_steps": nfe}
    add("teacher, UniPC-3", TEACHERS[args.data], runs / "teacher", f"unipc_{nfe}", nfe, settings)
  for method, (name, its) in METHODS.items():
    if not (runs / method).exists():
      continue
    for nfe in (1, 2, 4):
      settings = its | {"sampling.num_steps": nfe, "training.teacher": str(runs / "teacher")}
      if method == "progressive":  # its student of `nfe` steps is a snapshot
        settings |= ENDS | {"eval.checkpoint": args.stage * (6 - int(np.log2(nfe)))}
      add(name, STUDENTS[args.data], runs / method, f"steps_{nfe}", nfe, settings)
  print(table(["model", "NFE", "FID", "precision", "recall"], rows))


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--data", required=True, choices=tuple(TEACHERS))
  parser.add_argument("--runs", required=True)
  parser.add_argument("--features", required=True)
  parser.add_argument("--samples", type=int, default=500)
  parser.add_argument("--batch_size", type=int, default=50)
  parser.add_argument("--stage", type=int, default=1000, help="steps of a stage of progressive distillation")
  parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
  main(parser.parse_args())
