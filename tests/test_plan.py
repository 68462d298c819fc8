"""Plans of runs: counts against closed forms, and programs compiled for machines that are not here."""

import dataclasses
import importlib.util
import json
import math
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import runs

import score_sde as ss
from configs import quickstart
from configs.consistency import digits
from configs.ve import cifar10_ncsnpp_continuous
from configs.ve.ncsnv2 import cifar10 as ncsnv2
from score_sde.batch import example_keys
from score_sde.errors import InvalidArgument
from score_sde.run import devices, plan, train_step
from score_sde.run.config import BadInput, resolve
from score_sde.run.devices import targets
from score_sde.run.experiment import build
from score_sde.run.packing import Packing
from score_sde.run.storage import path_of


def small_unet():
  """An NCSN++ with every kind of layer, of a few channels."""
  config = cifar10_ncsnpp_continuous.get_config()
  return runs.changed(
    config, model__nf=8, model__ch_mult=(1, 2), model__num_res_blocks=1, data__image_size=16, training__batch_size=8,
    model__attn_resolutions=(8,),
  )  # fmt: skip


# --- the parts --------------------------------------------------------------------------------------------------------


def test_what_is_packed_comes_back():
  tree = {
    "a": jnp.arange(3.0),
    "b": [jnp.ones((2, 5)), jnp.zeros((4, 5))],
    "c": jnp.float32(7),
    "d": jnp.ones((100, 100)),
  }
  packing = Packing(tree)
  packed = packing.pack(tree)
  assert sorted(x.shape for x in packed) == [(), (3,), (6, 5), (100, 100)]
  jax.tree.map(np.testing.assert_array_equal, packing.unpack(packed), tree)
  moments = optax.adam(1e-3).init(tree)
  jax.tree.map(np.testing.assert_array_equal, packing.unpack_within(packing.pack_within(moments)), moments)


@pytest.mark.thorough
def test_a_step_does_not_depend_on_packing():
  """Parameters, moments and average are those of an update array by array."""
  experiment = build(runs.tiny(training__batch_size=8, model__nf=16))
  with devices.planned(jax.devices()[:1]):
    step = dataclasses.replace(train_step.make_train_step(experiment), unrolled=False)
  state = train_step.init_state(experiment)
  index = jnp.arange(8, dtype=jnp.int32)
  batch = {"image": jnp.ones((8, *experiment.shape), jnp.uint8) * index[:, None, None, None].astype(jnp.uint8)}
  batch |= {"label": index, "index": index}
  ends = [
    jax.vmap(s, in_axes=(None, 0), axis_name="batch")(state, jax.tree.map(lambda x: x[None], batch))[0]
    for s in (step, dataclasses.replace(step, unrolled=True))
  ]
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-8)
  jax.tree.map(close, *(train_step.saved_form(end)["params"] for end in ends))
  jax.tree.map(close, *(end.ema_params for end in ends))


HLO = """HloModule step

%body (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  ROOT %n = f32[4]{0} negate(%p)
}

%parts (q: f32[8]) -> f32[8] {
  %q = f32[8]{0} parameter(0)
  %s = ((f32[8]{0}), f32[1]{0}) reduce-scatter-start(%q), dimensions={0}, to_apply=%add
  ROOT %d = f32[1]{0} reduce-scatter-done(%s)
}

ENTRY %main (a: f32[8,4], b: bf16[4]) -> f32[8,4] {
  %a = f32[8,4]{1,0} parameter(0)
  %b = bf16[4]{0} parameter(1)
  %f = f32[8,4]{1,0} fusion(%a, %b), kind=kLoop, calls=%fused
  %c = (f32[8,4]{1,0}, u8[1000]{0}) custom-call(%f, %a), custom_call_target="__cudnn$convForward"
  %g = f32[8,4]{1,0} get-tuple-element(%c), index=0
  %r = f32[8,4]{1,0} all-reduce(%g), to_apply=%add
  %v = (s32[], f32[8]{0}, f32[1]{0}, s32[], s32[], /*index=5*/f32[8]{0}) while(%y), condition=%c, body=%parts, \
backend_config={"known_trip_count":{"n":"2"}}
  ROOT %w = f32[4]{0} while(%x), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
}
"""


