"""What a network costs, counted and measured: `python -m benchmarks.models [--batch=16] [--repeats=5] [--devices=1]`.

For CIFAR-10 NCSN++ at reduced width (nf 32, ch_mult (1, 2, 2), one residual block, 32 x 32) and variants, one
forward pass and one whole train step: XLA's count of FLOPs and of memory, compile time and run time. The floor is a
bare pass over the very convolutions of the program (for a train step those of its gradient too), with nothing between
them: what is above it are norms, activations, resampling, attention and Adam. `--devices=2` splits the CPU into two
devices, and the batch among them, as a training does with `XLA_FLAGS=--xla_force_host_platform_device_count=2`: XLA
runs much of a step on one core otherwise. Counts are then of one device.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from score_sde.run import devices, train_step
from score_sde.run.config import default_config
from score_sde.run.experiment import build

# On two CPU cores, by machine and load: the official JAX code made to run on JAX 0.10, and the official PyTorch code.
OFFICIAL = {
  "train step": "JAX 0.8 to 1.8 s, PyTorch 0.7 to 1.3 s",
  "forward": "JAX 0.25 to 0.53 s, PyTorch 0.14 to 0.27 s",
}

VARIANTS = {"NCSN++": {}, "NCSN++, bfloat16": {"dtype": "bfloat16"}, "NCSN++, remat": {"remat": True}}


def reduced_config(batch: int, **model: Any):
  config = default_config()
  config.data.dataset = "CIFAR10"
  config.model.nf, config.model.ch_mult, config.model.num_res_blocks = 32, (1, 2, 2), 1
  config.training.batch_size, config.training.n_jitted_steps = batch, 1
  for key, value in model.items():
    config.model[key] = value
  return config


def measure(fn: Callable, args: tuple, repeats: int) -> dict[str, float]:
  """Compile time, median run time (s), GFLOP and peak temporary memory (MiB) of the jitted fn(*args)."""
  start = time.perf_counter()
  compiled = fn.lower(*args).compile()
  compile_time = time.perf_counter() - start
  times = []
  for _ in range(repeats + 1):  # the first warms caches up
    start = time.perf_counter()
    jax.block_until_ready(compiled(*args))
    times.append(time.perf_counter() - start)
  cost, memory = compiled.cost_analysis(), compiled.memory_analysis()
  return {
    "compile s": compile_time,
    "run s": statistics.median(times[1:]),
    "GFLOP": cost["flops"] / 1e9,
    "MiB": memory.temp_size_in_bytes / 2**20,
  }


def convolutions(jaxpr: Any) -> list[Any]:
  """All convolutions of a program, those within its calls included."""
  found = []
  for equation in jaxpr.eqns:
    if equation.primitive.name == "conv_general_dilated":
      found.append(equation)
    for value in equation.params.values():
      inner = getattr(value, "jaxpr", value)
      if hasattr(inner, "eqns"):
        found += convolutions(inner)
  return found


def floor(fn: Callable, args: tuple) -> tuple[Callable, tuple]:
  """A program of nothing but the convolutions of fn(*args), and arguments for it."""
  equations = convolutions(jax.make_jaxpr(fn)(*args).jaxpr)
  rng = np.random.default_rng(0)
  operands = [
    tuple(jnp.asarray(rng.standard_normal(v.aval.shape), v.aval.dtype) for v in equation.invars)
    for equation in equations
  ]

  def bare(operands):
    return [e.primitive.bind(*o, **e.params) for e, o in zip(equations, operands, strict=True)]

  return jax.jit(bare), (operands,)


def programs(config) -> dict[str, tuple[Callable, tuple]]:
  """The forward pass and the train step of a config, with arguments."""
  experiment = build(config)
  state = jax.jit(lambda: train_step.init_state(experiment))()
  rng, n = np.random.default_rng(0), config.training.batch_size
  image = rng.integers(0, 256, (n, *experiment.shape)).astype(np.uint8)
  batch = {"image": image, "label": np.zeros(n, np.int32), "index": np.arange(n, dtype=np.int32)}
  x, labels = jnp.asarray(image, jnp.float32) / 255, jnp.asarray(np.geomspace(0.01, 50, n), jnp.float32)
  step = jax.pmap(train_step.make_train_step(experiment), axis_name=devices.AXIS, in_axes=(None, 0), out_axes=None)
  forward = jax.jit(lambda params, x, labels: experiment.network.apply({"params": params}, x, labels))
  return {
    "forward": (forward, (state.params, x, labels)),
    "train step": (step, (state, devices.shard(batch))),
  }


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
  parser.add_argument("--batch", type=int, default=16)
  parser.add_argument("--repeats", type=int, default=5)
  parser.add_argument("--devices", type=int, default=1, help="simulated devices of a CPU")
  options = parser.parse_args()
  if options.devices > 1:
    jax.config.update("jax_num_cpu_devices", options.devices)

  rows = []
  for name, model in VARIANTS.items():
    config = reduced_config(options.batch, **model)
    for program, (fn, args) in programs(config).items():
      rows.append((name, program, measure(fn, args, options.repeats)))
      print("done:", *rows[-1], flush=True)
      if not model:
        rows.append(("its convolutions alone", program, measure(*floor(fn, args), options.repeats)))
        print("done:", *rows[-1], flush=True)

  print(f"\nbatch {options.batch}, {devices.describe()}, JAX {jax.__version__}; official code: {OFFICIAL}\n")
  print("| network | program | run s | compile s | GFLOP | GFLOP/s | temporary MiB |\n|---|---|---|---|---|---|---|")
  for name, program, m in rows:
    speed = m["GFLOP"] / m["run s"]
    cells = (f"{m['run s']:.3f}", f"{m['compile s']:.1f}", f"{m['GFLOP']:.1f}", f"{speed:.0f}", f"{m['MiB']:.0f}")
    print("| " + " | ".join((name, program, *cells)) + " |")


if __name__ == "__main__":
  main()
