"""Four newcomers, each from commands that stand in the README or the docs: points, photographs, a cluster, Python."""

import json
import re
import subprocess
import sys

import numpy as np
import pytest
import runs
from PIL import Image

pytestmark = pytest.mark.slow

SMALL = (
  "--config.training.batch_size=16", "--config.training.n_iters=40", "--config.training.log_freq=10",
  "--config.training.eval_freq=20", "--config.training.snapshot_freq=20", "--config.optim.warmup=5",
  "--config.training.snapshot_freq_for_preemption=20", "--config.sampling.num_samples=8", "--config.eval.batch_size=16",
  "--config.eval.num_examples=16",
)  # fmt: skip


@pytest.fixture
def do(tmp_path):
  """Runs `python -m score_sde ...` in an empty folder; the package is found, the clone is not."""

  def run(*arguments, code=0):
    done = subprocess.run(
      [sys.executable, "-m", "score_sde", *arguments], cwd=tmp_path, text=True, capture_output=True, check=False,
      env=runs.environment() | {"PYTHONPATH": str(runs.ROOT)},
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr

  run.folder = tmp_path
  return run


def test_a_student_with_points_of_her_own(do):
  """docs/data.md: an array; then more of the same noise in fewer steps, likelihoods, and a page to look at."""
  rng = np.random.default_rng(0)
  np.save(do.folder / "points.npy", rng.standard_normal((500, 2)) @ [[1.0, 0.5], [0.0, 0.2]] + [3.0, -1.0])
  config = ("--config=array/wine", "--config.data.path=points.npy", "--config.model.num_classes=0", "--workdir=run")
  small = (*SMALL, "--config.training.n_jitted_steps=10", "--config.model.nf=32", "--config.sampling.num_steps=10")
  do("data", "show", *config[:-1], "--output=data.png")
  do("train", *config, *small)
  for name in ("report.html", "curves.png", "samples.png", "metrics.jsonl", "commands.txt"):
    assert (do.folder / "run" / name).stat().st_size > 50, name
  said = do("eval", "--workdir=run", "--config.eval.enable_bpd=True", "--config.eval.num_examples=16")
  assert re.search(r"-?\d+\.\d+ ± \d+\.\d+ nats on 16 test examples", said)
  before = (do.folder / "run" / "samples.png").read_bytes()
  few = ("--config.sampling.method=unipc", "--config.sampling.num_steps=5")
  do("sample", "--workdir=run", *few, "--config.sampling.show_paths")
  assert (do.folder / "run" / "paths.png").stat().st_size > 10_000
  kept = [p for p in (do.folder / "run").glob("samples*.png") if p.read_bytes() == before]
  assert len(kept) == 1  # the first samples are still there
  assert kept[0].name != "samples.png"


@pytest.mark.longest
def test_a_photographer_with_a_folder_of_classes(do):
  """Photographs of two classes and odd sizes: a class by its name, a classifier, a completed half."""
  rng = np.random.default_rng(0)
  for name in ("square", "disc"):
    (do.folder / "photos" / name).mkdir(parents=True)
    for i in range(40):
      image = rng.integers(0, 60, (48, 60, 3)).astype(np.uint8)
      y, x = np.mgrid[:48, :60]
      inside = (abs(y - 24) < 12) & (abs(x - 30) < 12) if name == "square" else (y - 24) ** 2 + (x - 30) ** 2 < 200
      image[inside] = rng.integers(150, 255, 3)
      Image.fromarray(image).save(do.folder / "photos" / name / f"{i}.jpg")
  net = (
    "--config.model.nf=8", "--config.model.ch_mult=(1,2)", "--config.model.num_res_blocks=1",
    "--config.model.attn_resolutions=()", "--config.sampling.num_steps=8", "--config.training.final_report=False",
  )  # fmt: skip
  folder = ("--config.data.dataset=folder", "--config.data.path=photos", "--config.data.num_channels=3")
  config = ("--config=fashion_mnist/ddpmpp", *folder, "--config.data.image_size=16", *SMALL, *net)
  do("train", *config, "--workdir=run", "--config.model.num_classes=2", "--config.model.label_dropout=0.2")
  asked = (
    "--workdir=run",
    "--config.guidance.task=class",
    "--config.sampling.method=unipc",
    "--config.guidance.scale=2",
  )
  said = do("sample", *asked, "--config.guidance.label=sqare", code=2)
  assert "guidance.label='sqare' is no class of the data of 'run': 'disc', 'square'. Did you mean 'square'?" in said
  do("sample", *asked, "--config.guidance.label=square")
  do(
    "sample",
    "--workdir=run",
    "--config.guidance.task=inpaint",
    "--config.guidance.num_inputs=2",
    "--config.sampling.method=dpm_solver_sde",
    "--config.sampling.num_steps=5",
    "--config.guidance.samples_per_input=1",
  )
  assert (do.folder / "run" / "guided.png").stat().st_size > 1000
  # An unconditional model, and a classifier of the same data to guide it.
  do("train", *config, "--workdir=plain")
  few = [f for f in SMALL if "n_iters" not in f and "snapshot" not in f]
  do(
    "train",
    "--config=classifier/folder:plain",
    "--workdir=judge",
    *few,
    "--config.training.n_iters=20",
    "--config.training.snapshot_freq=20",
    "--config.training.snapshot_freq_for_preemption=20",
  )
  guided = ("--workdir=plain", "--config.guidance.task=class", "--config.guidance.classifier=judge")
  do("sample", *guided, "--config.guidance.label=disc")
  assert "is no class" in do("sample", *guided, "--config.guidance.label=triangle", code=2)


def test_a_cluster_engineer_with_a_sweep(do):
  """A plan, a sweep as an array job, its runs, and one table and page of them all."""
  assert "parameters" in do("plan", "--config=toy/two_moons")
  sweep = ("sweep", "--config=toy/two_moons", "--workdir=sweep", "--set=optim.lr=0.001,0.0003", *SMALL)
  small = ("--config.training.n_jitted_steps=10", "--config.model.nf=16", "--config.sampling.num_steps=5")
  do(*sweep, *small, "--slurm=job.sh")
  assert "--array=" in (do.folder / "job.sh").read_text()
  do(*sweep, *small, "--run")
  found = sorted(str(p.parent.relative_to(do.folder)) for p in (do.folder / "sweep").glob("*/config.json"))
  assert len(found) == 2
  said = do("compare", *found, "--html=all.html")
  assert re.search(r"\| `optim.lr` \| 0\.0\d+ \| 0\.0\d+ \|", said)
  assert "Published" not in said
  assert "optim.lr" in (do.folder / "all.html").read_text()
  for run in found:
    json.loads((do.folder / run / "config.json").read_text(), parse_constant=lambda text: pytest.fail(text))


def test_a_user_of_the_library_alone(tmp_path):
  """The lines of the README, with a score of one's own, in a process that must not load the program."""
  code = """
import sys
import jax, score_sde as ss
x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (16, 2), solver=ss.UniPC(), steps=20)
assert x.shape == (16, 2)
assert not {"matplotlib", "orbax", "grain", "ml_collections", "plotly"} & set(sys.modules)
logp = ss.log_likelihood(jax.random.key(1), ss.VP(), lambda x, t: -x, x)
assert logp.shape == (16,)
"""
  done = subprocess.run(
    [sys.executable, "-c", code], cwd=tmp_path, env=runs.environment() | {"PYTHONPATH": str(runs.ROOT)},
    capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
