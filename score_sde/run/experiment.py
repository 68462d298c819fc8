"""What a config describes, made: the SDE, the network as a model of its score, and the loss; and the files of a run."""

import contextlib
import dataclasses
import fcntl
import functools
import json
import logging
import math
import os
import pathlib
import socket
from collections.abc import Callable, Iterator
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde import models
from score_sde.batch import Array, example_keys, fold
from score_sde.guidance import Classifier, ddrm, projection
from score_sde.losses import MAX_EXACT_DIMS, ScoreMatching
from score_sde.models import energy
from score_sde.parameterization import ScoreModel
from score_sde.run import checkpoints, data, devices
from score_sde.run.config import (
  CLASS_METHODS,
  SCORE_METHODS,
  BadInput,
  as_bad_input,
  as_dict,
  choose,
  default_config,
  make_sde,
  resolve,
  signature,
)
from score_sde.run.report.pictures import save_atomically
from score_sde.sampling import make_grid, make_sampler, split_to_fit
from score_sde.sde import SDE, Score, as_argument, simulate

log = logging.getLogger(__name__)

Params = Any


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """A resolved config and what it describes.

  Attributes:
    config: resolved, see `score_sde.run.config.resolve`.
    sde: the SDE.
    network: the Flax module.
    model: the network as a model of the score, or as a classifier.
    loss: the training loss.
    sampler: see `score_sde.sampling.make_sampler`; it compiles once a shape. None for a classifier.
    shape: shape of one example.
    guide: what guidance makes of the network's score, see `conditional.with_class`.
    sampled_classes: classes that samples are drawn of, 0 for none.
  """

  config: ConfigDict
  sde: SDE
  network: nn.Module
  model: ScoreModel | Classifier
  loss: ScoreMatching | Classifier
  sampler: Callable | None
  shape: tuple[int, ...]
  guide: Callable[[Score], Score] = as_argument
  sampled_classes: int = 0

  def init_params(self, key: jax.Array) -> Params:
    """Fresh parameters, float32."""
    x = jnp.zeros((1, *self.shape), jnp.float32)
    return self.network.init(key, x, jnp.ones((1,), jnp.float32))["params"]

  def abstract_params(self) -> Params:
    """Shapes and dtypes of the parameters, without computing them."""
    return jax.eval_shape(self.init_params, jax.random.key(0))

  def classes(self, label: jax.Array) -> jax.Array | None:
    """The labels of a batch, where the network is one of classes."""
    return label if self.config.model.num_classes else None

  def condition(self, label: jax.Array) -> jax.Array | None:
    """The labels of a batch as what the score is conditioned on, None for that of all classes."""
    return label if self.sampled_classes else None

  def labels(self, first: int, n: int) -> np.ndarray | None:
    """What samples `first` to first + n are conditioned on: guidance.label, or the classes in turn."""
    label, index = self.config.guidance.label, np.arange(first, first + n, dtype=np.int32)
    return self.condition(index % max(self.sampled_classes, 1) if label is None else np.full_like(index, label))

  def start(self, key: jax.Array, first: int, n: int) -> Array | None:
    """What samples `first` to first + n start from at T; None for the SDE's prior.

    An SDE without one starts from end points of paths simulated from training examples.
    """
    if self.sde.has_prior:
      return None
    draw, source = self._end_points
    index = first + np.arange(n)
    chosen = data.shuffled(self.config.seed, len(source), index)
    keys = example_keys(key, jnp.asarray(index))
    return devices.unshard(draw(*devices.shard((keys, source.gather(chosen)["image"]))), n)

  @functools.cached_property
  def _end_points(self) -> tuple[Callable, data.Source]:
    """(keys, images) -> x_T, over all devices, and the training examples."""

    def draw(keys: Array, image: Array) -> Array:
      x = data.prepare(self.config, fold(keys, 0), image, train=False)
      t = jnp.full(keys.shape, self.sde.T)
      return simulate(self.sde, fold(keys, 1), x, t, self.config.training.path_steps)

    return devices.map_batch(draw, (0, 0)), data.load(self.config, "train")

  def score(self, params: Params) -> Score:
    """score(x, t) with `params` as an argument of the compiled program, not a constant in it; guided, if it is."""
    return self.guide(jax.tree_util.Partial(self.model.score, params))


def build(config: ConfigDict) -> Experiment:
  """The experiment of `config`, which is resolved on the way.

  Raises:
    BadInput: for whatever in the config cannot work, before anything is computed or compiled.
  """
  config = resolve(config)
  shape = data.example_shape(config)
  with as_bad_input():
    devices.check_batch_size("training.batch_size", config.training.batch_size, config.training.accumulation)
    if config.training.parallelism == "fsdp":
      devices.fsdp_mesh(config.training.fsdp_devices)
    sde = make_sde(config)
    network = models.create(config, shape)
    apply = lambda params, *args: network.apply({"params": params}, *args)
    if config.training.task == "classifier":
      choose("training.time_sampling", config.training.time_sampling, ("uniform", "single"))
      single = config.training.single_sigma if config.training.time_sampling == "single" else None
      classifier = Classifier(sde, apply, config.training.eps, config.training.stratified, single)
      return Experiment(config, sde, network, classifier, classifier, None, shape)
    potential = None
    choose("model.energy", config.model.energy, ("none", *energy.HEADS))
    if config.model.energy != "none":
      potential = energy.potential(apply, config.model.energy)
      apply = energy.gradient(potential)
    model = ScoreModel(
      sde=sde,
      network=apply,
      prediction=config.model.parameterization,
      conditioning=config.model.conditioning,
      num_scales=None if config.training.continuous else config.model.num_scales,
      sigma_data=config.model.sigma_data,
      potential=potential,
    )
    if model.num_scales is not None:
      sde.levels(model.num_scales)
    loss = ScoreMatching(
      model,
      objective=config.training.objective,
      target=_exact_score(config, sde),
      eps=config.training.eps,
      weighting=config.training.weighting,
      weighting_power=config.training.weighting_power,
      snr_gamma=config.training.snr_gamma,
      single_sigma=config.training.single_sigma,
      probe=config.training.probe,
      num_probes=config.training.num_probes,
      fd_step=config.training.fd_step,
      path_steps=config.training.path_steps,
      time_sampling=config.training.time_sampling,
      p_mean=config.training.p_mean,
      p_std=config.training.p_std,
      reduce_mean=config.training.reduce_mean,
      stratified=config.training.stratified,
    )
    sampler = _guided_sampler(config, sde)
  return Experiment(config, sde, network, model, loss, sampler, shape, sampled_classes=config.model.num_classes)