def test_bytes_and_collectives_are_read_from_a_program():
  """Fusion: 128 + 8 read, 128 written; convolution: 256 and 128 without its scratch; all-reduce: 256.

  The loops run 2 x (32 + 36 bytes) and 3 x 32.
  """
  assert targets.bytes_accessed(HLO) == (128 + 8 + 128) + (256 + 128) + 256 + 2 * (32 + 36) + 3 * 32
  assert targets.collectives(HLO) == {
    "all-reduce": {"count": 1, "bytes": 128}, "reduce-scatter": {"count": 2, "bytes": 2 * 4},
  }  # fmt: skip
  gather = "  %s = (f32[2,4]{1,0}, f32[8,4]{1,0}) all-gather-start(%a), dimensions={0}\n"
  permute = "  %p = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%b), source_target_pairs={{0,1}}\n"
  assert targets.collectives(f"ENTRY %main (a: f32[2,4]) -> f32[2,4] {{\n{gather}{permute}}}\n") == {
    "all-gather": {"count": 1, "bytes": 128}, "collective-permute": {"count": 1, "bytes": 32},
  }  # fmt: skip


@pytest.mark.parametrize(
  ("name", "part"),
  [
    ("gpu", "give local, tpu:v5e:2x4 or cuda:h100:8"),
    ("cuda:h1000:8", "Did you mean 'cuda:h100:8'"),
    ("cuda:h100", "a number of GPUs"),
    ("tpu:v5e:8", "a topology"),
  ],
)
def test_a_wrong_target_is_named(name, part):
  with pytest.raises(InvalidArgument, match=part):
    targets.find_target(name)


def test_a_plan_for_another_machine_leaves_the_accelerators_of_this_one_alone(tmp_path):
  """JAX is told so before the config is resolved, which asks for this machine's backend."""
  program = (
    "import jax, sys\n"
    "from score_sde.run.devices import targets\n"
    "from score_sde.run import plan\n"
    "def found(target):\n"
    "  print('backends:', jax.config.jax_platforms)\n"
    "  raise SystemExit\n"
    "plan.resolve = plan._found = found\n"
    "plan.plan(None, sys.argv[1])\n"
  )
  environment = {k: v for k, v in os.environ.items() if k != "JAX_PLATFORMS"}
  for target, platforms in (("cuda:h100:8", "cpu"), ("local", "None")):
    command = [sys.executable, "-c", program, target]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout == f"backends: {platforms}\n"


def test_a_missing_compiler_is_one_line(monkeypatch):
  def fail(**_):
    raise NotImplementedError("topology not implemented for cuda")

  monkeypatch.setattr("jax.experimental.topologies.get_topology_desc", fail)
  with pytest.raises(BadInput, match=r"--target=cuda:h100:8 needs a compiler .* pip install -e '\.\[plan-gpu\]'"):
    plan.plan(quickstart.get_config(), "cuda:h100:8")


# --- a plan -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_a_plan_counts_what_the_equations_ask_for():
  """A perceptron: 2 operations per weight and example; parameters, moments and average of 4 bytes, all donated."""
  config = runs.changed(quickstart.get_config(), training__batch_size=256)
  found = plan.plan(config)
  experiment = build(config)
  leaves = jax.tree.leaves(experiment.abstract_params())
  parameters = sum(x.size for x in leaves)
  weights = sum(x.size for x in leaves if x.ndim == 2)
  assert (
    found["parameters"]["total"]
    == parameters
    == sum(part["parameters"] for part in found["parameters"]["parts"].values())
  )
  share = 256 / jax.device_count()
  score, step, solve = (found["programs"][n] for n in ("score", "train_step", "likelihood"))
  assert score["flops"] == pytest.approx(2 * weights * share, rel=0.05)
  assert step["flops"] == pytest.approx(3 * score["flops"] + 15 * parameters, rel=0.1)
  assert 1.3 < solve["flops"] / score["flops"] < 2.2  # a forward derivative; labels need none
  state = 16 * parameters
  memory = found["memory"]
  assert memory["parameters"] + memory["ema"] + memory["optimizer"] == pytest.approx(state, rel=1e-4)
  assert step["donated"] == pytest.approx(state, rel=1e-3)
  assert memory["fits"]
  assert step["bytes"] > 2 * state
  run = found["run"]
  assert run["steps"] == config.training.n_iters
  assert run["evaluations_per_sample"] == config.sampling.num_steps
  times = found["time"]
  assert times["50%"]["training_hours"] == pytest.approx(2 * times["100%"]["training_hours"])
  assert times["30%"]["images_per_second"] == pytest.approx(0.3 * times["100%"]["images_per_second"])
  assert json.loads(json.dumps(found, default=float))
  text = plan.report(found)
  assert f"{parameters:,}" in text
  assert "share of the peak" in text


