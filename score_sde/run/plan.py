"""Plan of a run: its work, memory and time on a machine, known before it starts and without that machine.

XLA compiles the run's own programs for the target. Nothing is run, and no data is read, except for the shape of arrays.
"""

import contextlib
import dataclasses
import json
import logging
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import example_keys
from score_sde.errors import ScoreSDEError
from score_sde.likelihood import ExactLikelihood
from score_sde.models import MODELS
from score_sde.parameterization import ConsistencyModel
from score_sde.run import devices, train_step
from score_sde.run.config import BadInput, as_bad_input, make, resolve, sde_name
from score_sde.run.devices.targets import (
  GIB,
  QUICK,
  WITHOUT_TILES,
  NoCompiler,
  Target,
  bytes_accessed,
  collectives,
  find_target,
  leave_accelerators,
  measured_peak,
)
from score_sde.run.experiment import Experiment, build, make_consistency_loss, make_model
from score_sde.run.report.progress import Interrupted, stop_asked
from score_sde.run.storage import Path
from score_sde.run.teacher import Teacher
from score_sde.run.workdir import make_workdir, set_aside, write_json
from score_sde.sde import bind

log = logging.getLogger(__name__)

SHARES = (1.0, 0.5, 0.3)


class DoesNotFit(ScoreSDEError):
  """Error: the run needs more memory than the devices of the target have."""


@dataclasses.dataclass(frozen=True)
class Program:
  """One program of a run, compiled for a device of the target. All numbers are per device.

  Attributes:
    flops: operations, counted before XLA's optimizations: those that the equations ask for.
    bytes: bytes read and written; None if it does not fit.
    arguments, temporary, code, kept: bytes of the arguments, of what is needed at once besides them, of the machine
      code, and of results without a buffer of an argument.
    donated: bytes of arguments whose buffers the results take over.
    total: bytes at the peak.
    collectives: {kind: {"count", "bytes"}}.
    operations: number of operations before XLA's optimizations.
    lowering_seconds, compile_seconds: time taken here; of these, `compile_cpu_seconds` by all cores together.
  """

  flops: float
  bytes: float | None
  total: float
  arguments: float = 0
  temporary: float = 0
  code: float = 0
  kept: float = 0
  donated: float = 0
  collectives: dict[str, dict[str, int]] = dataclasses.field(default_factory=dict)
  operations: int = 0
  lowering_seconds: float = 0
  compile_seconds: float = 0
  compile_cpu_seconds: float = 0


def plan(
  config: ConfigDict, target: str = "local", *, programs: tuple[str, ...] = ("train_step", "score", "likelihood")
) -> dict[str, Any]:
  """Returns what a run costs on `target`, see `report` for its meaning in words.

  Args:
    config: the config.
    target: "local", or the name of a machine, such as "tpu:v5e:2x4" or "cuda:h100:8".
    programs: the programs to compile.

  Raises:
    BadInput: for a wrong config or target, or if the compiler for the target is not installed.
  """
  leave_accelerators(target)
  config, machine = resolve(config), _found(target)
  with devices.planned(machine.devices):
    experiment = _with_a_teacher(build(config))
    work = _programs(experiment, programs)
    compiled = {}
    for name, (lower, alone) in work.items():
      if stop_asked():
        raise Interrupted("Stopped by a signal. Nothing was written.")
      log.info("Compiling the %s for %s ...", name.replace("_", " "), target)
      compiled[name] = _compile(lower, alone, machine)
    known = outline(experiment)
  step = compiled["train_step"]
  peak, bandwidth = _peak(machine, config.model.dtype)
  state = known["memory"]
  # A program that does not fit has no memory of its own in XLA's message, only the whole.
  working = step.total - sum(state.values()) + state["gradients"] if step.bytes is None else step.temporary
  result = known | {
    "target": {"name": target, "chip": machine.chip.name, "devices": len(machine.devices), "memory": machine.usable,
               "flops_per_second": peak, "bytes_per_second": bandwidth, "source": machine.chip.source},
    "memory": {**state, "activations": max(working - state["gradients"], 0), "total": step.total,
               "available": machine.usable, "fits": step.total <= machine.usable},
    "programs": {name: dataclasses.asdict(p) for name, p in compiled.items()},
  }  # fmt: skip
  result["time"] = _times(result, compiled, peak, bandwidth)
  return result


