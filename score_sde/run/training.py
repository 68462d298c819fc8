"""Training: the state, one pure step, and the loop around it."""

import functools
import logging
import math
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from score_sde.batch import Array, example_keys, fold
from score_sde.run import checkpoints, data, devices, evaluate, heap
from score_sde.run.config import BadInput, sde_name, signature
from score_sde.run.devices import Mesh
from score_sde.run.evaluate.judge import make_judge
from score_sde.run.experiment import Experiment, build, claimed, make_workdir, write_config
from score_sde.run.report import curves, pictures
from score_sde.run.report.progress import Bar, Interrupted, stop_asked

log = logging.getLogger(__name__)

# Streams of an example's key in a step.
DATA, LOSS = range(2)

# Streams of the run's key.
INIT, TRAIN, EVAL = range(3)


class Diverged(Exception):
  """The loss, its gradient or the update is no longer finite."""


@flax.struct.dataclass
class TrainState:
  """All that training needs to go on: `step` is the number of steps taken, `key` the run's own, never advanced."""

  step: Array
  params: Any
  ema_params: Any
  opt_state: Any
  key: Array


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Adam with gradient clipping, linear warm-up from zero, decoupled weight decay, and an optional cosine decay."""
  o = config.optim
  total = config.training.n_iters

  def rate(step):
    warm = jnp.minimum(step / o.warmup, 1.0) if o.warmup > 0 else 1.0
    decay = 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(step / total, 1.0))) if o.decay == "cosine" else 1.0
    return o.lr * warm * decay

  clip = optax.clip_by_global_norm(o.grad_clip) if o.grad_clip >= 0 else optax.identity()
  decay = optax.add_decayed_weights(o.weight_decay) if o.weight_decay else optax.identity()
  adam = (optax.scale_by_amsgrad if o.amsgrad else optax.scale_by_adam)(o.beta1, o.beta2, o.eps)
  return optax.chain(clip, adam, decay, optax.scale_by_learning_rate(rate))


def init_state(experiment: Experiment) -> TrainState:
  """The state before the first step."""
  key = jax.random.key(experiment.config.seed)
  params = experiment.init_params(jax.random.fold_in(key, INIT))
  opt_state = make_optimizer(experiment.config).init(params)
  ema_params = jax.tree.map(jnp.copy, params)  # a buffer of its own: both are donated
  return TrainState(jnp.zeros((), jnp.int32), params, ema_params, opt_state, jax.random.fold_in(key, TRAIN))


def make_train_step(
  experiment: Experiment, mesh: Mesh | None = None
) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """One step: (state, batch) -> (state, {"loss", "grad_norm", "update_norm"}).

  Without a `mesh` it is of a device's share of the batch, inside `devices.map_batch`; with one of the whole batch, and
  of a state split over the mesh.
  """
  config, optimizer = experiment.config, make_optimizer(experiment.config)
  if mesh:
    value_and_grad = devices.over_shards(functools.partial(_value_and_grad, experiment), mesh)
  else:
    of_share = _value_and_grad(experiment)
    value_and_grad = lambda *args: devices.mean(of_share(*args))

  def step(state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    value, gradient = value_and_grad(state.params, batch, jax.random.fold_in(state.key, state.step))
    updates, opt_state = optimizer.update(gradient, state.opt_state, state.params)
    params = optax.apply_updates(state.params, updates)
    rate = config.model.ema_rate
    if config.model.ema_warmup:
      rate = jnp.minimum(rate, (1 + state.step) / (10 + state.step))
    ema_params = optax.incremental_update(params, state.ema_params, 1 - rate)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), "update_norm": optax.tree.norm(updates)}
    return TrainState(state.step + 1, params, ema_params, opt_state, state.key), metrics

  return step


def _value_and_grad(
  experiment: Experiment, change: Callable = lambda objective: objective
) -> Callable[[Any, dict, Array], tuple[Array, Any]]:
  """(params, batch, key) -> the mean loss of a device's share of the batch, as `change` makes it, and its gradient.

  The share is worked through in training.accumulation parts, one after the other.
  """
  config, loss, parts = experiment.config, experiment.loss, experiment.config.training.accumulation

  def objective(params: Any, batch: dict, key: Array) -> Array:
    keys = example_keys(key, batch["index"])
    x, y = data.prepare(config, fold(keys, DATA), batch["image"], train=True), experiment.classes(batch["label"])
    return jnp.mean(loss(params, fold(keys, LOSS), x, batch["index"], config.training.batch_size, y=y))

  one = jax.value_and_grad(change(objective))
  if parts == 1:
    return one

  def accumulated(params: Any, batch: dict, key: Array) -> tuple[Array, Any]:
    split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
    add = lambda total, part: jax.tree.map(jnp.add, total, one(params, part, key))
    first, *others = (jax.tree.map(lambda x, i=i: x[i], split) for i in range(parts))
    if _unrolls(experiment):
      total = functools.reduce(add, others, one(params, first, key))
    else:
      zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
      total, _ = jax.lax.scan(lambda total, part: (add(total, part), None), zeros, split)
    return jax.tree.map(lambda x: x / parts, total)

  return accumulated


def _unrolls(experiment: Experiment) -> bool:
  """XLA's CPU backend runs the gradient of a convolution 20 to 40 times slower inside a loop than outside."""
  return devices.on_cpu() and any(x.ndim == 4 for x in jax.tree.leaves(experiment.abstract_params()))