@pytest.mark.thorough
def test_a_run_that_does_not_fit_gets_overrides_that_were_tried(tmp_path, monkeypatch, capsys):
  """A machine on which memory goes with the share of the batch, and half of it with rematerialisation."""
  whole = plan.plan(quickstart.get_config(), programs=("train_step",))
  tried = []

  def planned(config, target, **_):
    tried.append((config.training.accumulation, config.model.remat, config.model.dtype))
    total = 16e9 / config.training.accumulation * (0.5 if config.model.remat else 1)
    return {**whole, "memory": {**whole["memory"], "total": total, "available": 5e9, "fits": total <= 5e9}}

  monkeypatch.setattr(plan, "plan", planned)
  with pytest.raises(plan.DoesNotFit) as raised:
    plan.main(small_unet(), "local", str(tmp_path), "small")
  assert "needs 14.9 GiB on each device of local, which has 4.7 GiB" in str(raised.value)
  assert "It fits with --config.training.accumulation=4 (3.7 GiB); --config.training.accumulation=8" in str(
    raised.value
  )
  assert (1, True, "float32") in tried  # tried, and too little
  assert "WHICH IS TOO MUCH" in capsys.readouterr().out
  saved = json.loads((tmp_path / "plan.json").read_text())
  assert not saved["memory"]["fits"]
  assert "--config.model.remat=True --config.training.accumulation=2" in saved["overrides_that_fit"]


def test_overrides_combine_only_what_the_network_has():
  """ncsnv2 cannot be rematerialized: it is offered accumulation with bfloat16 instead."""
  config = runs.changed(resolve(ncsnv2.get_config()), training__batch_size=64)
  tried = list(plan._savings(config, 8))
  assert not any("model.remat" in overrides for overrides in tried)
  assert {"model.dtype": "bfloat16", "training.accumulation": 8} in tried
  assert {"training.parallelism": "fsdp", "model.dtype": "bfloat16"} in tried


def test_a_plan_stays_only_while_it_is_that_of_the_run(tmp_path):
  """Training keeps the whole plan of the same run, and sets that of another aside."""
  experiment = build(quickstart.get_config())
  known = json.loads(json.dumps(plan.outline(experiment), default=float))
  file = path_of(str(tmp_path)) / "plan.json"
  file.write_text(json.dumps({**known, "programs": {}}))
  plan.write_outline(experiment, path_of(str(tmp_path)))
  assert "programs" in json.loads(file.read_text())
  other = build(runs.changed(quickstart.get_config(), training__batch_size=64))
  plan.write_outline(other, path_of(str(tmp_path)))
  assert json.loads(file.read_text())["config"]["batch_size"] == 64
  (earlier,) = tmp_path.glob("plan_*.json")
  assert "programs" in json.loads(earlier.read_text())


@pytest.mark.parametrize(("workdir", "message"), [("/proc/nowhere", "cannot be written to")])
def test_a_plan_that_cannot_be_written_fails_before_it_is_made(workdir, message, monkeypatch):
  monkeypatch.setattr(plan, "plan", lambda *_: pytest.fail("compiled first"))
  with pytest.raises(BadInput, match=message):
    plan.main(quickstart.get_config(), "local", workdir, "quickstart")


