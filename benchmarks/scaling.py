"""What can be known of a train step on many devices without having them: bytes and collectives, from XLA itself.

`python -m benchmarks.scaling [--config=configs/ve/ffhq_ncsnpp_continuous.py] [--devices=1,8,64] [--config.KEY=VALUE]`
compiles the train step for that many simulated devices, one image on each, and runs nothing. A row a number of devices
and a way to train on them (`training.parallelism`):

- state: parameters, their average, and Adam's moments, bytes on each device; donated: of these, what the step gives its
  results without a copy;
- temporary: what else the step needs at once, mostly activations (`model.remat=True` keeps those within blocks);
- collectives of the compiled program and the bytes that go into them on each device, by kind.

Times on simulated devices would mean nothing, and none are given but that of compiling.
"""

import argparse
import json
import math
import os
import re
import runpy
import subprocess
import sys
import time

# XLA's CPU backend drops the barriers that rematerialisation needs, and then merges what is computed twice into one;
# those of GPU and TPU keep them until that is done, and it is them that this is about.
NOTHING_MERGED = "--xla_disable_hlo_passes=cse"


def measure(path: str, overrides: dict[str, str], parallelism: str) -> dict:
  """Compiles one train step on all devices of this process; returns what a row of the table says."""
  import jax

  from score_sde.run import devices, train_step
  from score_sde.run.devices.targets import collectives
  from score_sde.run.experiment import build

  config = runpy.run_path(path)["get_config"]()
  n = jax.device_count()
  config.training.batch_size, config.training.n_jitted_steps, config.training.parallelism = n, 1, parallelism
  for key, value in overrides.items():
    section, name = key.split(".")
    config[section][name] = type(config[section][name])(json.loads(value))
  experiment = build(config)
  state = train_step.abstract_state(experiment)
  mesh = devices.fsdp_mesh(config.training.fsdp_devices if parallelism == "fsdp" else 1)
  # With one device to a copy of the parameters, the mesh is what pmap does.
  step = train_step.make_train_step(experiment, mesh)
  start = time.monotonic()
  lowered = devices.lower(step, state, train_step.abstract_batch(experiment, n), mesh, out_shared=True, donate=True)
  compiled = lowered.compile(compiler_options={"xla_backend_optimization_level": 0})
  memory = compiled.memory_analysis()
  return {
    "devices": n,
    "parallelism": parallelism,
    "state": memory.argument_size_in_bytes,
    "donated": memory.alias_size_in_bytes,
    "temporary": memory.temp_size_in_bytes,
    "collectives": collectives(compiled.as_text()),
    "parameters": sum(math.prod(x.shape) for x in jax.tree.leaves(state.params)),
    "compile": time.monotonic() - start,
  }


def row(found: dict) -> str:
  mib = lambda b: f"{b / 2**20:,.1f}"
  kinds = (
    ", ".join(f"{c['count']} {kind} of {mib(c['bytes'])}" for kind, c in sorted(found["collectives"].items())) or "none"
  )
  cells = [found["devices"], found["parallelism"], *(mib(found[k]) for k in ("state", "donated", "temporary")), kinds]
  return "| " + " | ".join(map(str, cells)) + f" | {found['compile']:.0f} |"


if __name__ == "__main__":
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--config", default="configs/ve/ffhq_ncsnpp_continuous.py")
  parser.add_argument("--devices", default="1,8,64")
  parser.add_argument("--parallelism", default="pmap,fsdp")
  parser.add_argument("--one", help=argparse.SUPPRESS)
  args, rest = parser.parse_known_args()
  overrides = dict(re.fullmatch(r"--config\.([\w.]+)=(.*)", r).groups() for r in rest)
  if args.one:
    print("ROW" + json.dumps(measure(args.config, overrides, args.one)))
    sys.exit()
  print(f"{args.config} {' '.join(rest)}, one image a device; MiB on each device\n")
  print("| devices | parallelism | state | donated | temporary | collectives | compile, s |")
  print("|---|---|---|---|---|---|---|", flush=True)
  for n in args.devices.split(","):
    for parallelism in args.parallelism.split(","):
      flags = f"{os.environ.get('XLA_FLAGS', '')} {NOTHING_MERGED} --xla_force_host_platform_device_count={n}"
      environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
      command = [sys.executable, "-m", "benchmarks.scaling", f"--config={args.config}", f"--one={parallelism}", *rest]
      out = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
      if out.returncode:
        sys.exit(out.stderr)
      print(row(json.loads(next(x for x in out.stdout.splitlines() if x.startswith("ROW"))[3:])), flush=True)