def make_train_steps(experiment: Experiment) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """`n_jitted_steps` steps in one dispatch on all devices: (state, this host's batches (steps, b, ...)) -> the same.

  The state is that of `start_state`; its buffers are given up.
  """
  mesh = make_mesh(experiment.config)
  step, n = make_train_step(experiment, mesh), experiment.config.training.n_jitted_steps

  def unrolled(state, batches):
    metrics = []
    for i in range(n):
      state, values = step(state, jax.tree.map(lambda x: x[i], batches))
      metrics.append(values)
    return state, jax.tree.map(lambda *x: jnp.stack(x), *metrics)

  steps = unrolled if _unrolls(experiment) else lambda *args: jax.lax.scan(step, *args)
  if mesh is not None:
    return devices.on_mesh(steps, mesh, jax.eval_shape(lambda: init_state(experiment)))
  run = devices.map_batch(steps, (None, 0), out_axes=None, donate=(0,), everywhere=True)
  return lambda state, batches: run(state, devices.shard(batches, axis=1))


def make_mesh(config: ConfigDict) -> Mesh | None:
  """The mesh that training.parallelism="fsdp" splits the state over; None for "pmap"."""
  return devices.fsdp_mesh(config.training.fsdp_devices) if config.training.parallelism == "fsdp" else None


def start_state(experiment: Experiment) -> TrainState:
  """The state before the first step, where `make_train_steps` wants it."""
  mesh = make_mesh(experiment.config)
  if mesh is None:
    return devices.replicate(devices.run_once(lambda: init_state(experiment)))
  place = devices.shardings(jax.eval_shape(lambda: init_state(experiment)), mesh)
  return jax.jit(lambda: init_state(experiment), out_shardings=place)()


def make_eval_loss(experiment: Experiment) -> Callable[[Any, Array, dict], Array]:
  """Loss of each example, without dropout or flips: (params, key, sharded batch) -> (devices, b)."""
  config = experiment.config

  def losses(params: Any, key: Array, batch: dict) -> Array:
    keys = example_keys(key, batch["index"])
    x = data.prepare(config, fold(keys, DATA), batch["image"], train=False)
    size, y = config.training.batch_size, experiment.classes(batch["label"])
    return experiment.loss(params, fold(keys, LOSS), x, batch["index"], size, train=False, y=y)

  return devices.map_batch(losses, (None, None, 0))


# --- saving and resuming ------------------------------------------------------------------------------------------


