"""Loading of trained models: `score_sde.load`, and the config with which a workdir was trained."""

import contextlib
import json
import logging
import pathlib
import warnings
from collections.abc import Callable, Collection, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from score_sde.errors import unknown
from score_sde.likelihood import ExactLikelihood
from score_sde.model import Model
from score_sde.parameterization import ConsistencyModel, ScoreModel
from score_sde.run import checkpoints, data, devices
from score_sde.run.checkpoints import published
from score_sde.run.config import BadInput, default_config, distills_progressively, make, make_sde, resolve, signature
from score_sde.run.config.networks import create
from score_sde.run.config.plugins import is_plugin, names_code
from score_sde.run.experiment import abstract_params, build, make_model, make_solver
from score_sde.run.storage import Path, path_of
from score_sde.run.toys import TOYS
from score_sde.sampling import DDIM, DDPM, NCSN, Consistency


def parse_config(text: str, origin: str, *, allowed: Collection[str] | None = ()) -> ConfigDict:
  """Returns the config in a JSON text. Does not run the code that it may name (FILE.py:FUNCTION).

  Args:
    text: the JSON.
    origin: the file of the text, for error messages.
    allowed: values FILE.py:FUNCTION that the config may hold; None allows all.

  Raises:
    BadInput: if the text is no config, or names code that is not allowed.
  """
  try:
    values = json.loads(text)
    config = default_config()
    for section, its in values.items():  # JSON has no infinity
      for name, value in its.items() if isinstance(its, dict) else ():
        if value in ("inf", "-inf") and isinstance(config[section][name], float | None):
          its[name] = float(value)
    with config.unlocked():
      config.update(ConfigDict(values))
    its = config.data
    if its.random_flip and (its.dataset in TOYS or is_plugin(its.dataset) or len(its.shape or (0, 0, 0)) != 3):
      its.random_flip = None  # version 0.1 stored True for points, and ignored it
  except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
    raise BadInput(f"{origin} is no config of a run ({type(error).__name__}: {error}).") from error
  refused = [name for name in names_code(config) if allowed is not None and name not in allowed]
  if refused:
    raise BadInput(
      f"{origin} names code that would be run: {', '.join(refused)}. Read that file; where you trust it, allow it with "
      "load(..., allow_code=True), or name it in your own config."
    )
  return config


def read_config(workdir: str, *, allowed: Collection[str] | None = ()) -> ConfigDict:
  """Returns the config with which the run in `workdir` was trained, see `parse_config`."""
  file = path_of(workdir) / "config.json"
  if not file.is_file() or not checkpoints.exists(workdir):
    raise BadInput(f"{workdir!r} holds no trained model: it has no config.json or no checkpoints.")
  return parse_config(file.read_text(), str(file), allowed=allowed)


# Models of fewer noise levels than this get the sampler of their config: other samplers go between the levels.
FEW_LEVELS = 200


def load(path: str, checkpoint: str = "latest", *, weights: str | None = None, allow_code: bool = False) -> Model:
  """Returns the trained model in `path`; see `score_sde.load`."""
  if weights not in (None, "ema", "raw"):
    raise unknown("weights", weights, ("ema", "raw"))
  config, read_params = find(path, checkpoint, weights=weights, allowed=None if allow_code else ())
  if config.training.task == "classifier":
    raise BadInput("This is a classifier, not a model of scores: guidance.ByClassifier takes its logits.")
  shape = data.example_shape(config)
  model = make_model(config, make_sde(config), create(config, shape))
  conditions = data.condition_scaling_of(config)
  more = {"condition_shape": tuple(config.data.condition_shape), "condition_scaling": conditions} if conditions else {}
  rates = {"label": config.model.label_dropout, "condition": config.model.condition_dropout}
  return Model(
    model, read_params(), data.scaling_of(config), shape, config.model.num_classes, config.sampling.eps,
    optional=tuple(name for name, rate in rates.items() if rate > 0),
    likelihood=make(ExactLikelihood, config, "eval", max_steps=config.sampling.max_steps),
    **more, **_own_sampler(config, model),
  )  # fmt: skip


def _own_sampler(config: ConfigDict, model: ScoreModel) -> dict[str, Any]:
  """Returns solver, steps and grid of a model that was trained for certain noise levels only; {} for other models."""
  s, t = config.sampling, config.training
  if isinstance(model, ConsistencyModel):
    return {"solver": make(Consistency, config, "sampling")}
  if distills_progressively(t):
    return {"solver": DDIM(noise_removal=False), "steps": t.first_scales, "grid": "karras", "jumps": True}
  if (model.num_scales or FEW_LEVELS) < FEW_LEVELS:
    solver = make_solver(config)
    own = isinstance(solver, NCSN | DDPM)  # these have their number of steps, and their grid
    return {"solver": solver} | ({} if own else {"steps": s.num_steps, "grid": s.grid})
  return {}


