"""Hours of a run in which everything that can happen does: `python -m benchmarks.soak --minutes=60 --folder=FOLDER`.

Two trainings of the quickstart with snapshots, samples and evaluations, side by side, for as many steps as the machine
takes in that time: one is left alone, the other gets SIGKILL or SIGTERM every now and then and is started again by the
same command. At the end: the memory of the first (resident, after ten minutes and at the end), what is left behind in
the second's workdir, and whether its checkpoint and curves are those of the first, bit for bit.
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
from score_sde import checkpoints, curves, training
from score_sde.experiment import build

STEADY = 600  # seconds after which memory should not grow
BETWEEN = (40, 240)  # seconds between two signals


def command(workdir: pathlib.Path, steps: int) -> list[str]:
  return [
    sys.executable, "run.py", "--config=configs/quickstart.py", f"--workdir={workdir}",
    f"--config.training.n_iters={steps}", "--config.training.snapshot_freq=1000",
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


def final(workdir: pathlib.Path) -> list[np.ndarray]:
  with checkpoints.manager(str(workdir)) as opened:
    state = training.restore_state(opened, build(quickstart.get_config()), str(workdir))
  return jax.tree.leaves((training.saved_form(state), state.ema_params))


def drawn(workdir: pathlib.Path) -> str:
  return (workdir / "metrics.csv").read_text()


def main(minutes: float, folder: pathlib.Path, steps: int, seed: int) -> None:
  rng = random.Random(seed)
  alone, troubled = folder / "alone", folder / "troubled"
  folder.mkdir(parents=True, exist_ok=True)
  log = (folder / "log.txt").open("ab")
  # Compiled programs are kept, so that the time goes into steps.
  environment = os.environ | {"JAX_COMPILATION_CACHE_DIR": str((folder / "compiled").resolve())}
  start = lambda workdir: subprocess.Popen(command(workdir, steps), stdout=log, stderr=log, env=environment)
  began = time.monotonic()
  one, two = start(alone), start(troubled)
  memory, signals, next_signal = [], [], began + rng.uniform(*BETWEEN)
  while one.poll() is None or two.poll() is None:
    time.sleep(2)
    now = time.monotonic()
    if one.poll() is None:
      memory.append((now - began, resident(one.pid)))
    if two.poll() is not None and max((r["step"] for r in curves.read(troubled)), default=0) < steps:
      two = start(troubled)
    elif two.poll() is None and now > next_signal and now - began < 60 * minutes:
      chosen = rng.choice([signal.SIGKILL, signal.SIGTERM])
      two.send_signal(chosen)
      signals.append(chosen.name)
      next_signal = now + rng.uniform(*BETWEEN)
  took = (time.monotonic() - began) / 60
  settled = max(m for t, m in memory if t < STEADY)
  last = max(m for t, m in memory if t > memory[-1][0] - STEADY)
  same = all(np.array_equal(a, b) for a, b in zip(final(alone), final(troubled), strict=True))
  hidden = [str(p.relative_to(troubled)) for p in troubled.rglob("*") if p.name.startswith(".") or "tmp" in p.name]
  extra = sorted({p.name for p in troubled.iterdir()} ^ {p.name for p in alone.iterdir()})
  print(f"{took:.0f} minutes, {steps} steps; {signals.count('SIGKILL')} SIGKILL, {signals.count('SIGTERM')} SIGTERM")
  print(
    f"peak memory of the first ten minutes {settled:.0f} MiB, of the last ten {last:.0f} ({last / settled - 1:+.1%})"
  )
  print(f"checkpoints equal: {same}; curves equal: {drawn(alone) == drawn(troubled)}")
  print(f"left behind: {hidden + extra or 'nothing'}")


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--minutes", type=float, default=60)
  parser.add_argument("--steps", type=int, default=30000)
  parser.add_argument("--folder", type=pathlib.Path, required=True)
  parser.add_argument("--seed", type=int, default=0)
  args = parser.parse_args()
  main(args.minutes, args.folder, args.steps, args.seed)
