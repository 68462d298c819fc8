"""What this machine's accelerator does with the official networks, beside the same networks in plain PyTorch.

`python -m benchmarks.accelerator [--configs=ve/cifar10_ncsnpp_continuous,ve/ffhq_256_ncsnpp_continuous]
[--dtypes=float32,bfloat16] [--seconds=10] [--output=FILE.json] [--no-torch] [--config.KEY=VALUE ...]`
measures, one process each:

- the train step (with the copy of its images to the device), the score, a sampler of 20 evaluations and one evaluation
  of the likelihood's ODE: images per second, the share of the chip's peak operations, the time until the first result,
  which compiles, and the highest memory in use against that of `--mode=plan`;
- train step and score of `benchmarks/torch_ncsnpp.py` where torch is installed: channels-last, `torch.compile`, TF32,
  and AMP for bfloat16. "train step / PyTorch's" is the ratio of times: less than 1 is faster.

Each time is the median of runs that take --seconds together, after two that are not counted. On a machine without an
accelerator, shrink the network: `--config.model.nf=32 --config.training.batch_size=4`.
"""

import argparse
import importlib.util
import json
import os
import pathlib
import runpy
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

ROOT = pathlib.Path(__file__).parent.parent
CONFIGS = "ve/cifar10_ncsnpp_continuous,ve/ffhq_256_ncsnpp_continuous"
STEPS = 20
GIB = 2**30


def config_of(name: str, dtype: str, overrides: list[str]) -> Any:
  """Returns the config of a name such as "ve/cifar10_ncsnpp_continuous", with overrides KEY=VALUE."""
  config = runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]()
  config.model.dtype = dtype
  for override in overrides:
    key, value = override.removeprefix("--config.").split("=", 1)
    section, key = key.split(".")
    old = config[section][key]
    config[section][key] = tuple(json.loads(value)) if isinstance(old, tuple) else type(old)(json.loads(value))
  return config


def timed(run: Callable[[], Any], wait: Callable[[Any], Any], seconds: float) -> dict[str, float]:
  """Returns the time of the first run, which compiles, and the median of further ones."""
  start = time.monotonic()
  wait(run())
  first, times = time.monotonic() - start, []
  wait(run())
  while sum(times) < seconds or len(times) < 3:
    start = time.monotonic()
    wait(run())
    times.append(time.monotonic() - start)
  return {"first": first, "seconds": statistics.median(times)}


def by_jax(config: Any, seconds: float) -> dict[str, Any]:
  """Measures this library on one device."""
  import jax
  import jax.numpy as jnp
  import numpy as np

  from score_sde.batch import example_keys
  from score_sde.likelihood import ExactLikelihood
  from score_sde.run import devices, train_step
  from score_sde.run.config import make, resolve
  from score_sde.run.experiment import build
  from score_sde.run.plan import plan

  if jax.device_count() > 1:
    raise SystemExit(f"This measures one device, and JAX has {jax.device_count()}: hide the others from it.")
  config.sampling.method, config.sampling.grid, config.sampling.num_steps = "dpm_solver", "log_snr", STEPS
  config.training.n_jitted_steps = 1
  planned = plan(config, "local")
  experiment = build(resolve(config))
  config, b = experiment.config, config.training.batch_size
  device, rng = jax.devices()[0], np.random.default_rng(0)
  image = rng.integers(0, 256, (1, b, *experiment.shape), np.uint8)
  block = {"image": image, "label": np.zeros((1, b), np.int32), "index": np.arange(b, dtype=np.int32)[None]}
  found: dict[str, Any] = {"device": device.device_kind, "batch_size": b, "versions": f"JAX {jax.__version__}"}
  peak = planned["target"]["flops_per_second"]

  def add(name: str, program: str, evaluations: int, times: dict[str, float]) -> None:
    flops = planned["programs"][program]["flops"] * evaluations
    found[name] = times | {"images_per_second": b / times["seconds"], "share": flops / times["seconds"] / peak}

  state, steps = train_step.start_state(experiment), train_step.make_train_steps(experiment)

  def step() -> Any:
    nonlocal state
    state, metrics = steps(state, block)
    return metrics

  add("train_step", "train_step", 1, timed(step, jax.block_until_ready, seconds))
  stats = device.memory_stats() or {}
  found["peak"], found["planned"] = stats.get("peak_bytes_in_use"), planned["memory"]["total"]

  params = devices.local(state.params)
  x = jnp.asarray(rng.normal(size=(b, *experiment.shape)), jnp.float32)
  t = jnp.full(b, 0.5, jnp.float32)
  score = jax.jit(lambda params, x, t: experiment.score(params)(x, t))
  add("score", "score", 1, timed(lambda: score(params, x, t), jax.block_until_ready, seconds))
  draw = lambda: experiment.draw(experiment.score(params), jax.random.key(0), x.shape)[0]
  add("sampler", "score", STEPS, timed(draw, jax.block_until_ready, seconds))
  exact = make(ExactLikelihood, config, "eval", max_steps=config.sampling.max_steps)
  keys = example_keys(jax.random.key(0), jnp.arange(b))
  rates = jax.jit(lambda params, x, t: exact.evaluate(experiment.sde, experiment.score(params), keys, x, t, None))
  add("likelihood", "likelihood", 1, timed(lambda: rates(params, x, t), jax.block_until_ready, seconds))
  return found


