"""Training step: the state, one step as a pure function, and the state as files."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from score_sde import averaging
from score_sde.augmentation import Augmentation
from score_sde.batch import Array, example_keys, fold
from score_sde.losses import ConsistencyLoss, has_target
from score_sde.run import checkpoints, devices
from score_sde.run.config import signature
from score_sde.run.devices import Mesh
from score_sde.run.experiment import Experiment, build
from score_sde.run.packing import SMALL, Packing
from score_sde.run.teacher import starts_from_teacher
from score_sde.scaling import Scaling

# Streams of the key per example and step.
DATA, LOSS, AUGMENT = range(3)

# Streams of the run's key.
INIT, TRAIN, EVAL = range(3)


@flax.struct.dataclass
class TrainState:
  """Training state: all that a run needs to resume. `step` counts the steps done; `key` is the run's fixed key.

  Consistency training may add parameters that give the targets, and the fixed ones of a teacher, which are not saved.
  `averages` has one average of the parameters for each of model.ema_widths.
  """

  step: Array
  params: Any
  ema_params: Any
  opt_state: Any
  key: Array
  target: Any = None
  teacher: Any = None
  averages: Any = None


# --- one step ---------------------------------------------------------------------------------------------------------


def learning_rate(config: ConfigDict, step: Any, xp: Any = jnp) -> Any:
  """Returns the learning rate of a step: linear warm-up, then constant, or a half cosine to 0. `xp`: jnp or np."""
  o = config.optim
  warm = xp.minimum(step / o.warmup, 1.0) if o.warmup > 0 else 1.0
  if o.decay != "cosine":
    return o.lr * warm
  return o.lr * warm * (0.5 * (1 + xp.cos(xp.pi * xp.minimum(step / config.training.n_iters, 1.0))))


def make_optimizer(config: ConfigDict) -> optax.GradientTransformation:
  """Returns Adam or RAdam with gradient clipping, linear warm-up, decoupled weight decay, optionally cosine decay."""
  o = config.optim
  clip = optax.clip_by_global_norm(o.grad_clip) if o.grad_clip > 0 else optax.identity()
  decay = optax.add_decayed_weights(o.weight_decay) if o.weight_decay else optax.identity()
  scale = (
    optax.scale_by_radam if o.optimizer == "RAdam" else (optax.scale_by_amsgrad if o.amsgrad else optax.scale_by_adam)
  )
  adam = scale(o.beta1, o.beta2, o.eps)
  return optax.chain(clip, adam, decay, optax.scale_by_learning_rate(functools.partial(learning_rate, config)))


@dataclasses.dataclass(frozen=True, eq=False)
class TrainStep:
  """Training step: the pure function (state, batch) -> (state, {"loss", "grad_norm", "update_norm"}).

  Without a `mesh` it works on a device's share of the batch, inside `devices.map_batch`. With a `mesh` it works on the
  whole batch and on a state that is split over the mesh.

  Attributes:
    loss: (params, keys, x, index, batch_size, y=labels, **loss_arguments) -> (B,).
    scaling: from raw examples to x.
    optimizer: from a gradient to an update.
    batch_size: size of the whole batch, over all devices and hosts.
    given: from a batch to the y that the network gets, see `experiment.Conditions`.
    augmentation: changes the examples and tells the network, or None.
    ema_rate, ema_warmup: options of the moving average of the parameters, see config.model.
    ema_widths: see config.model.
    parts: number of parts that a device's share of the batch is split into, to compute one after the other.
    unrolled: the network has convolutions and runs on CPU. Then the parts are compiled one after the other instead of
      as a loop, and small parameters are updated one by one: XLA's CPU backend is slow at joining them.
    mesh: the mesh over which the state is split, or None.
  """

  loss: Callable[..., Array]
  scaling: Scaling
  optimizer: optax.GradientTransformation
  batch_size: int
  given: Callable[[dict], Any]
  augmentation: Augmentation | None
  ema_rate: float
  ema_warmup: bool
  ema_widths: tuple[float, ...]
  parts: int
  unrolled: bool
  mesh: Mesh | None = None

  def __call__(self, state: TrainState, batch: dict) -> tuple[TrainState, dict]:
    key, more = jax.random.fold_in(state.key, state.step), loss_arguments(self.loss, state)
    value, gradient = self._value_and_grad(state.params, batch, key, more)
    packing = Packing(state.params, 0 if self.unrolled else SMALL)
    gradient, params, ema_params = (packing.pack(tree) for tree in (gradient, state.params, state.ema_params))
    if self.mesh is None:
      value, gradient = devices.mean((value, gradient))
    updates, opt_state = self.optimizer.update(gradient, packing.pack_within(state.opt_state), params)
    params: Any = optax.apply_updates(params, updates)
    rate = self.ema_rate
    if self.ema_warmup:
      rate = jnp.minimum(rate, (1 + state.step) / (10 + state.step))
    ema_params: Any = optax.incremental_update(params, ema_params, 1 - rate)
    metrics = {"loss": value, "grad_norm": optax.tree.norm(gradient), "update_norm": optax.tree.norm(updates)}
    params, ema_params, target = packing.unpack(params), packing.unpack(ema_params), state.target
    if target is not None:
      target = self.loss.next_target(state.step, target, params, ema_params)  # type: ignore[attr-defined]
    averages = state.averages and tuple(
      averaging.updated(average, params, state.step + 1, averaging.exponent(width))
      for average, width in zip(state.averages, self.ema_widths, strict=True)
    )
    opt_state = packing.unpack_within(opt_state)
    new = TrainState(state.step + 1, params, ema_params, opt_state, state.key, target, state.teacher, averages)
    return new, metrics

  @functools.cached_property
  def _value_and_grad(self) -> Callable[[Any, dict, Array, dict], tuple[Array, Any]]:
    """The function (params, batch, key, more) -> mean loss and gradient: of a share without a mesh, else of all."""
    if self.mesh:
      return devices.over_shards(self._of_share, self.mesh)
    return self._of_share()

  def _of_share(
    self, change: Callable = lambda objective: objective
  ) -> Callable[[Any, dict, Array, dict], tuple[Array, Any]]:
    """Returns (params, batch, key, more) -> mean loss of a device's share of the batch and its gradient.

    `more` holds further arguments of the loss. The gradient is taken of change(objective), see `devices.over_shards`.
    """

    def objective(params: Any, batch: dict, key: Array, more: dict) -> Array:
      keys = example_keys(key, batch["index"])
      x = self.scaling.prepare(fold(keys, DATA), batch["image"], train=True)
      # A condition that is an image belongs to its example: both are mirrored, or neither.
      if self.scaling.random_flip and jnp.ndim(batch.get("condition", 0)) == 4:
        batch = batch | {"condition": self.scaling.mirror(fold(keys, DATA), batch["condition"])}
      y = self.given(batch)
      if self.augmentation is not None:
        x, changes = self.augmentation(fold(keys, AUGMENT), x)
        label = y if isinstance(y, dict) else {} if y is None else {"label": y}
        y = label | {"augment": changes}
      return jnp.mean(self.loss(params, fold(keys, LOSS), x, batch["index"], self.batch_size, y=y, **more))

    one, parts = jax.value_and_grad(change(objective)), self.parts
    if parts == 1:
      return one

    def accumulated(params: Any, batch: dict, key: Array, more: dict) -> tuple[Array, Any]:
      split = jax.tree.map(lambda x: x.reshape(parts, x.shape[0] // parts, *x.shape[1:]), batch)
      add = lambda total, part: jax.tree.map(jnp.add, total, one(params, part, key, more))
      first, *others = (jax.tree.map(lambda x, i=i: x[i], split) for i in range(parts))
      if self.unrolled:
        total = functools.reduce(add, others, one(params, first, key, more))
      else:
        zeros = (jnp.zeros(()), jax.tree.map(jnp.zeros_like, params))
        total, _ = jax.lax.scan(lambda total, part: (add(total, part), None), zeros, split)
      return jax.tree.map(lambda x: x / parts, total)

    return accumulated


def loss_arguments(loss: Any, state: TrainState) -> dict[str, Any]:
  """Returns the arguments that a consistency loss takes from the state; {} for other losses."""
  if not isinstance(loss, ConsistencyLoss):
    return {}
  return {"step": state.step, "target": state.target, "teacher": state.teacher}


def make_train_step(experiment: Experiment, mesh: Mesh | None = None) -> TrainStep:
  """Returns the training step of an experiment."""
  config = experiment.config
  assert experiment.loss is not None
  augment = config.training.augment
  return TrainStep(
    loss=experiment.loss, scaling=experiment.scaling, optimizer=make_optimizer(config),
    batch_size=config.training.batch_size, given=experiment.given,
    augmentation=Augmentation(augment) if augment else None, ema_rate=config.model.ema_rate,
    ema_warmup=config.model.ema_warmup, ema_widths=tuple(config.model.ema_widths),
    parts=config.training.accumulation, unrolled=_unrolls(experiment), mesh=mesh,
  )  # fmt: skip


def _unrolls(experiment: Experiment) -> bool:
  """Returns True for convolutions on CPU: XLA runs their gradient 20 to 40 times slower inside a loop than outside."""
  return devices.on_cpu() and any(x.ndim >= 3 for x in jax.tree.leaves(experiment.abstract_params()))


def make_train_steps(experiment: Experiment) -> Callable[[TrainState, dict], tuple[TrainState, dict]]:
  """Returns a block of steps as one dispatch: (state, this host's batches (steps, b, ...)) -> (state, metrics).

  The state has the sharding of `start_state`. Its buffers are donated. Each number of steps compiles once.
  """
  mesh = make_mesh(experiment.config)
  step = make_train_step(experiment, mesh)

  def unrolled(state: TrainState, batches: dict) -> tuple[TrainState, dict]:
    metrics = []
    for i in range(len(jax.tree.leaves(batches)[0])):
      state, values = step(state, jax.tree.map(lambda x: x[i], batches))
      metrics.append(values)
    return state, jax.tree.map(lambda *x: jnp.stack(x), *metrics)

  steps = unrolled if step.unrolled else lambda *args: jax.lax.scan(step, *args)
  if mesh is not None:
    return devices.on_mesh(steps, mesh, abstract_state(experiment))
  run = devices.map_batch(steps, (None, 0), out_axes=None, donate=(0,), everywhere=True, name="the train step")
  return lambda state, batches: run(state, devices.shard(batches, axis=1))


def make_mesh(config: ConfigDict) -> Mesh | None:
  """Returns the mesh that training.parallelism="fsdp" splits the state over; None for "pmap"."""
  return devices.fsdp_mesh(config.training.fsdp_devices) if config.training.parallelism == "fsdp" else None


def init_state(experiment: Experiment, teacher: Any = None) -> TrainState:
  """Returns the state before the first step. `teacher` has the parameters of the experiment's teacher, if any."""
  config, loss = experiment.config, experiment.loss
  key = jax.random.key(config.seed)
  if teacher is not None and starts_from_teacher(config):
    # Without augmentation the input for it is zero, and its weights are not needed.
    known = {k: v for k, v in teacher.items() if k != "augment" or config.training.augment}
    params = jax.tree.map(jnp.copy, known)
  else:
    params = experiment.init_params(jax.random.fold_in(key, INIT))
  opt_state = make_optimizer(config).init(params)
  # All are donated, so they need separate buffers.
  ema_params = jax.tree.map(jnp.copy, params)
  t = config.training
  targets = t.task == "consistency" and has_target(t.objective, t.target_rate)
  target = jax.tree.map(jnp.copy, params) if targets else None
  kept = teacher if getattr(loss, "evaluates_teacher", False) else None
  averages = tuple(jax.tree.map(jnp.copy, params) for _ in config.model.ema_widths) or None
  run_key = jax.random.fold_in(key, TRAIN)
  return TrainState(jnp.zeros((), jnp.int32), params, ema_params, opt_state, run_key, target, kept, averages)


def abstract_state(experiment: Experiment) -> TrainState:
  """Returns shapes and dtypes of the state."""
  given = experiment.teacher and experiment.teacher.abstract
  return jax.eval_shape(lambda teacher: init_state(experiment, teacher), given)


def start_state(experiment: Experiment) -> TrainState:
  """Returns the state before the first step, with the sharding that `make_train_steps` needs."""
  mesh, given = make_mesh(experiment.config), experiment.teacher and experiment.teacher.params
  if mesh is None:
    return devices.replicate(devices.run_once(lambda teacher: init_state(experiment, teacher), given))
  place = devices.shardings(abstract_state(experiment), mesh)
  return jax.jit(lambda teacher: init_state(experiment, teacher), out_shardings=place)(given)


def abstract_batch(experiment: Experiment, size: int) -> dict[str, jax.ShapeDtypeStruct]:
  """Returns shapes and dtypes of a batch of `size` raw examples."""
  levels = experiment.scaling.levels
  image = np.float32 if levels is None else np.uint8 if levels <= 256 else np.uint16
  shapes = {"image": (experiment.shape, image), "label": ((), np.int32), "index": ((), np.int32)}
  if experiment.given.scaling is not None:
    shapes["condition"] = (tuple(experiment.config.data.condition_shape), np.float32)
  return {name: jax.ShapeDtypeStruct((size, *shape), dtype) for name, (shape, dtype) in shapes.items()}


def lower_share(experiment: Experiment) -> jax.stages.Lowered:
  """Lowers the training step of one device's share of the batch, without splitting it further, to count its work."""
  step = dataclasses.replace(make_train_step(experiment), mesh=None, parts=1)
  share = experiment.config.training.batch_size // devices.total_count()
  state = abstract_state(experiment)
  with devices.planned(jax.local_devices()[:1]):
    return devices.lower(step, state, abstract_batch(experiment, share), out_shared=True)


def step_flops(experiment: Experiment) -> float:
  """Returns the operations of a training step on all devices together, as the equations ask for them.

  The second forward pass of model.remat is none of them.
  """
  if experiment.config.model.get("remat"):
    config = experiment.config.copy_and_resolve_references()
    config.model.remat = False
    experiment = build(config)
  of_share: Any = lower_share(experiment).cost_analysis() or {}
  return devices.total_count() * float(of_share.get("flops", 0.0))


def make_eval_loss(experiment: Experiment) -> Callable[[Any, Array, dict, dict], Array]:
  """Returns the loss per example, without dropout or flips: (params, key, more, batch (B, ...)) -> (B,).

  `more` holds further arguments of the loss, see `loss_arguments`.
  """
  loss, scaling, size = experiment.loss, experiment.scaling, experiment.config.training.batch_size

  assert loss is not None

  def losses(params: Any, key: Array, more: dict, batch: dict) -> Array:
    keys = example_keys(key, batch["index"])
    x, y = scaling.prepare(fold(keys, DATA), batch["image"]), experiment.given(batch)
    return loss(params, fold(keys, LOSS), x, batch["index"], size, train=False, y=y, **more)

  return devices.over_devices(losses, shared=3, name="the evaluation loss")


# --- saving and resuming ------------------------------------------------------------------------------------------


def saved_form(state: TrainState) -> dict[str, Any]:
  """Returns the state as plain arrays, without the EMA parameters: `checkpoints.save` writes those separately."""
  key = jax.random.key_data(state.key)
  saved = {"step": state.step, "params": state.params, "opt_state": state.opt_state, "key": key}
  more = {"target": state.target, "averages": state.averages and list(state.averages)}  # orbax makes lists of tuples
  return saved | {name: tree for name, tree in more.items() if tree is not None}


def restore_state(manager: Any, experiment: Experiment, workdir: str) -> TrainState | None:
  """Returns the newest undamaged state in `workdir`, with the sharding that `make_train_steps` needs; None if none."""
  abstract, mesh = abstract_state(experiment), make_mesh(experiment.config)
  targets = {"state": jax.eval_shape(saved_form, abstract), "ema_params": abstract.ema_params}
  found = checkpoints.restore(manager, targets, signature(experiment.config), workdir, mesh=mesh)
  if found is None:
    return None
  _, items = found
  saved = items["state"]
  key = jax.random.wrap_key_data(jnp.asarray(saved["key"]))
  teacher = None
  if abstract.teacher is not None:
    assert experiment.teacher is not None
    given = jax.tree.map(jnp.copy, experiment.teacher.params)  # the state is donated, and evaluations need these
    teacher = jax.device_put(given, devices.shardings(given, mesh)) if mesh else devices.replicate(given)
  averages = saved.get("averages")
  return TrainState(
    saved["step"], saved["params"], items["ema_params"], saved["opt_state"], key, saved.get("target"), teacher,
    averages and tuple(averages),
  )  # fmt: skip
