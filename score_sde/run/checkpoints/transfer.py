"""Transfer of weights between files and workdirs: `python -m score_sde import` and `export`.

SOURCE is a `checkpoint_N` of the official JAX code, a `.pth` of the official PyTorch code, of NCSN or of NCSNv2, a
folder of a diffusers model (google/ddpm-*, google/ncsnpp-*) or its name on the Hugging Face hub, or a `.safetensors`
file that `export` wrote. The workdir is then ready for sampling, evaluation and further training.
"""

import logging
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from score_sde.run import checkpoints, shipped, train_step
from score_sde.run.checkpoints import diffusers, published, schedulers
from score_sde.run.config import BadInput, get, signature
from score_sde.run.experiment import build
from score_sde.run.storage import save_atomically
from score_sde.run.workdir import IMPORTED, make_file, make_workdir, write_config

log = logging.getLogger(__name__)


def import_weights(config: ConfigDict, workdir: str, source: str) -> None:
  """Writes the weights in `source` to `workdir` as a checkpoint.

  Raises:
    BadInput: if `source` cannot be read or has another architecture, or `workdir` already holds checkpoints.
  """
  experiment = build(config)
  config = experiment.config
  if checkpoints.exists(workdir):
    raise BadInput(f"workdir {workdir!r} already holds checkpoints. Give another --workdir.")
  path = pathlib.Path(shipped.find(source))
  if not path.exists() and published.is_hub_name(source):
    path = published.download(source)
  elif not path.exists():
    raise BadInput(f"{source!r} does not exist. Give a checkpoint file, a diffusers folder, or a hub name owner/model.")
  if path.is_dir() and (inside := official_checkpoints(path)):
    raise BadInput(f"{source!r} is a workdir of the official code. Import one of its checkpoints: {inside[-1]}.")
  _check_settings(config, (diffusers.settings_of(path) or {}) | schedulers.settings_of(path), source)

  abstract = experiment.abstract_params()
  flat: dict[str, Any] = flatten_dict(abstract, sep="/")
  expected = {k: v.shape for k, v in flat.items()}
  weights = published.read(path, expected)
  for found in (weights.params, weights.ema):
    published.check(found, expected, source)
  tree = lambda flat: unflatten_dict({tuple(k.split("/")): jnp.asarray(v, jnp.float32) for k, v in flat.items()})
  params, ema_params = tree(weights.params), tree(weights.ema)
  opt_state, moments = train_step.make_optimizer(config).init(params), "none, it starts anew"
  if weights.moments is not None:
    first, second = weights.moments
    count = jnp.asarray(weights.step, jnp.int32)
    opt_state, moments = optax.tree.set(opt_state, mu=tree(first), nu=tree(second), count=count), "Adam's moments"
  key = jax.random.fold_in(jax.random.key(config.seed), train_step.TRAIN)
  # The run must resume at the beginning of a block of jitted steps.
  step = weights.step // config.training.n_jitted_steps * config.training.n_jitted_steps
  whole = train_step.abstract_state(experiment)  # the file's parameters stand for targets and averages, too
  state = train_step.TrainState(
    jnp.asarray(step, jnp.int32), params, ema_params, opt_state, key, None if whole.target is None else params, None,
    whole.averages and tuple(params for _ in whole.averages),
  )  # fmt: skip

  folder = make_workdir(workdir)
  write_config(config, folder)
  save_atomically(folder / IMPORTED, lambda file: file.write(f"{source}\n{step}\n".encode()))
  with checkpoints.manager(workdir, keep_every=config.training.snapshot_freq) as manager:
    checkpoints.save(manager, step, train_step.saved_form(state), ema_params, signature(config))
  size = sum(v.size for v in weights.params.values())
  log.info("Imported %s: %s parameters, step %d, optimizer state: %s.", weights.origin, f"{size:,}", step, moments)


def official_checkpoints(folder: pathlib.Path) -> list[str]:
  """Returns the checkpoints that the official code wrote into its workdir `folder`, the newest last."""
  files = [p for p in (folder / "checkpoints").glob("checkpoint_*") if p.is_file()]
  number = lambda p: int("0" + "".join(filter(str.isdigit, p.stem)))
  return [str(p) for p in sorted(files, key=number)]


def _check_settings(config: ConfigDict, settings: dict, source: str) -> None:
  differ = {k: v for k, v in settings.items() if get(config, k) != v}
  if differ:
    flags = " ".join(f"--config.{k}={str(v).replace(' ', '')}" for k, v in differ.items())
    given = ", ".join(f"{k}={get(config, k)!r}" for k in differ)
    raise BadInput(f"{source!r} is not the model of the config ({given}). Add {flags}, or give its own config.")


def export_weights(config: ConfigDict, workdir: str, output: str, ema_only: bool = False) -> None:
  """Writes the parameters and their EMA of the newest checkpoint in `workdir` to the safetensors file `output`.

  With `ema_only` it only writes the EMA.

  Raises:
    BadInput: if there is no checkpoint, or one of another model, or `output` does not end in .safetensors.
  """
  experiment = build(config)
  if not output.endswith(".safetensors"):
    raise BadInput(f"{output!r} must end in .safetensors.")
  if not checkpoints.exists(workdir):
    raise BadInput(f"workdir {workdir!r} holds no checkpoints.")
  with checkpoints.manager(workdir) as manager:
    state = train_step.restore_state(manager, experiment, workdir)
  flat = lambda tree: {k: np.asarray(v) for k, v in flatten_dict(tree, sep="/").items()}
  if state is None:
    raise BadInput(f"workdir {workdir!r} holds no checkpoints.")
  path = make_file(output)
  params = {} if ema_only else flat(state.params)
  metadata = published.metadata_of(experiment.config, int(state.step))
  published.export_safetensors(path, params, flat(state.ema_params), metadata)
  log.info(
    "Wrote %s: %s at step %d.", output, "EMA parameters" if ema_only else "parameters and their EMA", int(state.step)
  )
