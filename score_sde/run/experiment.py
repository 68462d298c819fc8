"""Experiment: the SDE, the network as a model of its score, the loss and the sampler, built from a config."""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import Array, example_keys, fold
from score_sde.errors import InvalidArgument
from score_sde.guidance import DDRM, Classifier, Projection
from score_sde.losses import MAX_EXACT_DIMS, ConsistencyLoss, ScoreMatching
from score_sde.models import energy
from score_sde.parameterization import ConsistencyModel, ScoreModel
from score_sde.run import data, devices
from score_sde.run.config import (
  AUTOGUIDANCE,
  CLASS_METHODS,
  SCORE_METHODS,
  BadInput,
  as_bad_input,
  choose,
  distills_progressively,
  make,
  make_sde,
  names_of,
  resolve,
  trains_paths,
)
from score_sde.run.config.checks import check_label
from score_sde.run.config.networks import apply_of, create
from score_sde.run.config.plugins import is_plugin, load
from score_sde.run.sampler import CHUNK, Sampler, stepping
from score_sde.run.teacher import Teacher, find_teacher
from score_sde.sampling import DDPM, METHODS, NCSN, AdaptiveODE, AdaptiveSDE, Clip, Solver
from score_sde.scaling import Scaling
from score_sde.sde import SDE, Score, as_argument, linear, simulate

Params = Any


@dataclasses.dataclass(frozen=True)
class Conditions:
  """Conditions: the function from a batch of examples to their y, see `score_sde.conditions`; None without any.

  Attributes:
    classes: whether y has the labels.
    scaling: the scaling of the conditions of the data; None if y has none.
  """

  classes: bool
  scaling: Scaling | None = None

  def __call__(self, batch: dict[str, Any]) -> Any:
    if self.scaling is None:
      return batch["label"] if self.classes else None
    label = {"label": batch["label"]} if self.classes else {}
    return label | {"condition": self.scaling.prepare(None, batch["condition"])}


@dataclasses.dataclass(frozen=True, eq=False)
class Experiment:
  """Experiment: a resolved config and the objects that it describes.

  Attributes:
    config: resolved, see `score_sde.run.config.resolve`. Compiled functions do not read it.
    sde: the SDE.
    network: the Flax module.
    model: the network as a model of the score, or as a classifier.
    loss: the training loss; None if it needs a teacher that is not there (anymore): samples do not need it.
    sampler: draws samples; None for a classifier.
    scaling: from raw examples to the model's inputs, and back.
    shape: shape of one example.
    given: from a batch of examples to the y that the network is trained with.
    guide: from the network's score to the score that samples and likelihoods use, see `guide.with_class`.
    sampled_classes: number of classes that samples are drawn of; 0 for samples without a class.
    class_names: names of these classes; () for those in the workdir.
    teacher: the model that is distilled or tuned, or None.
  """

  config: ConfigDict
  sde: SDE
  network: nn.Module
  model: ScoreModel | Classifier
  loss: ScoreMatching | ConsistencyLoss | Classifier | None
  sampler: Sampler | None
  scaling: Scaling
  shape: tuple[int, ...]
  given: Conditions
  guide: Callable[[Score], Score] = as_argument
  sampled_classes: int = 0
  class_names: tuple[str, ...] = ()
  teacher: Teacher | None = None

  @property
  def score_model(self) -> ScoreModel:
    """The network as a model of the score. Fails for a classifier."""
    assert isinstance(self.model, ScoreModel)
    return self.model

  @property
  def classifier(self) -> Classifier:
    """The network as a classifier. Fails for a model of the score."""
    assert isinstance(self.model, Classifier)
    return self.model

  def draw(self, *args: Any, **options: Any) -> tuple[Array, dict[str, Any]]:
    """Returns (samples, info), see `Sampler.__call__`."""
    assert self.sampler is not None
    return self.sampler(*args, **options)

  def init_params(self, key: jax.Array) -> Params:
    """Returns newly initialized parameters, float32."""
    return init_params(self.network, self.shape, key)

  def abstract_params(self) -> Params:
    """Returns shapes and dtypes of the parameters, without computing them."""
    return abstract_params(self.network, self.shape)

  def condition(self, batch: dict[str, Any]) -> Any:
    """Returns the y of a batch on which the score is conditioned; None for the score of all data."""
    return dataclasses.replace(self.given, classes=self.sampled_classes > 0)(batch)

  def labels(self, first: int, n: int) -> np.ndarray | None:
    """Returns labels of samples `first` to first + n: guidance.label, or the classes in turn; None without classes.

    Samples with the conditions of test examples have their classes, too.
    """
    if not self.sampled_classes:
      return None
    label, index = self.config.guidance.label, np.arange(first, first + n, dtype=np.int32)
    if label is None and self.given.scaling is not None and not self.config.sampling.condition:
      return np.asarray(self._test.gather(index % len(self._test))["label"], np.int32)  # those of their conditions
    return index % self.sampled_classes if label is None else np.full_like(index, label)

  def conditions(self, first: int, n: int) -> np.ndarray | None:
    """Returns conditions of samples `first` to first + n, as in the data: of sampling.condition, or of test examples.

    They are taken in turn. None for a network without conditions.
    """
    if self.given.scaling is None:
      return None
    if self.config.sampling.condition:
      return self._file_of_conditions[np.arange(first, first + n) % len(self._file_of_conditions)]
    return self._test.gather(np.arange(first, first + n) % len(self._test))["condition"]

  def asked(self, first: int, n: int) -> Any:
    """Returns the y of samples `first` to first + n."""
    return self.condition({"label": self.labels(first, n), "condition": self.conditions(first, n)})

  @functools.cached_property
  def _file_of_conditions(self) -> np.ndarray:
    return data.read_conditions(self.config.sampling.condition, tuple(self.config.data.condition_shape))

  @functools.cached_property
  def _test(self) -> data.Source:
    return data.load(self.config, "test")

  def start(self, key: jax.Array, first: int, n: int) -> Array | None:
    """Returns x_T of samples `first` to first + n; None to draw it from the SDE's prior.

    For an SDE without a prior, x_T are end points of paths that are simulated from training examples.
    """
    if self.sde.has_prior:
      return None
    draw, source = self._end_points
    index = first + np.arange(n)
    chosen = data.shuffled(self.config.seed, len(source), index)
    return draw(example_keys(key, jnp.asarray(index)), source.gather(chosen)["image"])

  @functools.cached_property
  def _end_points(self) -> tuple[Callable, data.Source]:
    """The pair of (keys, images) -> x_T, mapped over all devices, and the training examples."""
    scaling, sde, steps = self.scaling, self.sde, self.config.training.path_steps

    def draw(keys: Array, image: Array) -> Array:
      x = scaling.prepare(fold(keys, 0), image)
      return simulate(sde, fold(keys, 1), x, jnp.full(keys.shape, sde.T), steps)

    return devices.over_devices(draw, shared=0, name="the simulation"), data.load(self.config, "train")

  def score(self, params: Params) -> Score:
    """Returns score(x, t) after `guide`. The `params` are an argument of the compiled program."""
    return self.guide(jax.tree_util.Partial(self.score_model.score, params))


