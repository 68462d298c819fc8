"""What a config describes, made: the SDE, the network as a model of its score, and the loss; and the files of a run."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from score_sde import data, models, parallel
from score_sde.config import BadInput, as_bad_input, as_dict, make_sde, resolve
from score_sde.losses import DenoisingScoreMatching
from score_sde.parameterization import ScoreModel
from score_sde.pictures import save_atomically
from score_sde.sampling import make_sampler
from score_sde.sde import LinearSDE, Score

Params = Any


@dataclasses.dataclass(frozen=True)
class Experiment:
  """A resolved config and what it describes.

  Attributes:
    config: resolved, see `score_sde.config.resolve`.
    sde: the SDE.
    network: the Flax module.
    model: the network as a model of the score.
    loss: the training loss.
    sampler: see `score_sde.sampling.make_sampler`; it compiles once a shape.
    shape: shape of one example.
  """

  config: ConfigDict
  sde: LinearSDE
  network: nn.Module
  model: ScoreModel
  loss: DenoisingScoreMatching
  sampler: Callable
  shape: tuple[int, ...]

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

  def score(self, params: Params) -> Score:
    """score(x, t) with `params` as an argument of the compiled program, not a constant in it."""
    return jax.tree_util.Partial(self.model.score, params)


def build(config: ConfigDict) -> Experiment:
  """The experiment of `config`, which is resolved on the way.

  Raises:
    BadInput: for whatever in the config cannot work, before anything is computed or compiled.
  """
  config = resolve(config)
  shape = data.example_shape(config)
  with as_bad_input():
    parallel.check_batch_size("training.batch_size", config.training.batch_size)
    sde = make_sde(config)
    network = models.create(config, shape)
    model = ScoreModel(
      sde=sde,
      network=lambda params, *args: network.apply({"params": params}, *args),
      prediction=config.model.parameterization,
      conditioning=config.model.conditioning,
      num_scales=None if config.training.continuous else config.model.num_scales,
      sigma_data=config.model.sigma_data,
    )
    if model.num_scales is not None:
      sde.levels(model.num_scales)
    loss = DenoisingScoreMatching(
      model,
      eps=config.training.eps,
      weighting=config.training.weighting,
      time_sampling=config.training.time_sampling,
      p_mean=config.training.p_mean,
      p_std=config.training.p_std,
      reduce_mean=config.training.reduce_mean,
      stratified=config.training.stratified,
    )
    sampler = make_sampler(config, sde)
  return Experiment(config, sde, network, model, loss, sampler, shape)


def make_workdir(workdir: str) -> pathlib.Path:
  """Creates `workdir`. Raises BadInput where that cannot be, or nothing can be written there."""
  path = pathlib.Path(workdir)
  try:
    path.mkdir(parents=True, exist_ok=True)
    probe = path / f".write_test_{os.getpid()}"
    probe.touch()
    probe.unlink()
  except OSError as error:
    raise BadInput(f"--workdir={workdir!r} cannot be written to ({error.strerror}). Give another.") from error
  return path


def write_json(path: pathlib.Path, value: Any) -> None:
  """Writes JSON atomically."""
  save_atomically(path, lambda file: file.write((json.dumps(value, indent=2, default=list) + "\n").encode()))


def write_config(config: ConfigDict, workdir: pathlib.Path) -> None:
  """Writes the resolved config to config.json in `workdir`."""
  write_json(workdir / "config.json", as_dict(config))