def find(
  path: str, checkpoint: str = "latest", *, weights: str | None = "ema", allowed: Collection[str] | None = ()
) -> tuple[ConfigDict, Callable[[], Any]]:
  """Returns the config of the trained model in `path`, and a function that reads its parameters.

  Args:
    path: a workdir or a .safetensors file.
    checkpoint: see `score_sde.load`.
    weights: "ema" for the average of the parameters, "raw" for the parameters; None for those that eval.weights says.
    allowed: see `parse_config`.

  Raises:
    BadInput: if there is no model.
  """
  file = path_of(path)
  if file.suffix != ".safetensors":
    config = resolve(read_config(str(file), allowed=allowed))
    return config, lambda: _params_of_workdir(config, str(file), checkpoint, weights)
  if not file.is_file():
    raise BadInput(f"{path!r} does not exist.")
  if checkpoint != "latest":
    raise BadInput(f"checkpoint={checkpoint!r}: {path!r} holds the parameters of one step only. Leave it out.")
  beside = file.with_suffix(".json")
  text = _metadata(file).get("config") or (beside.read_text() if beside.is_file() else None)
  if text is None:
    raise BadInput(
      f"{path!r} holds no config for its weights. Export the weights again with python -m score_sde export, or put the "
      f"config.json of the run beside the file, as {beside.name}."
    )
  config = resolve(parse_config(text, str(file), allowed=allowed))
  return config, lambda: _params_of_file(config, pathlib.Path(file), weights)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
  """Silences orbax's warnings about a manager that only reads."""
  logger = logging.getLogger("absl")
  level = logger.level
  logger.setLevel(logging.ERROR)
  try:
    yield
  finally:
    logger.setLevel(level)


def _params_of_workdir(config: ConfigDict, workdir: str, checkpoint: str, weights: str | None) -> Any:
  from score_sde.run.evaluate import chosen
  from score_sde.run.train_step import abstract_state, saved_form

  raw = (weights or config.eval.weights) == "raw"
  if raw:
    targets: dict[str, Any] = {"state": jax.eval_shape(saved_form, abstract_state(build(_anywhere(config))))}
  else:
    shape = data.example_shape(config)
    targets = {"ema_params": abstract_params(create(config, shape), shape)}
  with _quiet(), checkpoints.manager(workdir) as manager:
    found = checkpoints.restore(manager, targets, signature(config), workdir, chosen.chosen_step(checkpoint, workdir))
  assert found is not None
  step, items = found
  if weights is None and not raw and (warning := chosen.short_run(config, step)):
    warnings.warn(f"{warning} Choose weights='raw' or weights='ema' of ss.load.", stacklevel=5)
  params = items["state"]["params"] if raw else items["ema_params"]
  return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), devices.local(params))  # of one device


def _anywhere(config: ConfigDict) -> ConfigDict:
  """Returns a config with the same training state that can be built on any number of devices."""
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked():
    config.training.update({"parallelism": "pmap", "batch_size": devices.total_count(), "accumulation": 1})
    config.sampling.condition = ""
  return config


def _metadata(file: Path) -> dict[str, str]:
  try:
    with safetensors.safe_open(file, "np") as opened:
      return opened.metadata() or {}
  except safetensors.SafetensorError as error:
    raise BadInput(f"{str(file)!r} is no safetensors file, or damaged ({error}).") from error


def _params_of_file(config: ConfigDict, file: pathlib.Path, kind: str | None) -> Any:
  shape = data.example_shape(config)
  flat: dict[str, Any] = flatten_dict(abstract_params(create(config, shape), shape), sep="/")
  expected = {k: v.shape for k, v in flat.items()}
  weights = published.read(file, expected)
  raw = (kind or config.eval.weights) == "raw"
  if kind == "raw" and weights.params is weights.ema:
    raise BadInput(f"weights='raw': {str(file)!r} holds only the average of the parameters. Leave weights out.")
  chosen = weights.params if raw else weights.ema
  published.check(chosen, expected, str(file))
  return unflatten_dict({tuple(k.split("/")): jnp.asarray(v, jnp.float32) for k, v in chosen.items()})