def init_params(network: nn.Module, shape: tuple[int, ...], key: jax.Array) -> Params:
  """Returns newly initialized parameters, float32, of a network for examples of `shape`."""
  return network.init(key, jnp.zeros((1, *shape), jnp.float32), jnp.ones((1,), jnp.float32))["params"]


def abstract_params(network: nn.Module, shape: tuple[int, ...]) -> Params:
  """Returns shapes and dtypes of the parameters, without computing them."""
  return jax.eval_shape(lambda: init_params(network, shape, jax.random.key(0)))


def build(config: ConfigDict) -> Experiment:
  """Resolves `config` and returns its experiment.

  Raises:
    BadInput: if the config is wrong. This comes before anything is computed or compiled.
  """
  config = resolve(config)
  shape, t = data.example_shape(config), config.training
  if config.model.num_classes or config.guidance.method == AUTOGUIDANCE:  # a name is a number by now, see `guide`
    check_label(config.guidance.label, max(config.model.num_classes, 1))
  with as_bad_input():
    devices.check_batch_size("training.batch_size", t.batch_size, t.accumulation)
    if t.parallelism == "fsdp":
      devices.fsdp_mesh(t.fsdp_devices)
  sde, network, scaling = make_sde(config), create(config, shape), data.scaling_of(config)
  given = Conditions(config.model.num_classes > 0, data.condition_scaling_of(config))
  if config.sampling.condition and given.scaling is not None:
    data.read_conditions(config.sampling.condition, tuple(config.data.condition_shape))  # fails early
  if t.task == "classifier":
    choose("training.time_sampling", t.time_sampling, ("uniform", "single"))
    classifier = make_classifier(config, sde, network)
    return Experiment(config, sde, network, classifier, classifier, None, scaling, shape, given)
  model = make_model(config, sde, network)
  if t.task == "consistency":
    teacher = find_teacher(config)
    loss = make_consistency_loss(config, model, teacher)
    return Experiment(
      config, sde, network, model, loss, make_sampler(config, sde), scaling, shape, given,
      sampled_classes=config.model.num_classes, teacher=teacher,
    )  # fmt: skip
  others = {"model": model, "target": _exact_score(config, sde)}
  if is_plugin(t.weighting):
    others["weighting"] = load("training.weighting", t.weighting, "from (loss, t, level) to weights (B,)")
  loss = make(ScoreMatching, config, "training", **others)
  return Experiment(
    config, sde, network, model, loss, make_sampler(config, sde), scaling, shape, given,
    sampled_classes=config.model.num_classes,
  )  # fmt: skip


def make_classifier(config: ConfigDict, sde: SDE, network: nn.Module) -> Classifier:
  """Returns the network as a classifier of noisy data. Raises BadInput if the SDE or the options do not allow it."""
  single = config.training.single_sigma if config.training.time_sampling == "single" else None
  with as_bad_input(names_of("training")):
    return Classifier(
      linear(sde, "task='classifier'"), apply_of(network), eps=config.training.eps,
      stratified=config.training.stratified, single_sigma=single,
    )  # fmt: skip