def _with_a_teacher(experiment: Experiment) -> Experiment:
  """Returns the experiment, with a teacher like its own network if it needs one that is not there (yet)."""
  if experiment.loss is not None or not experiment.config.training.teacher:
    return experiment
  config = ConfigDict(experiment.config)
  with config.unlocked():
    config.training.task = "score"
  model = make_model(config, experiment.sde, experiment.network)
  path = str(config.training.teacher)
  log.info("training.teacher=%r does not exist. The plan is that of a teacher like the model itself.", path)
  teacher = Teacher(path, model, experiment.abstract_params(), None)
  loss = make_consistency_loss(experiment.config, experiment.score_model, teacher)
  return dataclasses.replace(experiment, teacher=teacher, loss=loss)


def outline(experiment: Experiment) -> dict[str, Any]:
  """Returns what is known of a run before anything is compiled: its parameters, state and length."""
  config = experiment.config
  return {
    "config": {"sde": config.training.sde, "model": config.model.name, "dataset": config.data.dataset,
               "batch_size": config.training.batch_size, "dtype": config.model.dtype,
               "accumulation": config.training.accumulation, "remat": bool(config.model.get("remat", False)),
               "parallelism": config.training.parallelism},
    "devices": devices.describe(),
    "parameters": parameters_by_part(experiment),
    "memory": _state_bytes(experiment),
    "run": run_length(experiment),
  }  # fmt: skip


def write_outline(experiment: Experiment, workdir: Path) -> None:
  """Writes the `outline` to plan.json in `workdir`, unless a whole plan of this run is there."""
  file, known = workdir / "plan.json", json.loads(json.dumps(outline(experiment), default=float))
  whole = _whole(file)
  if whole and _of_same_run(whole, known):
    return
  if whole:
    set_aside(workdir, [file.name])
  write_json(file, known)


def _whole(file: Path) -> dict[str, Any]:
  """Returns the plan in `file`; {} if there is none, or only an `outline`."""
  with contextlib.suppress(OSError, ValueError):
    found = json.loads(file.read_text())
    if isinstance(found, dict) and "programs" in found:
      return found
  return {}


def _of_same_run(one: dict[str, Any], other: dict[str, Any]) -> bool:
  """Returns whether two plans or outlines are of one run: the same network, settings and length."""
  return all(one.get(part) == other.get(part) for part in ("config", "parameters", "run"))


def _found(target: str) -> Target:
  try:
    with as_bad_input({"target": "--target"}):
      return find_target(target)
  except NoCompiler as error:
    raise BadInput(str(error)) from error


# --- the programs -----------------------------------------------------------------------------------------------------


def _programs(experiment: Experiment, names: tuple[str, ...]) -> dict[str, tuple[Callable, Callable]]:
  """Returns {name: (lower for all devices, lower one device's share for a count of its operations)}."""
  config, size = experiment.config, experiment.config.training.batch_size
  share = size // devices.device_count()
  mesh = train_step.make_mesh(config)
  state = train_step.abstract_state(experiment)
  step = train_step.make_train_step(experiment, mesh)
  work: dict[str, tuple[Callable, Callable]] = {
    "train_step": (
      lambda: devices.lower(
        step, state, train_step.abstract_batch(experiment, size), mesh, out_shared=True, donate=True
      ),
      lambda: train_step.lower_share(experiment),
    )
  }
  if config.training.task == "classifier":
    return work
  params = state.params
  points = lambda n: {
    "x": jax.ShapeDtypeStruct((n, *experiment.shape), np.float32), "t": jax.ShapeDtypeStruct((n,), np.float32),
    "label": jax.ShapeDtypeStruct((n,), np.int32),
    "condition": jax.ShapeDtypeStruct((n, *config.data.condition_shape), np.float32),
  }  # fmt: skip

  def score(params: Any, batch: dict) -> Any:
    return bind(experiment.score(params), experiment.condition(batch))(batch["x"], batch["t"])

  def pair(fn: Callable) -> tuple[Callable, Callable]:
    def alone() -> Any:
      with devices.planned(jax.local_devices()[:1]):
        return devices.lower(fn, params, points(share))

    return lambda: devices.lower(fn, params, points(size)), alone

  work["score"] = pair(score)
  if not experiment.sde.why_no_likelihood and not isinstance(experiment.model, ConsistencyModel):
    exact = make(ExactLikelihood, config, "eval", max_steps=config.sampling.max_steps)

    def likelihood(params: Any, batch: dict) -> Any:
      keys = example_keys(jax.random.key(0), batch["label"])
      return exact.evaluate(
        experiment.sde, experiment.score(params), keys, batch["x"], batch["t"], experiment.condition(batch)
      )

    work["likelihood"] = pair(likelihood)
  return {name: work[name] for name in names if name in work}