def test_the_length_of_a_run_names_what_it_samples():
  """Consistency models are judged by their own sampler; adaptive samplers have no number of evaluations."""
  config = digits.get_config()
  config.training.teacher, config.training.fid_samples = "", 100
  config.training.objective = "ict"
  config.eval.features = "inception"
  length = plan.run_length(build(config))
  assert length["evaluations_per_fid_sample"] == length["evaluations_per_sample"] == config.sampling.num_steps
  found = plan.plan(runs.changed(quickstart.get_config(), sampling__method="ode"), programs=("train_step", "score"))
  assert found["run"]["evaluations_per_sample"] is None
  assert "sampling_hours" not in found["time"]["100%"]
  assert re.search(r"^100%.* -$", plan.report(found), re.MULTILINE)


@pytest.mark.thorough
def test_the_operations_of_a_model_leave_out_what_is_computed_twice():
  experiments = [build(runs.changed(small_unet(), model__remat=remat)) for remat in (False, True)]
  counted = [train_step.step_flops(experiment) for experiment in experiments]
  assert counted[0] == counted[1]


# --- programs for machines that are not here --------------------------------------------------------------------------

COMPILERS = {"tpu:v5e:2x2": "libtpu", "cuda:h100:2": "jax_cuda13_plugin"}


@pytest.fixture(params=COMPILERS)
def machine(request):
  if importlib.util.find_spec(COMPILERS[request.param]) is None:
    pytest.skip(f"{COMPILERS[request.param]} is not installed: pip install -e '.[plan-tpu,plan-gpu]'")
  return request.param


def lowered_step(config):
  experiment = build(config)
  state = train_step.abstract_state(experiment)
  batch = train_step.abstract_batch(experiment, config.training.batch_size)
  return devices.lower(train_step.make_train_step(experiment), state, batch, out_shared=True, donate=True), state


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_steps_compile_for_accelerators(machine, dtype):
  """All state is donated, gradients are reduced together, nothing is float64 or calls the host."""
  target = targets.find_target(machine)
  config = resolve(small_unet() if dtype == "bfloat16" else quickstart.get_config())
  config.model.dtype = dtype
  with devices.planned(target.devices):
    lowered, state = lowered_step(config)
    compiled = lowered.compile(compiler_options=targets.QUICK[target.chip.platform])
  text, memory = compiled.as_text(), compiled.memory_analysis()
  size = sum(
    math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(jax.eval_shape(train_step.saved_form, state))
  )
  size += sum(x.size * 4 for x in jax.tree.leaves(state.ema_params))
  assert memory.alias_size_in_bytes >= size
  assert "f64[" not in text
  assert "callback" not in text
  reduced = targets.collectives(text)
  assert set(reduced) == {"all-reduce"}
  assert reduced["all-reduce"]["count"] <= 3
  if dtype == "bfloat16":
    assert "bf16[" in text


@pytest.mark.slow
def test_samplers_compile_for_accelerators(machine):
  target = targets.find_target(machine)
  with devices.planned(target.devices):
    experiment = build(resolve(quickstart.get_config()))
    params = jax.eval_shape(lambda: train_step.init_state(experiment).params)

    def draw(params, batch):
      score = experiment.score(params)
      keys = example_keys(jax.random.key(0), batch["index"])
      return ss.sample(keys[0], experiment.sde, score, (len(keys), *experiment.shape), solver=ss.UniPC(), steps=3)

    batch = {"index": jax.ShapeDtypeStruct((8,), np.int32)}
    compiled = devices.lower(draw, params, batch).compile(compiler_options=targets.QUICK[target.chip.platform])
  assert "f64[" not in compiled.as_text()
  assert targets.collectives(compiled.as_text()) == {}


@pytest.mark.parametrize("objective", ["cd", "progressive", "ect"])
def test_a_distillation_is_planned_before_there_is_a_teacher(objective, tmp_path):
  """The teacher's evaluations count: two of Heun's step for cd."""
  config = digits.get_config()
  config.model.nf, config.model.num_res_blocks = 16, 1
  config.training.teacher = str(tmp_path / "not_yet")
  config.training.objective = objective
  if objective == "progressive":
    config.sampling.method, config.sampling.noise_removal = "ddim", False
  found = plan.plan(config, programs=("train_step", "score"))["programs"]
  assert found["train_step"]["flops"] > {"cd": 4.5, "progressive": 4.5, "ect": 3.5}[objective] * found["score"]["flops"]