def make_model(config: ConfigDict, sde: SDE, network: nn.Module) -> ScoreModel:
  """Returns the network as a model of the score. Raises BadInput if the SDE or the options do not allow it."""
  apply, potential = apply_of(network), None
  if config.model.energy != "none":
    potential = energy.potential(apply, config.model.energy)
    apply = energy.gradient(potential)
  num_scales = None if config.training.continuous else config.model.num_scales
  parts: dict[str, Any] = {"sde": sde, "network": apply, "num_scales": num_scales}
  t = config.training
  if trains_paths(t):
    return make(ConsistencyModel, config, "model", end=t.eps if t.objective in ("cd", "ct", "ict") else 0.0, **parts)
  model = make(ScoreModel, config, "model", potential=potential, **parts)
  if num_scales is not None:
    with as_bad_input(names_of("model")):
      linear(sde, "continuous=False").levels(num_scales)
  return model


def make_consistency_loss(config: ConfigDict, model: ScoreModel, teacher: Teacher | None) -> ConsistencyLoss | None:
  """Returns the loss of a consistency model; None if it needs a teacher and there is none."""
  distills = config.training.objective in ("cd", "scm", "progressive")
  if config.training.teacher and teacher is None and distills:
    return None
  its = teacher.model if teacher is not None and distills else None
  return make(ConsistencyLoss, config, "training", model=model, teacher=its, total=config.training.n_iters)


def make_solver(config: ConfigDict) -> Any:
  """Returns the solver that config.sampling names. Raises BadInput if its options are wrong."""
  method = config.sampling.method
  if is_plugin(method):
    solver = load("sampling.method", method, "from config.sampling to a solver")(config.sampling)
    if not isinstance(solver, Solver | AdaptiveODE | AdaptiveSDE):
      raise BadInput(f"sampling.method={method!r} gives a {type(solver).__name__}, not a score_sde.Solver.")
    return solver
  choose("sampling.method", method, tuple(METHODS))
  own = {"num_scales": config.model.num_scales} if method in ("pc", "ncsn", "ddpm") else {}
  return make(METHODS[method], config, "sampling", **own)


def make_sampler(config: ConfigDict, sde: SDE, solver: Any = None, **changed: Any) -> Sampler:
  """Returns the sampler of config.sampling. config.guidance may add a constraint, change the start time or choose DDRM.

  `solver` replaces the solver of the config. `changed` may hold "grid" and "steps", which replace config.sampling's.

  Raises:
    BadInput: if the options are wrong or do not go together.
  """
  g, s = config.guidance, config.sampling
  if distills_progressively(config.training) and s.method == "ddim" and s.noise_removal:
    raise BadInput(
      "training.objective='progressive' trains steps that end at the noise of sampling.eps, and "
      "sampling.noise_removal=True makes other ones: use --config.sampling.noise_removal=False."
    )
  t_start = g.t0 if g.task == "edit" else None
  if solver is None:
    solver = (
      make(DDRM, config, "guidance", noise_removal=s.noise_removal) if g.method == "ddrm" else make_solver(config)
    )
  clip = None
  if s.clip != "none" and (g.method == "ddrm" or s.method not in ("ode", "adaptive_sde")):
    if not data.has_levels(config):
      raise BadInput(f"sampling.clip={s.clip!r} needs images, whose range is known. Leave it at 'none'.")
    low = -1.0 if config.data.centered else 0.0
    clip = Clip(low, 1.0, s.clip_quantile if s.clip == "dynamic" else None)
  constraint = {"replacement": Projection(), "projection": Projection(g.strength)}.get(g.method)
  differentiated = g.method in (*SCORE_METHODS, CLASS_METHODS[0])
  # XLA's CPU backend computes the derivative of a convolution five times slower inside a loop than outside.
  at_once = 1 if differentiated and devices.on_cpu() else CHUNK
  options = {"eps": s.eps, "t_start": t_start, "constraint": constraint, "clip": clip, "steps_at_once": at_once}
  with as_bad_input(names_of("sampling") | {"method": "sampling.method"}):
    if isinstance(solver, AdaptiveODE | AdaptiveSDE):
      return Sampler(sde, solver, **options)
    if isinstance(solver, NCSN | DDPM):
      if t_start not in (None, sde.T) or constraint:
        what = "no updates that a constraint could follow" if constraint else f"no other start than {sde.T}"
        raise InvalidArgument(f"method={s.method!r} has {what}: use 'pc'.", "method")
      return stepping(solver, sde, None, **options)
    return stepping(solver, sde, changed.get("steps", s.num_steps), changed.get("grid", s.grid), **options)


def _exact_score(config: ConfigDict, sde: SDE) -> Score | None:
  """Returns the exact score of the noisy data for explicit score matching; None for other objectives.

  Raises:
    BadInput: for explicit score matching of data without a known density, or implicit score matching in too many
      dimensions.
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
  with as_bad_input():
    return data.DENSITIES[config.data.dataset]().score(linear(sde, "training.objective='esm'"))