def _compile(lower: Callable, alone: Callable, target: Target) -> Program:
  platform = target.chip.platform
  start = time.monotonic()
  lowered = lower()
  text = lowered.as_text()
  operations = len(re.findall(r"\b(?:stablehlo|chlo)\.\w+", text))
  lowering = time.monotonic() - start
  flops = float((alone().cost_analysis() or {}).get("flops", math.nan))
  start, cpu = time.monotonic(), time.process_time()
  options = dict(QUICK.get(platform, {}))
  try:
    try:
      compiled = lowered.compile(compiler_options=options or None)
    except jax.errors.JaxRuntimeError as error:
      if platform != "cuda" or "tile sizes" not in str(error):
        raise
      compiled = lowered.compile(compiler_options=options | WITHOUT_TILES)
  except jax.errors.JaxRuntimeError as error:
    used = re.search(r"Used ([\d.]+)([KMGT]) of", str(error))
    if "RESOURCE_EXHAUSTED" not in str(error) or not used:
      raise
    total = float(used[1]) * 2 ** (10 * ("KMGT".index(used[2]) + 1))
    return Program(flops, None, total, operations=operations, lowering_seconds=lowering)
  seconds, cpu = time.monotonic() - start, time.process_time() - cpu
  memory: Any = compiled.memory_analysis()
  found: Any = compiled.cost_analysis() or {}
  hlo = compiled.as_text() or ""
  kept = max(memory.output_size_in_bytes - memory.alias_size_in_bytes, 0)
  code = memory.generated_code_size_in_bytes
  return Program(
    flops=flops, bytes=float(found.get("bytes accessed") or bytes_accessed(hlo)),
    total=memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept + code,
    arguments=memory.argument_size_in_bytes, temporary=memory.temp_size_in_bytes, code=code, kept=kept,
    donated=memory.alias_size_in_bytes, collectives=collectives(hlo), operations=operations,
    lowering_seconds=lowering, compile_seconds=seconds, compile_cpu_seconds=cpu,
  )  # fmt: skip


def _state_bytes(experiment: Experiment) -> dict[str, float]:
  """Returns the bytes of parameters, EMA, optimizer and gradients on each device."""
  state = train_step.abstract_state(experiment)
  mesh = train_step.make_mesh(experiment.config)

  def size(tree: Any) -> float:
    leaves = jax.tree.leaves(devices.placed(tree, mesh))
    return float(sum(x.dtype.itemsize * math.prod(x.sharding.shard_shape(x.shape)) for x in leaves))

  params = size(state.params)
  return {
    "parameters": params,
    "ema": size(state.ema_params),
    "optimizer": size(state.opt_state),
    "gradients": params,
  } | {
    name: size(tree)
    for name, tree in (("target", state.target), ("teacher", state.teacher), ("averages", state.averages))
    if tree is not None
  }


def parameters_by_part(experiment: Experiment) -> dict[str, Any]:
  """Returns {"total", "parts": {kind of layer: {"count", "parameters"}}} of the network's top-level parts."""
  parts: dict[str, dict[str, int]] = {}
  params = experiment.abstract_params()
  for name, tree in params.items():
    part = parts.setdefault(re.sub(r"_\d+$", "", name), {"count": 0, "parameters": 0})
    part["count"] += 1
    part["parameters"] += sum(math.prod(x.shape) for x in jax.tree.leaves(tree))
  return {"total": sum(p["parameters"] for p in parts.values()), "parts": parts}