def by_torch(config: Any, seconds: float) -> dict[str, Any]:
  """Measures the PyTorch network on one device: the same train step (Adam, clipping, EMA) and score."""
  import contextlib

  import torch

  from benchmarks.torch_ncsnpp import NCSNpp

  device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
  torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = torch.backends.cudnn.benchmark = True
  m, b, size, channels = config.model, config.training.batch_size, config.data.image_size, config.data.num_channels
  network = NCSNpp(m, size, channels).to(device, memory_format=torch.channels_last)
  average = [p.detach().clone() for p in network.parameters()]
  optimizer = torch.optim.Adam(network.parameters(), lr=config.optim.lr, fused=True)
  compiled = torch.compile(network)
  half = m.dtype == "bfloat16"
  cast = lambda: torch.autocast(device.type, torch.bfloat16) if half else contextlib.nullcontext()
  image = torch.randint(0, 256, (b, channels, size, size), dtype=torch.uint8)
  image = image.to(memory_format=torch.channels_last)
  image = image.pin_memory() if device.type == "cuda" else image

  def step() -> Any:
    x = image.to(device, non_blocking=True).float() / 255
    t = torch.rand(b, device=device) * (1 - 1e-5) + 1e-5
    sigma = m.sigma_min * (m.sigma_max / m.sigma_min) ** t
    noise = torch.randn_like(x)
    with cast():
      score = compiled(x + sigma[:, None, None, None] * noise, sigma)
    loss = 0.5 * ((score * sigma[:, None, None, None] + noise) ** 2).sum((1, 2, 3)).mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(network.parameters(), config.optim.grad_clip, foreach=True)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    with torch.no_grad():
      torch._foreach_lerp_(average, list(network.parameters()), 1 - m.ema_rate)
    return loss

  def wait(_: Any) -> None:
    if device.type == "cuda":
      torch.cuda.synchronize()

  name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
  found: dict[str, Any] = {"device": name, "batch_size": b, "versions": f"PyTorch {torch.__version__}"}
  add = lambda kind, times: found.update({kind: times | {"images_per_second": b / times["seconds"]}})
  add("train_step", timed(step, wait, seconds))
  found["peak"] = torch.cuda.max_memory_allocated() if device.type == "cuda" else None
  network.eval()
  x = torch.randn(b, channels, size, size, device=device).to(memory_format=torch.channels_last)
  sigma = torch.full((b,), 1.0, device=device)

  def score() -> Any:
    with torch.no_grad(), cast():
      return compiled(x, sigma)

  add("score", timed(score, wait, seconds))
  return found


