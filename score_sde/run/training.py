"""Training: a run of `train_step`, and the files that it writes."""

import importlib.util
import logging
import math
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.errors import ScoreSDEError
from score_sde.run import checkpoints, data, devices, heap
from score_sde.run import evaluate as evaluation
from score_sde.run.config import BadInput, as_dict, distills_progressively, sde_name, signature
from score_sde.run.config.networks import warn_of_attention
from score_sde.run.devices import programs
from score_sde.run.evaluate.judge import make_judge
from score_sde.run.experiment import Experiment, build
from score_sde.run.plan import write_outline
from score_sde.run.report import curves, page, pictures
from score_sde.run.report.progress import Bar, Interrupted, stop_asked
from score_sde.run.speed import Profile, Speed
from score_sde.run.storage import Path
from score_sde.run.train_step import (
  EVAL,
  TrainState,
  abstract_state,
  learning_rate,
  loss_arguments,
  make_eval_loss,
  make_train_steps,
  restore_state,
  saved_form,
  start_state,
  step_flops,
)  # fmt: skip
from score_sde.run.workdir import check_data, claimed, make_workdir, recalled, write_config

log = logging.getLogger(__name__)


class Diverged(ScoreSDEError):
  """Error: the loss, its gradient or the update is not finite."""


def check_options(config: ConfigDict) -> None:
  """Raises BadInput for options of a training run that do not go together."""
  if distills_progressively(config.training) and not config.training.finetune:
    raise BadInput("training.finetune=False: training.objective='progressive' always starts from its teacher.")
  if distills_progressively(config.training) and config.training.rho != 7:
    raise BadInput(
      f"training.rho={config.training.rho} must be 7 for training.objective='progressive': the grid 'karras', by which "
      "its students are sampled, has this exponent."
    )
  n, profiled = config.training.n_jitted_steps, tuple(config.training.profile_steps)
  if profiled and not (
    len(profiled) == 2 and all(isinstance(i, int) for i in profiled) and 0 <= profiled[0] < profiled[1]
  ):
    raise BadInput(f"training.profile_steps={profiled} must be a first and a last step, such as (100, 110).")
  if profiled and -(-profiled[0] // n) * n >= profiled[1]:
    raise BadInput(
      f"training.profile_steps={profiled} begin between two dispatches of training.n_jitted_steps={n}: let a multiple "
      f"of {n} lie among them."
    )
  if config.training.wandb_project and importlib.util.find_spec("wandb") is None:
    raise BadInput(
      f"training.wandb_project={config.training.wandb_project!r} needs Weights & Biases: pip install -e '.[wandb]'."
    )
  for name in ("log_freq", "eval_freq", "snapshot_freq", "snapshot_freq_for_preemption"):
    value = config.training[name]
    if value % n:
      raise BadInput(
        f"training.{name}={value} is no multiple of training.n_jitted_steps={n}. A run can log and save only between "
        f"dispatches. Try --config.training.{name}={max(n, round(value / n) * n)}."
      )


def _blocks(config: ConfigDict, batches: Iterator[dict], step: int) -> Iterator[dict]:
  """Yields blocks of batches from `step` on, stacked to (steps, b, ...), each of `n_jitted_steps` steps.

  Blocks end at multiples of n_jitted_steps, where a run logs and saves. If `step` is none, because the run was started
  with another n_jitted_steps, the first block is shorter.
  """
  n = config.training.n_jitted_steps
  size = n - step % n
  while True:
    block = [next(batches) for _ in range(size)]
    yield jax.tree.map(lambda *x: np.stack(x), *block)
    size = n


def train(config: ConfigDict, workdir: str) -> None:
  """Trains a model with `config` in `workdir`. Resumes from the newest checkpoint there, if any.

  Writes config.json, plan.json (parameters, state and length of the run), TensorBoard curves, metrics.csv, curves.png,
  checkpoints, sample grids and report.html. With training.final_report it also writes the report of `evaluate.evaluate`
  and the pictures of `evaluate.sample`.

  Raises:
    BadInput: if the config or the workdir is wrong. This comes before anything is compiled.
    DiskFull, CannotSave: if a checkpoint cannot be written; the previous one stays.
    data.Stalled: if no batch arrives for training.data_timeout seconds.
    SolvesFailed: if all samples or likelihoods of the final report failed.
    Diverged: at the first loss, gradient or update that is not finite; the last good checkpoint stays.
    Interrupted: after a signal to stop, once the state is saved.
  """
  experiment = build(recalled(config, workdir))
  config, t = experiment.config, experiment.config.training
  check_options(config)
  if t.teacher and experiment.teacher is None and (experiment.loss is None or not checkpoints.exists(workdir)):
    raise BadInput(f"training.teacher={t.teacher!r} does not exist. Give the workdir of a trained score model.")
  if isinstance(config.guidance.label, str):
    raise BadInput(
      f"guidance.label={config.guidance.label!r}: training takes the number of a class, for its pictures; names "
      "are for --mode=sample and eval."
    )
  warn_of_attention(config, experiment.shape)
  path = make_workdir(workdir)
  with claimed(path):
    source, test_source = data.load(config, "train"), data.load(config, "test")
    check_data(config, path, {"train": source, "test": test_source}, trains=True)
    judge = make_judge(experiment)
    checkpoints.check_space(path, jax.eval_shape(saved_form, abstract_state(experiment)), experiment.abstract_params())
    with checkpoints.manager(workdir, keep_every=t.snapshot_freq) as manager:
      checkpoints.check(manager, signature(config), workdir)
      state = restore_state(manager, experiment, workdir)
      if devices.is_first_host():  # the config of a run stays what it was, if its checkpoint does not fit this one
        write_config(config, path)
        write_outline(experiment, path)
      if state is None:
        state = start_state(experiment)
      run = Run(experiment, path, manager, source, test_source, judge, state)
      try:
        run.finish_snapshot()
        run.train()
      finally:
        run.curves.close()
        run.draw_report()
    if not t.final_report:
      return
    if devices.host_count() == 1 and evaluation.is_reported(experiment, workdir):
      log.info(
        "%s.json has step %d with these settings already: nothing is measured again.", config.eval.report, t.n_iters
      )
      return
    failure = None
    if t.task != "classifier":
      try:
        evaluation.sample(config, workdir, experiment)
      except evaluation.SolvesFailed as error:
        failure = error  # the loss and the likelihood are still measured
    try:
      evaluation.evaluate(config, workdir, experiment)
    finally:
      if devices.is_first_host():
        page.refresh(path)
    if failure:
      raise failure


def _draw_curves(experiment: Experiment, path: Path) -> None:
  """Draws curves.png, and fid.png if FIDs were measured."""
  config, rows = experiment.config, curves.read(path)
  run = f"{data.name(config)}, {sde_name(config.training.sde, experiment.sde)}, {config.model.name}"
  of = lambda name: np.array([(r["step"], r[name]) for r in rows if math.isfinite(r.get(name, math.nan))])
  names = {"loss": "training examples", "eval_loss": "test examples"}
  loss = {label: tuple(of(name).T) for name, label in names.items() if len(of(name))}
  if loss:
    pictures.curves(path / "curves.png", loss, run, ylabel=page.loss_unit(as_dict(config)))
  if len(of("fid")):
    how = f"{config.training.fid_samples} samples, {config.training.fid_steps} steps"
    pictures.curves(path / "fid.png", {"FID": tuple(of("fid").T)}, f"{run}: FID of {how}", ylabel="FID")


class Run:
  """Training run: the state, and the files that the run writes.

  Attributes:
    state: the training state.
    step: number of steps done.
    total: number of steps of the run, rounded up to whole dispatches.
    curves: metrics.csv and TensorBoard.
  """

  def __init__(
    self,
    experiment: Experiment,
    path: Path,
    manager: Any,
    source: data.Source,
    test_source: data.Source,
    judge: Callable[[Any], dict[str, float]] | None,
    state: TrainState,
  ):
    self.experiment, self.config, self.options = experiment, experiment.config, experiment.config.training
    self.path, self.manager, self.source, self.test_source, self.judge = path, manager, source, test_source, judge
    self.state, self.step = state, int(state.step)
    n = self.options.n_jitted_steps
    self.total = -(-self.options.n_iters // n) * n
    checkpoints.remove_newer(manager, self.step)
    parameters = sum(x.size for x in jax.tree.leaves(state.params))
    evaluation.warn_of_short_run(self.config, self.total)
    if self.total > self.options.n_iters:
      log.info(
        "training.n_iters=%d is no multiple of training.n_jitted_steps=%d: the run has %d steps.",
        self.options.n_iters, n, self.total,
      )  # fmt: skip
    if self.step >= self.total:
      log.info("The run is at step %d, and training.n_iters=%d: nothing is left to train.", self.step, self.total)
    log.info(
      "%s a run of %d steps at step %d: %s parameters, %d examples of %s, %s.",
      "Resuming" if self.step else "Starting", self.total, self.step, f"{parameters:,}", len(source), experiment.shape,
      devices.describe(),
    )  # fmt: skip
    project = self.options.wandb_project
    self.curves = curves.Curves(
      path, self.step, devices.is_first_host(), (project, as_dict(self.config)) if project else None
    )
    self.curves.text("config", "\n".join(f"    {line}" for line in str(self.config).splitlines()))

  def finish_snapshot(self) -> None:
    """Measures and draws the snapshot at which a run resumes, if the earlier run ended after saving but before that."""
    if not self.step or self.step % self.options.snapshot_freq:
      return
    if self.judge and self.step not in self.curves.measured:
      self._measure()
    if devices.any_host(not self._picture.exists()):
      self._draw_samples()

  def train(self) -> None:
    """Trains to the last step: saves, logs, evaluates and draws snapshots. Raises the errors of `train`."""
    if self.step >= self.total:
      return
    config, t = self.config, self.options
    train_steps = programs.warns_of_recompilation("train step", make_train_steps(self.experiment))
    eval_loss = make_eval_loss(self.experiment)
    eval_key = jax.random.fold_in(jax.random.key(config.seed), EVAL)
    blocks = _blocks(config, data.within(data.batches(config, self.source, self.step), t.data_timeout), self.step)
    # Metrics of the newest block. They are read one block later, so the host runs at most one block ahead.
    pending = None
    shown: dict[str, float] = {}  # beside the bar
    speed = Speed(t.batch_size, config.model.dtype, lambda: step_flops(self.experiment))
    with Bar("train", self.total, " steps", self.step) as bar, Profile(self.path, t.profile_steps) as profile:
      while self.step < self.total:
        block = next(blocks)
        profile.at(self.step, self.state)
        self.state, values = train_steps(self.state, block)
        if pending is not None:
          shown = {"loss": self._received(*pending)["loss"]} | speed.shown
        pending = (self.step, values)
        self.step += len(block["index"])
        bar.show(self.step, **shown)

        due = {name: self.step % t[name] == 0 for name in ("log_freq", "eval_freq", "snapshot_freq")}
        due["log_freq"] |= self.step == self.total
        saves = self.step % t.snapshot_freq_for_preemption == 0 or due["snapshot_freq"] or self.step == self.total
        # Hosts must stop together. Asking the others waits for them, so it is done only when the run waits anyway.
        asks = devices.host_count() == 1 or any(due.values()) or saves
        stop = asks and devices.any_host(stop_asked())
        if saves or stop or due["log_freq"] or due["eval_freq"]:
          row = self._received(*pending)
          row |= speed.measure(self.step) | {"learning_rate": float(learning_rate(config, self.step - 1, np))}
          pending, shown = None, {"loss": row["loss"]} | speed.shown
          if due["eval_freq"]:
            more = devices.local(loss_arguments(self.experiment.loss, self.state))
            losses = eval_loss(
              devices.local(self.state.ema_params), jax.random.fold_in(eval_key, self.step), more, self._eval_batch()
            )
            row["eval_loss"] = float(jnp.mean(losses))
          if due["log_freq"] or due["eval_freq"]:
            self.curves.write(self.step, **row)
        if saves or stop:
          self._save()
        if stop:
          self.manager.wait_until_finished()
          raise Interrupted(f"Stopped by a signal at step {self.step}, which is saved. The same command resumes there.")
        if due["snapshot_freq"] and self.judge:
          self._measure()
        if due["snapshot_freq"]:
          self._draw_samples()
          if self.step < self.total:  # at the end of the run, `train` draws it
            self.draw_report()
        if pending is None:
          speed.start(self.step)

  def _received(self, first: int, values: dict) -> dict[str, float]:
    """Waits for the metrics of the block that began at step `first` and returns their means.

    Raises:
      Diverged: if a metric is not finite.
    """
    values = {k: np.asarray(v) for k, v in values.items()}
    finite = np.all([np.isfinite(v) for v in values.values()], axis=0)
    if not finite.all():
      at = first + int(np.argmin(finite))
      good = max(self.manager.all_steps(), default=None)
      kept = f"the checkpoint of step {good} is kept" if good is not None else "no checkpoint was written yet"
      raise Diverged(
        f"The loss, its gradient or the update is not finite at step {at} (loss {values['loss'][at - first]}); {kept}. "
        "Try a lower optim.lr, a longer optim.warmup, or optim.grad_clip."
      )
    return {k: float(np.mean(v)) for k, v in values.items()}

  def _eval_batch(self) -> dict:
    """Returns the next batch of test examples. At the end of the test set it starts again."""
    size = self.options.batch_size
    indices = (self.step // self.options.eval_freq * size + np.arange(size)) % len(self.test_source)
    return self.test_source.gather(indices) | {"index": np.arange(size, dtype=np.int32)}

  def _save(self) -> None:
    heap.give_back()  # frees the memory of the previous save
    self.curves.sync()
    state = saved_form(self.state)
    checkpoints.save(self.manager, self.step, state, self.state.ema_params, signature(self.config))

  def _measure(self) -> None:
    """Computes a snapshot's metrics, such as FID, and adds them to the curves."""
    assert self.judge is not None
    found = self.judge(devices.local(self.state.ema_params))
    log.info("Step %d: %s.", self.step, ", ".join(f"{k.replace('_', ' ')} {v:.4g}" for k, v in found.items()))
    self.curves.write(self.step, **found)

  def draw_report(self) -> None:
    """Draws the curves, and writes report.html, from what is in the workdir now."""
    if devices.is_first_host():
      try:
        _draw_curves(self.experiment, self.path)
      except Exception as error:  # a picture must not hide why the run ended
        log.warning("curves.png was not drawn (%s: %s).", type(error).__name__, error)
      page.refresh(self.path)

  @property
  def _picture(self) -> Path:
    """File of a snapshot's samples."""
    return self.path / "samples" / f"step_{self.step:08d}.png"

  def _draw_samples(self) -> None:
    """Draws a snapshot's samples, unless the final report will do so."""
    t = self.options
    reported = self.step == self.total and t.final_report
    if t.snapshot_sampling and t.task != "classifier" and not reported:
      evaluation.draw(self.experiment, devices.local(self.state.ema_params), self.step, self._picture, self.path)
      self.curves.picture("samples", self._picture, self.step)