def saved_form(state: TrainState) -> dict[str, Any]:
  """The state as plain arrays; EMA parameters are an item of their own (`checkpoints.save`)."""
  key = jax.random.key_data(state.key)
  return {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": key}


def restore_state(opened: Any, experiment: Experiment, workdir: str) -> TrainState | None:
  """The newest sound state in `workdir`, where `make_train_steps` wants it; None where there is none."""
  abstract = jax.eval_shape(lambda: init_state(experiment))
  targets = {"state": jax.eval_shape(saved_form, abstract), "ema_params": abstract.ema_params}
  found = checkpoints.restore(opened, targets, signature(experiment.config), workdir, mesh=make_mesh(experiment.config))
  if found is None:
    return None
  _, items = found
  saved = items["state"]
  key = jax.random.wrap_key_data(jnp.asarray(saved["key"]))
  return TrainState(saved["step"], saved["params"], items["ema_params"], saved["opt_state"], key)


# --- the loop -----------------------------------------------------------------------------------------------------


def _check_frequencies(config: ConfigDict) -> None:
  n = config.training.n_jitted_steps
  for name in ("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption"):
    value = config.training[name]
    if value % n:
      raise BadInput(
        f"training.{name}={value} is no multiple of training.n_jitted_steps={n}, and a run can only log and save "
        f"between dispatches. Try --config.training.{name}={max(n, round(value / n) * n)}."
      )


def _blocks(config: ConfigDict, batches: Iterator[dict]) -> Iterator[dict]:
  """Batches of `n_jitted_steps` steps together."""
  while True:
    block = [next(batches) for _ in range(config.training.n_jitted_steps)]
    yield jax.tree.map(lambda *x: np.stack(x), *block)


def _eval_batch(config: ConfigDict, source: data.Source, step: int) -> dict:
  """A batch of test examples, another one each step; the test set wraps around."""
  size = config.training.batch_size
  indices = (step // config.training.eval_freq * size + np.arange(size)) % len(source)
  return devices.shard(source.gather(indices) | {"index": np.arange(size, dtype=np.int32)})


def train(config: ConfigDict, workdir: str) -> None:
  """Trains as `config` says, in `workdir`; resumes where the newest checkpoint there stands.

  Leaves config.json, TensorBoard curves, metrics.csv, curves.png, checkpoints and sample grids, and with
  training.final_report the report of `evaluate.evaluate` and the pictures of `evaluate.sample`.

  Raises:
    BadInput: for whatever cannot work, before anything is compiled.
    DiskFull: where a checkpoint finds no room; the one before stays.
    data.Stalled: where no batch comes for training.data_timeout seconds.
    Diverged: at the first loss or gradient that is not finite; the last good checkpoint stays.
    Interrupted: after a signal to stop, once the state is saved.
  """
  experiment = build(config)
  config = experiment.config
  _check_frequencies(config)
  path = make_workdir(workdir)
  with claimed(path):
    _train(experiment, path, workdir)


def _train(experiment: Experiment, path: pathlib.Path, workdir: str) -> None:
  config, t = experiment.config, experiment.config.training
  source, test_source = data.load(config, "train"), data.load(config, "test")
  judge = make_judge(experiment)
  checkpoints.check_space(
    path, jax.eval_shape(lambda: saved_form(init_state(experiment))), experiment.abstract_params()
  )
  with checkpoints.manager(workdir, keep_every=t.snapshot_freq) as opened:
    checkpoints.check(opened, signature(config), workdir)
    if devices.is_first_host():
      write_config(config, path)
    state = restore_state(opened, experiment, workdir)
    if state is None:
      state = start_state(experiment)
    step = int(state.step)
    checkpoints.remove_newer(opened, step)
    total = -(-t.n_iters // t.n_jitted_steps) * t.n_jitted_steps
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    log.info(
      "%s a run of %d steps at step %d: %s parameters, %d examples of %s, %s.",
      "Resuming" if step else "Starting", total, step, f"{parameters:,}", len(source), experiment.shape,
      devices.describe(),
    )  # fmt: skip
    written = curves.Curves(path, step, writes=devices.is_first_host())
    try:
      if step and step % t.snapshot_freq == 0:  # the run may have ended between saving and what comes after
        if judge and step not in written.measured:
          _measure(judge, state, step, written)
        if devices.any_host(not _samples_of(path, step).exists()):
          _draw_samples(experiment, state, step, total, written, path)
      if step < total:
        _loop(experiment, state, step, total, source, test_source, opened, written, path, judge)
    finally:
      written.close()
  if devices.is_first_host():
    _draw_curves(config, path)
  if t.final_report and t.task == "score":
    evaluate.sample(config, workdir, experiment)
  if t.final_report:
    evaluate.evaluate(config, workdir, experiment)


def _draw_curves(config: ConfigDict, path: pathlib.Path) -> None:
  """curves.png, and fid.png where that was measured."""
  rows, run = curves.read(path), f"{sde_name(config.training.sde)}, {config.model.name}"
  of = lambda name: np.array([(r["step"], r[name]) for r in rows if math.isfinite(r.get(name, math.nan))])
  loss = {name: tuple(of(name).T) for name in ("loss", "eval_loss") if len(of(name))}
  if loss:
    pictures.curves(path / "curves.png", loss, f"{run}: loss ({config.training.objective})")
  if len(of("fid")):
    how = f"{config.training.fid_samples} samples, {config.training.fid_steps} steps"
    pictures.curves(path / "fid.png", {"FID": tuple(of("fid").T)}, f"{run}: FID of {how}")


def _measure(judge, state, step, written):
  """Adds a snapshot's FID to the curves."""
  found = judge(devices.local(state.ema_params))
  log.info("Step %d: %s.", step, ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in found.items()))
  written.write(step, **found)


def _samples_of(path, step):
  """The picture of a snapshot's samples."""
  return path / "samples" / f"step_{step:08d}.png"


def _draw_samples(experiment, state, step, total, written, path):
  """Draws a snapshot's samples, unless the report that follows does."""
  t = experiment.config.training
  reported = step == total and t.final_report
  if t.snapshot_sampling and t.task == "score" and not reported:
    picture = _samples_of(path, step)
    evaluate.draw(experiment, devices.local(state.ema_params), step, picture)
    written.picture("samples", picture, step)


def _loop(experiment, state, step, total, source, test_source, opened, written, path, judge):
  """From `step` to `total`, saving, logging, evaluating and drawing on the way."""
  config, t = experiment.config, experiment.config.training
  train_steps, eval_loss = make_train_steps(experiment), make_eval_loss(experiment)
  eval_key = jax.random.fold_in(jax.random.key(config.seed), EVAL)
  blocks = _blocks(config, data.within(data.batches(config, source, step), t.data_timeout))
  sig = signature(config)
  pending = None  # metrics of the newest block: waiting for them one block later keeps the host one ahead at most
  shown = {}  # beside the bar

  def receive(first, values):
    """Waits for a block's metrics and stops the run where they are not finite."""
    values = {k: np.asarray(v) for k, v in values.items()}
    finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
    if not finite.all():
      at = first + int(np.argmin(finite))
      good = max(opened.all_steps(), default=None)
      kept = f"the checkpoint of step {good} is kept" if good is not None else "no checkpoint was written yet"
      raise Diverged(
        f"The loss, its gradient or the update is not finite at step {at} (loss {values['loss'][at - first]}); {kept}. "
        "Try a lower optim.lr, a longer optim.warmup, or optim.grad_clip."
      )
    return {k: float(np.mean(v)) for k, v in values.items()}

  def save():
    checkpoints.save(opened, step, saved_form(state), state.ema_params, sig)

  with Bar("train", total, " steps", step) as bar:
    while step < total:
      state, values = train_steps(state, next(blocks))
      if pending is not None:
        shown = {"loss": receive(*pending)["loss"]}
      pending = (step, values)
      step += t.n_jitted_steps
      bar.show(step, **shown)

      due = {name: step % t[name] == 0 for name in ("log_freq", "eval_freq", "snapshot_freq")}
      # Hosts stop together. Asking the others waits for them, so that is done where the run waits anyway.
      asks = devices.host_count() == 1 or any(due.values()) or step % t.snapshot_freq_for_preemption == 0
      stop = asks and devices.any_host(stop_asked())
      must_save = step == total or due["snapshot_freq"] or step % t.snapshot_freq_for_preemption == 0 or stop
      if must_save or due["log_freq"] or due["eval_freq"]:
        row = receive(*pending)
        pending, shown = None, {"loss": row["loss"]}
        if due["eval_freq"]:
          batch = _eval_batch(config, test_source, step)
          losses = eval_loss(devices.local(state.ema_params), jax.random.fold_in(eval_key, step), batch)
          row["eval_loss"] = float(jnp.mean(losses))
        if due["log_freq"] or due["eval_freq"]:
          written.write(step, **row)
      if must_save:
        heap.give_back()  # what the save before has left
        save()
      if stop:
        opened.wait_until_finished()
        raise Interrupted(f"Stopped by a signal at step {step}, which is saved. The same command resumes there.")
      if due["snapshot_freq"] and judge:
        _measure(judge, state, step, written)
      if due["snapshot_freq"]:
        _draw_samples(experiment, state, step, total, written, path)