def run_length(experiment: Experiment) -> dict[str, Any]:
  """Returns the steps, examples and evaluations of the network of the whole run."""
  config, t = experiment.config, experiment.config.training
  steps = -(-t.n_iters // t.n_jitted_steps) * t.n_jitted_steps
  length = {
    "steps": steps, "examples": steps * t.batch_size, "evaluations_of_the_test_loss": steps // t.eval_freq,
    "snapshots": steps // t.snapshot_freq,
  }  # fmt: skip
  if t.task == "classifier":
    return length
  sampler = experiment.sampler
  assert sampler is not None
  nfe = sampler.solver.evaluations(len(sampler.grid)) if sampler.grid is not None else None
  drawn = config.sampling.num_samples if t.snapshot_sampling else 0
  per_fid_sample = t.fid_steps if t.task == "score" else nfe  # see `evaluate.judge`
  return length | {
    "evaluations_per_sample": nfe, "samples_per_snapshot": drawn, "fid_samples_per_snapshot": t.fid_samples,
    "evaluations_per_fid_sample": per_fid_sample if t.fid_samples else 0,
  }  # fmt: skip


# --- time -------------------------------------------------------------------------------------------------------------


def _peak(target: Target, dtype: str) -> tuple[float, float]:
  """Returns the peak (operations, bytes) per second of a device. Measures it if the chip is not in the table."""
  if target.chip.flops and target.chip.bandwidth:
    return target.chip.flops.get(dtype, min(target.chip.flops.values())), target.chip.bandwidth
  flops, bandwidth = measured_peak(dtype)
  shared = len(target.devices) if target.chip.platform == "cpu" else 1
  return flops / shared, bandwidth / shared


def _times(plan: dict, programs: dict[str, Program], peak: float, bandwidth: float) -> dict[str, dict[str, float]]:
  """Returns images per second, and hours of the run, at shares of the peak. Counts no communication."""
  run, batch = plan["run"], plan["config"]["batch_size"]
  step = programs["train_step"]
  least = lambda p: max(p.flops / peak, (p.bytes or 0) / bandwidth)
  found = {}
  for share in SHARES:
    seconds = least(step) / share
    rates = {"images_per_second": batch / seconds, "training_hours": run["steps"] * seconds / 3600}
    if "score" in programs:
      per_sample = least(programs["score"]) / share / batch
      drawn = [(run[f"evaluations_per_{kind}sample"], run[f"{kind}samples_per_snapshot"]) for kind in ("", "fid_")]
      counts = [nfe and nfe * count for nfe, count in drawn if count]
      if None not in counts:  # the number of an adaptive sampler is not known
        evaluations = sum(counts)
        rates["sampling_hours"] = run["snapshots"] * evaluations * per_sample / 3600
      rates["scores_per_second"] = 1 / per_sample
    if "likelihood" in programs:
      rates["likelihood_evaluations_per_second"] = batch * share / least(programs["likelihood"])
    found[f"{share:.0%}"] = rates
  return found


# --- runs that do not fit ---------------------------------------------------------------------------------------------


def overrides_that_fit(config: ConfigDict, target: str, most: int = 3) -> dict[str, float]:
  """Compiles the train step with overrides that save memory. Returns {overrides: bytes} of up to `most` that fit."""
  found: dict[str, float] = {}
  for overrides in _savings(config, len(_found(target).devices)):
    changed = config.copy_and_resolve_references()
    for key, value in overrides.items():
      section, name = key.split(".")
      changed[section][name] = value
    try:
      memory = plan(changed, target, programs=("train_step",))["memory"]
    except BadInput:  # e.g. parts that do not divide the batch
      continue
    if memory["fits"]:
      found[" ".join(f"--config.{key}={value}" for key, value in overrides.items())] = memory["total"]
    if len(found) == most:
      break
  return found


def _savings(config: ConfigDict, count: int) -> Iterator[dict[str, Any]]:
  """Yields overrides that save memory, from those that cost least."""
  share = config.training.batch_size // count
  parts = [n for n in (2, 4, 8, 16) if share % n == 0 and n > config.training.accumulation]
  known = MODELS.get(config.model.name)
  takes_remat = known is None or "remat" in {field.name for field in dataclasses.fields(known)}
  remat = {"model.remat": True} if takes_remat and not config.model.get("remat", True) else {}
  half = {"model.dtype": "bfloat16"} if config.model.dtype == "float32" else {}
  split = {"training.parallelism": "fsdp"} if count > 1 and config.training.parallelism == "pmap" else {}
  singles = [remat, *({"training.accumulation": n} for n in parts), split, half]
  most = {"training.accumulation": parts[-1]} if parts else {}
  pairs = [*(remat | {"training.accumulation": n} for n in parts if remat), remat | half, remat | split]
  pairs += [split | half, split | most, half | most]
  everything = remat | half | split | most
  seen: list[dict[str, Any]] = [{}]
  for overrides in (*singles, *pairs, everything):
    if overrides not in seen:
      seen.append(overrides)
      yield overrides


def _duration(hours: float) -> str:
  for unit, size in (("days", 24), ("h", 1), ("min", 1 / 60)):
    if hours >= 2 * size:
      return f"{hours / size:.1f} {unit}"
  return f"{hours * 3600:.1f} s"


def _size(count: float) -> str:
  return f"{count / GIB:.2f} GiB" if count >= 0.1 * GIB else f"{count / 2**20:.1f} MiB"


# --- words ------------------------------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
  """Returns a plan in words and tables."""
  config, target, memory, run = (found[k] for k in ("config", "target", "memory", "run"))
  lines = [
    f"{sde_name(config['sde'])} with {config['model']} on {config['dataset']}: batch {config['batch_size']} on "
    f"{target['devices']} x {target['chip']} ({config['dtype']}, {config['parallelism']}"
    + (f", accumulation {config['accumulation']}" if config["accumulation"] > 1 else "")
    + (", remat" if config["remat"] else "") + ")",
    "",
    f"parameters: {found['parameters']['total']:,}",
  ]  # fmt: skip
  for name, part in sorted(found["parameters"]["parts"].items(), key=lambda p: -p[1]["parameters"]):
    lines.append(
      f"  {name:<24}{part['count']:>4} x{part['parameters'] // part['count']:>14,} {part['parameters']:>14,}"
    )
  lines += ["", f"{'program, per device':<22}{'GFLOP':>10}{'GB moved':>10}{'temporary':>12}{'compiled in':>13}"]
  for name, p in found["programs"].items():
    moved = f"{p['bytes'] / 1e9:10.2f}" if p["bytes"] else f"{'-':>10}"
    lines.append(
      f"{name.replace('_', ' '):<22}{p['flops'] / 1e9:>10.2f}{moved}{_size(p['temporary']):>12}"
      f"{p['compile_seconds']:>11.1f} s"
    )
  for kind, c in found["programs"]["train_step"]["collectives"].items():
    lines.append(f"  {kind} in a step: {c['count']}, {c['bytes'] / 2**20:.1f} MiB")
  too_much = "" if memory["fits"] else ", WHICH IS TOO MUCH"
  lines += ["", f"memory per device: {_size(memory['total'])} of {_size(memory['available'])}{too_much}"]
  for name, count in memory.items():
    if name not in ("total", "available", "fits"):
      lines.append(f"  {name:<14}{_size(count):>12}")
  samples = run.get("samples_per_snapshot")
  lines += ["", f"the run: {run['steps']:,} steps, {run['examples']:,} examples, {run['snapshots']} snapshots" + (
    f" of {samples} samples with {run['evaluations_per_sample'] or 'an adaptive number of'} evaluations" if samples
    else "")]  # fmt: skip
  lines.append(f"{'share of the peak':<22}{'images/s':>12}{'training':>12}{'sampling':>12}")
  for share, rates in found["time"].items():
    sampling = _duration(rates["sampling_hours"]) if "sampling_hours" in rates else "-"
    training_time = _duration(rates["training_hours"])
    lines.append(f"{share:<22}{rates['images_per_second']:>12,.0f}{training_time:>12}{sampling:>12}")
  return "\n".join(lines)


def main(config: ConfigDict, target: str, workdir: str | None, name: str) -> None:
  """Prints the plan of a run and writes it to plan.json in `workdir`, or plan_NAME_TARGET.json without a workdir.

  Raises:
    DoesNotFit: if the run does not fit into the target's memory. The message has overrides with which it does.
  """
  folder = make_workdir(workdir or ".")  # fails before anything is compiled
  found = plan(config, target)
  if not found["memory"]["fits"]:
    log.info("It does not fit. Trying overrides ...")
    found["overrides_that_fit"] = overrides_that_fit(resolve(config), target)
  print(report(found))
  file = folder / ("plan.json" if workdir else f"plan_{name}_{target.replace(':', '_')}.json")
  found, earlier = json.loads(json.dumps(found, default=float)), _whole(file)
  if earlier and not (_of_same_run(earlier, found) and earlier["target"]["name"] == target):
    set_aside(folder, [file.name])
  write_json(file, found)
  print(f"\n{file}")
  if not found["memory"]["fits"]:
    memory, fitting = found["memory"], found["overrides_that_fit"]
    tried = "; ".join(f"{flags} ({size / GIB:.1f} GiB)" for flags, size in fitting.items())
    raise DoesNotFit(
      f"The train step needs {memory['total'] / GIB:.1f} GiB on each device of {target}, which has "
      f"{memory['available'] / GIB:.1f} GiB. "
      + (
        f"It fits with {tried}." if tried else "None of the overrides tried makes it fit: take more or larger devices."
      )
    )
