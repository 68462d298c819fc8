"""What the train step of every config costs on a GPU, on eight, and on a TPU slice: the table of docs/accelerators.md.

`python -m benchmarks.plans [--configs=vp,edm] [--targets=cuda:h100:1,cuda:h100:8,tpu:v5e]` needs the compilers of both
targets (`pip install -e '.[plan-tpu,plan-gpu]'`) and no accelerator. It compiles each program once: configs whose
networks, batch sizes and images are the same share a row. Each row is written to docs/accelerators.json as soon as it
is known. A second run goes on from there; remove rows by hand to measure them again. The table is written to
docs/accelerators.md, below the line that says so. On a TPU the smallest slice of eight chips and more that the program
fits into is taken.
"""

import argparse
import json
import math
import pathlib
import runpy
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
ROWS, PAGE = ROOT / "docs" / "accelerators.json", ROOT / "docs" / "accelerators.md"
BEGIN = "<!-- The table below is written by `python -m benchmarks.plans`. -->"
SLICES = ("2x4", "4x4", "4x8", "8x8", "8x16")
GIB = 2**30
# Settings that change numbers in a program, not its size.
CONSTANTS = (
  "sigma_min", "sigma_max", "beta_min", "beta_max", "ema_rate", "ema_warmup", "num_scales", "cosine_s", "sigma_data",
)  # fmt: skip


def groups() -> dict[str, list[str]]:
  """Returns {what the program depends on: paths of the configs}."""
  found: dict[str, list[str]] = {}
  for file in sorted((ROOT / "configs").rglob("*.py")):
    if "def get_config" not in file.read_text() or file.name in ("base.py", "papers.py", "folder.py"):
      continue
    name = str(file.relative_to(ROOT / "configs"))[:-3]
    config = load(name)
    model = {k: v for k, v in config.model.to_dict().items() if k not in CONSTANTS}
    t, own = config.training, ":" in config.training.sde  # an SDE of one's own may simulate paths
    about = [model, config.data.image_size, config.data.num_channels, t.batch_size, t.task, t.objective, t.accumulation,
             t.sde if own else ""]  # fmt: skip
    found.setdefault(json.dumps(about, sort_keys=True, default=str), []).append(name)
  return found


def load(config: str):
  """Returns the config of a name such as "vp/cifar10_dit"."""
  return runpy.run_path(str(ROOT / "configs" / f"{config}.py"))["get_config"]()


def one(config: str, target: str) -> dict:
  """Returns the plan of a config's train step."""
  from score_sde.run.plan import plan

  return plan(load(config), target, programs=("train_step",))


def measured(config: str, target: str) -> dict:
  """Returns the row of a config and a target. Compiles in a process of its own, which gives its memory back."""
  command = [sys.executable, "-m", "benchmarks.plans", "--one", config, target]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
  if done.returncode or not lines:
    return {"config": config, "target": target, "error": (done.stderr.strip().splitlines() or ["?"])[-1]}
  found = json.loads(lines[-1])
  step, memory = found["programs"]["train_step"], found["memory"]
  return {
    "config": config, "target": target, "batch_size": found["config"]["batch_size"],
    "parameters": found["parameters"]["total"], "gflop": step["flops"] / 1e9, "bytes": step["bytes"],
    "state": memory["parameters"] + memory["ema"] + memory["optimizer"], "temporary": step["temporary"],
    "total": memory["total"], "available": memory["available"], "fits": memory["fits"],
    "collectives": sum(c["bytes"] for c in step["collectives"].values()),
    "compile_seconds": step["compile_cpu_seconds"], "operations": step["operations"],
    "images_per_second": found["time"]["100%"]["images_per_second"],
  }  # fmt: skip


def candidates(config: str, target: str) -> list[str]:
  """Returns the targets to try one after the other until one fits."""
  if target.count(":") == 2:
    return [target]
  size = load(config).training.batch_size
  return [f"{target}:{s}" for s in SLICES if size % math.prod(map(int, s.split("x"))) == 0]


def table(rows: dict[str, dict], programs: dict[str, list[str]], targets: list[str]) -> str:
  """Returns the table in Markdown."""
  lines = [
    "| config | parameters | batch | target | state, GiB | temporary, GiB | peak of memory, GiB | GFLOP a step | "
    "GB moved | collectives, MiB | images/s at the peak | compiled, CPU s |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for names in programs.values():
    shown = f"`{names[0]}`" + (f" and {len(names) - 1} more [^{names[0].replace('/', '-')}]" if len(names) > 1 else "")
    for target in targets:
      row = rows.get(f"{names[0]} {target}")
      if row is None:
        continue
      if "error" in row:
        lines.append(f"| {shown} | | | {row['target']} | {row['error']} | | | | | | | |")
        continue
      moved = f"{row['bytes'] / 1e9:.1f}" if row["bytes"] else "-"
      fits = "" if row["fits"] else f" of {row['available'] / GIB:.1f}: does not fit"
      lines.append(
        f"| {shown} | {row['parameters'] / 1e6:.1f} M | {row['batch_size']} | {row['target']} | "
        f"{row['state'] / GIB:.2f} | {row['temporary'] / GIB:.2f} | {row['total'] / GIB:.2f}{fits} | "
        f"{row['gflop']:,.0f} | {moved} | "
        f"{row['collectives'] / 2**20:.0f} | {row['images_per_second']:,.0f} | {row['compile_seconds']:.0f} |"
      )
  notes = [
    f"[^{names[0].replace('/', '-')}]: {', '.join(f'`{n}`' for n in names[1:])}"
    for names in programs.values() if len(names) > 1
  ]  # fmt: skip
  return "\n".join([*lines, "", *notes, ""])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--configs", default="", help="beginnings of names, separated by commas; default: all")
  parser.add_argument("--targets", default="cuda:h100:1,cuda:h100:8,tpu:v5e")
  parser.add_argument("--table", action="store_true", help="only write the table of the rows there are")
  parser.add_argument("--one", nargs=2, metavar=("CONFIG", "TARGET"), help="print one plan as JSON")
  options = parser.parse_args()
  if options.one:
    print(json.dumps(one(*options.one), default=float))
    return
  programs, targets = groups(), options.targets.split(",")
  rows = json.loads(ROWS.read_text()) if ROWS.exists() else {}
  wanted = tuple(options.configs.split(","))
  for target in targets if not options.table else ():
    for names in programs.values():
      name = f"{names[0]} {target}"
      if name in rows or not any(n.startswith(wanted) for n in names):
        continue
      start = time.monotonic()
      for candidate in candidates(names[0], target):
        row = measured(names[0], candidate)
        if row.get("fits") or "error" in row:
          break
      rows[name] = row
      part = ROWS.with_suffix(".part")
      part.write_text(json.dumps(rows, indent=1) + "\n")
      part.replace(ROWS)
      state = row.get("error") or f"{row['total'] / GIB:.2f} GiB" + ("" if row["fits"] else ", too much")
      print(f"{name}: {state} ({time.monotonic() - start:.0f} s)", flush=True)
  page = PAGE.read_text() if PAGE.exists() else f"{BEGIN}\n"
  PAGE.write_text(
    page.partition(BEGIN)[0] + f"{BEGIN}\n\n" + table(rows, programs, ["cuda:h100:1", "cuda:h100:8", "tpu:v5e"])
  )


if __name__ == "__main__":
  main()