def measured(kind: str, config: str, dtype: str, options: argparse.Namespace, overrides: list[str]) -> dict[str, Any]:
  """Returns the measurements of one process, or its error."""
  command = [sys.executable, "-m", "benchmarks.accelerator", "--one", kind, "--configs", config, "--dtypes", dtype,
             "--seconds", str(options.seconds), *overrides]  # fmt: skip
  shown = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]  # one GPU, also to PyTorch
  environment = os.environ | {"CUDA_VISIBLE_DEVICES": shown}
  done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
  lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
  if done.returncode or not lines:
    return {"error": (done.stderr.strip().splitlines() or ["?"])[-1][:200]}
  return json.loads(lines[-1])


def table(rows: list[dict[str, Any]]) -> str:
  """Returns the rows in Markdown."""
  lines = [
    "| config | dtype | by | batch | train step, images/s (share of peak) | score | 20-step sampler | likelihood, one "
    "evaluation | memory at its highest, GiB (planned) | first train step, s | train step / PyTorch's |",
    "|---|---|---|---|---|---|---|---|---|---|---|",
  ]
  for row in rows:
    ours, other = row["jax"], row.get("torch", {})
    for name, found in (("this", ours), ("PyTorch", other)):
      if not found:
        continue
      if "error" in found:
        lines.append(f"| `{row['config']}` | {row['dtype']} | {name} | {found['error']} | | | | | | | |")
        continue
      cell = lambda k: f"{found[k]['images_per_second']:,.1f}" + (
        f" ({found[k]['share']:.0%})" if "share" in found.get(k, {}) else "") if k in found else ""  # fmt: skip
      memory = f"{found['peak'] / GIB:.2f}" if found["peak"] else "-"
      memory += f" ({found['planned'] / GIB:.2f})" if "planned" in found else ""
      both = name == "this" and "train_step" in other and "train_step" in ours
      ratio = f"{ours['train_step']['seconds'] / other['train_step']['seconds']:.2f}" if both else ""
      lines.append(
        f"| `{row['config']}` | {row['dtype']} | {name} | {found['batch_size']} | {cell('train_step')} | "
        f"{cell('score')} | {cell('sampler')} | {cell('likelihood')} | {memory} | {found['train_step']['first']:.0f} | "
        f"{ratio} |"
      )
  known = [found for row in rows for found in (row["jax"], row.get("torch", {})) if "device" in found]
  devices = sorted({found["device"] for found in known})
  versions = sorted({found["versions"] for found in known})
  return "\n".join([*lines, "", f"On {', '.join(devices)}; {', '.join(versions)}.", ""])


def main() -> None:
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--configs", default=CONFIGS)
  parser.add_argument("--dtypes", default="float32,bfloat16")
  parser.add_argument("--seconds", type=float, default=10.0, help="time of each measurement")
  parser.add_argument("--output", default="", help="JSON file for all that was measured")
  parser.add_argument("--no-torch", action="store_true")
  parser.add_argument("--one", choices=["jax", "torch"], help="measure in this process and print JSON")
  options, overrides = parser.parse_known_args()
  wrong = [o for o in overrides if not (o.startswith("--config.") and "=" in o)]
  if wrong:
    parser.error(f"unknown argument {wrong[0]}")
  if options.one:
    config = config_of(options.configs, options.dtypes, overrides)
    print(json.dumps((by_jax if options.one == "jax" else by_torch)(config, options.seconds), default=float))
    return
  rows = []
  kinds = ["jax"] + ["torch"] * (not options.no_torch and importlib.util.find_spec("torch") is not None)
  for config in options.configs.split(","):
    for dtype in options.dtypes.split(","):
      row: dict[str, Any] = {"config": config, "dtype": dtype}
      for kind in kinds:
        row[kind] = measured(kind, config, dtype, options, overrides)
        state = row[kind].get("error") or f"{row[kind]['train_step']['images_per_second']:.1f} images/s in training"
        print(f"{config} {dtype} {kind}: {state}", file=sys.stderr, flush=True)
      rows.append(row)
      if options.output:
        pathlib.Path(options.output).write_text(json.dumps(rows, indent=1) + "\n")
  print(table(rows))


if __name__ == "__main__":
  main()
