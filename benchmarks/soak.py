"""Hours of a run in which everything that can happen does: `python -m benchmarks.soak --minutes=60 --folder=FOLDER`.

Two trainings of the quickstart with snapshots, samples and evaluations, side by side: one is left alone, the other gets
SIGKILL or SIGTERM every now and then and is started again by the same command. After that time both are stopped. What
is printed: the memory of the first (resident, every ten minutes), what is left behind in the second's workdir, and
whether its state at the newest snapshot that both have, and its curves and pictures till there, are those of the first,
bit for bit.
"""

import argparse
import os
import pathlib
import random
import signal
import subprocess
import sys
import time

import jax
import numpy as np

from configs import quickstart
from score_sde.run import checkpoints, train_step
from score_sde.run.config import signature
from score_sde.run.experiment import build

STEADY = 600  # seconds after which memory should not grow
SNAPSHOTS = 1000  # steps between two
BETWEEN = (40, 240)  # seconds between two signals


def command(workdir: pathlib.Path, steps: int) -> list[str]:
  return [
    sys.executable, "run.py", "--config=configs/quickstart.py", f"--workdir={workdir}",
    f"--config.training.n_iters={steps}", f"--config.training.snapshot_freq={SNAPSHOTS}",
    "--config.training.snapshot_freq_for_preemption=100", "--config.training.final_report=False",
    "--config.sampling.num_steps=50",
  ]  # fmt: skip


def resident(pid: int) -> float:
  """MiB of memory that a process holds, 0 where it has ended."""
  try:
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
  except OSError:
    return 0.0
  return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS")), 0.0)


def state_at(workdir: pathlib.Path, step: int, steps: int) -> list[np.ndarray]:
  config = quickstart.get_config()
  config.training.n_iters = steps
  experiment = build(config)
  abstract = train_step.abstract_state(experiment)
  targets = {"state": jax.eval_shape(train_step.saved_form, abstract), "ema_params": abstract.ema_params}
  with checkpoints.manager(str(workdir)) as opened:
    _, items = checkpoints.restore(opened, targets, signature(experiment.config), str(workdir), step)
  return jax.tree.leaves(items)


def rows(workdir: pathlib.Path, step: int) -> list[str]:
  """Lines of metrics.csv till a step."""
  lines = (workdir / "metrics.csv").read_text().splitlines()[1:]
  return [line for line in lines if int(line.split(",")[0]) <= step]


def pictures(workdir: pathlib.Path, step: int) -> dict[str, bytes]:
  """Samples of snapshots till a step."""
  return {p.name: p.read_bytes() for p in (workdir / "samples").iterdir() if p.name <= f"step_{step:08d}.png"}


def run(minutes: float, folder: pathlib.Path, steps: int, seed: int) -> tuple[list[tuple[float, float]], list[str]]:
  """The memory of the run that is left alone (seconds, MiB), and the signals that the other one got."""
  rng = random.Random(seed)
  folder.mkdir(parents=True, exist_ok=True)
  log = (folder / "log.txt").open("ab")
  # Compiled programs are kept, so that the time goes into steps.
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())}
  start = lambda name: subprocess.Popen(command(folder / name, steps), stdout=log, stderr=log, env=environment)
  began = time.monotonic()
  alone, troubled = start("alone"), start("troubled")
  memory, signals, next_signal = [], [], rng.uniform(*BETWEEN)
  while (now := time.monotonic() - began) < 60 * minutes:
    time.sleep(0.5)
    if alone.poll() is not None:
      sys.exit(f"The run that was left alone ended with code {alone.returncode}: see {folder / 'log.txt'}.")
    memory.append((now, resident(alone.pid)))
    if troubled.poll() is not None:
      troubled = start("troubled")
    elif now > next_signal:
      chosen = rng.choice([signal.SIGKILL, signal.SIGTERM])
      troubled.send_signal(chosen)
      signals.append(chosen.name)
      next_signal = now + rng.uniform(*BETWEEN)
  for process in (alone, troubled):
    process.terminate()
    process.wait()
  return memory, signals


def report(folder: pathlib.Path, steps: int, memory: list[tuple[float, float]], signals: list[str]) -> None:
  alone, troubled = folder / "alone", folder / "troubled"
  saved = [{int(p.name) for p in (w / "checkpoints").iterdir() if p.name.isdigit()} for w in (alone, troubled)]
  step = max(n for n in saved[0] & saved[1] if n % SNAPSHOTS == 0)
  print(f"{memory[-1][0] / 60:.0f} minutes, {max(saved[0])} and {max(saved[1])} steps;", end=" ")
  print(f"{signals.count('SIGKILL')} SIGKILL, {signals.count('SIGTERM')} SIGTERM")
  peaks = [max(m for t, m in memory if t // STEADY == i) for i in range(int(memory[-1][0] // STEADY) + 1)]
  print(f"peak memory of every ten minutes, MiB: {', '.join(f'{m:.0f}' for m in peaks)}")
  print(f"the last against the first: {peaks[-1] / peaks[0] - 1:+.1%}")
  same = all(map(np.array_equal, state_at(alone, step, steps), state_at(troubled, step, steps)))
  print(f"at step {step}: state equal: {same}; curves equal: {rows(alone, step) == rows(troubled, step)};", end=" ")
  print(f"pictures equal: {pictures(alone, step) == pictures(troubled, step)}")
  left = [str(p.relative_to(troubled)) for p in troubled.rglob("*") if p.name.startswith(".") or "tmp" in p.name]
  print(f"left behind: {left or 'nothing'}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--steps", type=int, default=1_000_000, help="more than the machine takes in that time")
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  report(args.folder, args.steps, *run(args.minutes, args.folder, args.steps, args.seed))
