"""Each program of a run is compiled once: a second compilation of a train step takes minutes on an accelerator."""

import subprocess
import sys

import jax
import pytest
import runs

from score_sde.run import evaluate

CODE = """
import sys; sys.path[:0] = ['tests', '.']
import jax, runs
from score_sde.run import train_step, training, evaluate
from score_sde.run.config import resolve

compiled, calls = [], []
count = lambda name, seconds, **more: compiled.append(name) if name.endswith('backend_compile_duration') else None
jax.monitoring.register_event_duration_secs_listener(count)

def counted(make):
  def made(*args, **options):
    run = make(*args, **options)
    def call(*args):
      before = len(compiled)
      out = run(*args)
      calls.append(len(compiled) - before)
      return out
    return call
  return made

workdir, parallelism, *host = sys.argv[1:]
if host:
  from score_sde.run import devices
  devices.connect(host[0], 2, int(host[1]), 60)
training.make_train_steps = counted(train_step.make_train_steps)
config = lambda total: runs.tiny(
  model__nf=8, training__batch_size=8, training__n_iters=total, training__n_jitted_steps=2, training__log_freq=2,
  training__eval_freq=4, training__snapshot_freq=4, training__snapshot_freq_for_preemption=4, eval__batch_size=8,
  training__final_report=False, sampling__num_steps=4, sampling__num_samples=8, training__parallelism=parallelism,
)
training.train(config(8), workdir)
print('fresh', *calls)
calls.clear()
training.train(config(14), workdir)
print('resumed', *calls)
if not host:
  from score_sde.run.checkpoints.transfer import export_weights, import_weights
  export_weights(config(14), workdir, workdir + '.safetensors')
  import_weights(config(14), workdir + '_imported', workdir + '.safetensors')
  calls.clear()
  training.train(config(20), workdir + '_imported')
  print('imported', *calls)
"""


def check(out, expected):
  """Checks the calls of the train step, {beginning: steps}: the first compiles, and no other."""
  for line, (begin, steps) in zip(out.splitlines()[-len(expected) :], expected.items(), strict=True):
    name, first, *later = line.split()
    assert name == begin, out
    assert len(later) == steps - 1, name
    assert int(first) >= 1
    assert set(later) == {"0"}, out


@pytest.mark.slow
@pytest.mark.parametrize(
  ("devices", "parallelism"),
  [(2, "pmap"), *(pytest.param(*c, marks=pytest.mark.longest) for c in ((1, "pmap"), (2, "fsdp")))],
)
def test_the_train_step_is_compiled_once(tmp_path, devices, parallelism):
  """Also where a run resumes or begins with imported weights, with snapshots, evaluations and samples between steps."""
  done = subprocess.run(
    [sys.executable, "-c", CODE, str(tmp_path / "run"), parallelism], cwd=runs.ROOT, check=False,
    env=runs.environment(devices), capture_output=True, text=True,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  check(done.stdout, {"fresh": 4, "resumed": 3, "imported": 3})


@pytest.mark.slow
@pytest.mark.longest
def test_two_hosts_compile_the_train_step_once(tmp_path):
  coordinator = f"127.0.0.1:{runs.free_port()}"
  hosts = [
    subprocess.Popen(
      [sys.executable, "-c", CODE, str(tmp_path / "run"), "pmap", coordinator, str(i)], cwd=runs.ROOT,
      env=runs.environment(1), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )
    for i in range(2)
  ]  # fmt: skip
  for host in hosts:
    out, err = host.communicate(timeout=300)
    assert host.returncode == 0, err
    check(out, {"fresh": 4, "resumed": 3})


@pytest.mark.slow
def test_sampler_loss_and_likelihood_are_compiled_once_for_all_checkpoints(trained):
  """An evaluation of two snapshots compiles no more programs than one of one snapshot.

  A first evaluation fills the caches of single operations, which other tests may have filled or not.
  """
  folder, config = trained
  compiled = []
  listen = lambda name, seconds, **more: compiled.append(name) if name.endswith("backend_compile_duration") else None
  jax.monitoring.register_event_duration_secs_listener(listen)
  counts = []
  for name, last in (("first", 2), ("one", 1), ("two", 2)):
    evaluated = runs.changed(
      config.copy_and_resolve_references(), eval__begin_ckpt=1, eval__end_ckpt=last, eval__report=f"report_{name}",
      eval__enable_bpd=True, eval__enable_sampling=True, eval__num_samples=16, eval__num_examples=16,
      eval__save_samples="none",
    )  # fmt: skip
    before = len(compiled)
    evaluate.evaluate(evaluated, str(folder))
    counts.append(len(compiled) - before)
  _, one, two = counts
  assert 0 < one == two, counts
