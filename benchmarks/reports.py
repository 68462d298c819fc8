"""Rows of tables from evaluations by run.py. A row whose report is there is not made again; a killed one goes on."""

import json
import os
import pathlib
import shlex
import subprocess
import sys
from typing import Any

import numpy as np


def evaluated(config: str, workdir: pathlib.Path, report: str, settings: dict[str, Any]) -> dict[str, Any]:
  """The measurements of a report in `workdir`. The command that makes it is printed."""
  file = workdir / f"{report}.json"
  flags = [f"--config.{k}={v}" for k, v in ({"eval.report": report} | settings).items()]
  call = [sys.executable, "run.py", "--mode=eval", f"--config={config}", f"--workdir={workdir}", *flags]
  if not file.exists():
    print(shlex.join(["python", *call[1:]]), file=sys.stderr, flush=True)
    subprocess.run(call, env=os.environ, check=True, stdout=subprocess.DEVNULL)
  return json.loads(file.read_text())["checkpoints"][-1]


def spread(values: list[float], digits: str) -> str:
  """Mean and half the range."""
  return f"{np.mean(values):{digits}} ± {np.ptp(values) / 2:{digits}}"
