"""Small runs, in this process and in others."""

import os
import pathlib
import socket
import subprocess
import sys

from configs import quickstart

ROOT = pathlib.Path(__file__).parent.parent

TINY = (
  "--config.model.nf=32", "--config.model.num_res_blocks=1", "--config.training.batch_size=16",
  "--config.training.n_jitted_steps=2", "--config.training.log_freq=2", "--config.training.eval_freq=10",
  "--config.training.snapshot_freq=20", "--config.training.snapshot_freq_for_preemption=10",
  "--config.training.snapshot_sampling=False", "--config.training.final_report=False", "--config.optim.warmup=5",
  "--config.sampling.num_steps=4", "--config.sampling.num_samples=16", "--config.eval.batch_size=16",
  "--config.eval.num_examples=16",
)  # fmt: skip


def command(workdir, *flags, config="configs/quickstart.py", tiny=True, blind=""):
  """Of run.py; `blind` is a statement that takes something away from `checkpoints` before it starts."""
  code = f"import sys; sys.argv[0] = 'run.py'; from score_sde.run import checkpoints, cli; {blind}; cli.run()"
  program = ["-c", code] if blind else ["run.py"]
  return [sys.executable, *program, f"--config={config}", f"--workdir={workdir}", *(TINY if tiny else ()), *flags]


def environment(devices=1):
  flags = f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
  return os.environ | {"PJRT_NPROC": "16", "JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags}


def start(workdir, *flags, devices=1, **options):
  return subprocess.Popen(
    command(workdir, *flags, **options), cwd=ROOT, env=environment(devices),
    stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
  )  # fmt: skip


def finish(workdir, *flags, devices=1, **options):
  """Runs to the end: (exit code, stdout, stderr)."""
  process = start(workdir, *flags, devices=devices, **options)
  out, err = process.communicate(timeout=300)
  return process.returncode, out, err


def free_port():
  with socket.socket() as free:
    free.bind(("127.0.0.1", 0))
    return free.getsockname()[1]


def tiny(**values):
  """The quickstart's config with a small network, and `section__key=value` changed."""
  config = quickstart.get_config()
  config.model.nf = 32
  config.model.num_res_blocks = 1
  return changed(config, **values)


def changed(config, **values):
  """`config`, with `section__key=value` set."""
  for key, value in values.items():
    section, name = key.split("__")
    config[section][name] = value
  return config


def mutations(content, rng, count=200):
  """Yields `count` copies of `content` with a few changed bytes, a fifth of them cut short."""
  for _ in range(count):
    mutated = bytearray(content)
    for place in rng.integers(0, len(content), rng.integers(1, 6)):
      mutated[place] = rng.integers(0, 256)
    yield bytes(mutated[: rng.integers(0, len(content))] if rng.random() < 0.2 else mutated)