def _guided_sampler(config: ConfigDict, sde: SDE) -> Callable:
  """The sampler as config.guidance needs it: with a constraint, from another time, or DDRM."""
  g, s = config.guidance, config.sampling
  if g.method == "ddrm":
    grid = make_grid(s.grid, sde, s.num_steps, s.eps)
    return split_to_fit(ddrm(sde, grid, eta=g.eta, eta_b=g.eta_b, denoise=s.noise_removal), devices.device_count())
  strength = {"replacement": 1.0, "projection": g.strength}.get(g.method)
  return make_sampler(
    config, sde, start=g.t0 if g.task == "edit" else None,
    constrain=None if strength is None else projection(sde, strength=strength),
    differentiated=g.method in (*SCORE_METHODS, CLASS_METHODS[0]),
  )  # fmt: skip


def _exact_score(config: ConfigDict, sde: SDE) -> Score | None:
  """For explicit score matching: the score of the noisy data, where its density is known.

  Raises:
    BadInput: for explicit score matching of other data, and implicit score matching in too many dimensions.
  """
  dims = math.prod(data.example_shape(config))
  if config.training.objective == "ism" and dims > MAX_EXACT_DIMS:
    raise BadInput(
      f"training.objective='ism' takes a derivative for each of the data's {dims} dimensions, and up to "
      f"{MAX_EXACT_DIMS} are accepted. Use 'ssm_vr', which estimates the trace."
    )
  if config.training.objective != "esm":
    return None
  if config.data.dataset not in data.DENSITIES:
    raise BadInput(
      f"training.objective='esm' needs data whose density is known ({', '.join(data.DENSITIES)}), not "
      f"data.dataset={config.data.dataset!r}. Use 'dsm'."
    )
  return data.DENSITIES[config.data.dataset]().score(sde)


def load_classifier(workdir: str) -> tuple[Experiment, Params]:
  """The classifier that was trained in `workdir`, and its parameters.

  Raises:
    BadInput: where there is none.
  """
  file = pathlib.Path(workdir) / "config.json"
  if not file.is_file() or not checkpoints.exists(workdir):
    raise BadInput(
      f"{workdir!r} holds no trained classifier. Train one: python run.py --config=configs/classifier/digits.py "
      "--workdir=FOLDER (or fashion_mnist.py, cifar10.py)."
    )
  config = default_config()
  with config.unlocked():
    config.update(ConfigDict(json.loads(file.read_text())))
  if config.training.task != "classifier":
    raise BadInput(f"{workdir!r} was trained as a model of scores, not as a classifier.")
  classifier = build(config)
  with checkpoints.manager(workdir) as opened:
    targets = {"ema_params": classifier.abstract_params()}
    _, items = checkpoints.restore(opened, targets, signature(classifier.config), workdir)
  return classifier, devices.local(items["ema_params"])


def make_workdir(workdir: str) -> pathlib.Path:
  """Creates `workdir`. Raises BadInput where that cannot be, or nothing can be written there."""
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".write_test_{socket.gethostname()}_{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise BadInput(f"--workdir={workdir!r} cannot be written to ({error.strerror}). Give another.") from error
  return path


@contextlib.contextmanager
def claimed(path: pathlib.Path) -> Iterator[None]:
  """Within, no other job trains in the workdir `path`. The claim is a lock that ends with the process, however it ends.

  Raises:
    BadInput: where another job holds it.
  """
  if not devices.is_first_host():
    yield
    return
  file = path / ".claimed"
  with file.open("a+") as handle:
    try:
      fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      handle.seek(0)
      raise BadInput(
        f"--workdir={str(path)!r} is another job's, which trains there now ({handle.read().strip()}). Stop it, or give "
        "another."
      ) from error
    except OSError as error:  # a file system without locks
      log.warning("%s cannot be locked (%s): nothing keeps another job from writing there.", path, error.strerror)
    handle.truncate(0)
    handle.write(f"process {os.getpid()} on {socket.gethostname()}")
    handle.flush()
    try:
      yield
    finally:
      file.unlink(missing_ok=True)


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON atomically."""
  save_atomically(path, lambda file: file.write((json.dumps(value, indent=2, default=list) + "\n").encode()))


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the resolved config to config.json in `workdir`."""
  write_json(workdir / "config.json", as_dict(config))
