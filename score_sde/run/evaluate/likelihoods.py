"""Averages over a data set: the loss of a trained model, a classifier's accuracy, bits/dim."""

import contextlib
import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from score_sde.batch import example_keys, fold
from score_sde.bounds import ChainBound, EvidenceBound
from score_sde.likelihood import ExactLikelihood, bits_per_dim, dequantize_by_truncated_normal
from score_sde.losses import ConsistencyLoss
from score_sde.run import data, devices
from score_sde.run.config import make, sde_name
from score_sde.run.experiment import Experiment, Params
from score_sde.run.report import pictures
from score_sde.run.report.progress import Bar
from score_sde.run.storage import Path, arrays_of, read_array, save_atomically
from score_sde.sde import bind, linear

log = logging.getLogger(__name__)

# Streams of the key per example.
DATA, PROBE = range(2)


def mean_loss(
  experiment: Experiment, params: Params, source: data.Source, key: jax.Array, cache: Path | None = None
) -> dict[str, float]:
  """Returns the training loss on `source` and its standard error, with one noise and one time per example.

  The folder `cache` keeps the finished batches and shares them among hosts.

  Returns:
    {"loss", "loss_error"}.
  """
  config = experiment.config
  total = np.int32(min(len(source), config.eval.num_examples or len(source)))
  run, more = _losses(experiment), {}
  if isinstance(experiment.loss, ConsistencyLoss):
    teacher = experiment.teacher.params if experiment.teacher and experiment.loss.evaluates_teacher else None
    more = {"step": np.int32(config.training.n_iters), "target": None, "teacher": teacher}
  values = _over_batches("loss", config, source, lambda batch: run(params, key, total, more, batch), cache)
  return _mean_and_error("loss", values)


def accuracy(
  experiment: Experiment,
  params: Params,
  source: data.Source,
  key: jax.Array,
  picture: Path,
  step: int,
  cache: Path | None = None,
) -> dict[str, Any]:
  """Returns the accuracy of a classifier on `source` at ten noise levels, from the least noise to the most.

  A classifier trained at a single level is measured at that level. Writes the curve of accuracies to `picture`. The
  folder `cache` keeps the finished batches and shares them among hosts.

  Returns:
    "accuracy" at the least noise, and "accuracies" {sigma / alpha: accuracy}, as shares in [0, 1].
  """
  config, sde = experiment.config, linear(experiment.sde, "A classifier")
  last, first = (float(sde.log_snr(jnp.asarray(t))) for t in (config.training.eps, sde.T))
  ratios = np.geomspace(max(np.exp(-last / 2), 0.01), np.exp(-first / 2), 10)
  if config.training.time_sampling == "single":
    ratios = np.array([config.training.single_sigma])
  times = np.asarray(sde.time_of_log_snr(jnp.asarray(-2 * np.log(ratios), jnp.float32)))

  run = _right(experiment)

  def share(i, t):
    at_t = lambda batch: run(params, key, t, batch)
    return float(_over_batches("accuracy", config, source, at_t, cache, f"level_{i}_").mean())

  shares = [share(i, t) for i, t in enumerate(times)]
  if devices.is_first_host() and len(shares) > 1:
    title = f"{data.name(config)} · classifier under {sde_name(config.training.sde, experiment.sde)} · step {step:,}"
    pictures.curves(picture, {"accuracy": (ratios, np.array(shares))}, title, xlabel="sigma / alpha", log=True)
  return {"accuracy": shares[0], "accuracies": {f"{r:.3g}": s for r, s in zip(ratios, shares, strict=True)}}


def mean_bits_per_dim(
  experiment: Experiment, params: Params, source: data.Source, key: jax.Array, cache: Path | None = None
) -> tuple[dict[str, Any], np.ndarray]:
  """Returns (results, values): bits/dim of `source` (nats for points), averaged over eval.num_repeats dequantizations.

  eval.likelihood chooses the kind. "ode" is the likelihood of the probability-flow ODE. "elbo" and "chain" are upper
  bounds of bits/dim of the reverse-time SDE and of the discrete chain. The folder `cache` keeps the finished batches
  and shares them among hosts.

  Returns:
    results: "bits_per_dim" and its standard error over the examples whose solves finished, "examples" their number,
      "likelihood_failed" the number of the others, and the mean nfe. Without "bits_per_dim" if all failed.
    values: bits/dim (nats for points) of each example, (N,); NaN if its solve failed.
  """
  config, e = experiment.config, experiment.config.eval
  dims = math.prod(experiment.shape)
  (prepare, log_p), score = _likelihood(experiment), experiment.score(params)

  def run(repeat, batch):
    keys = example_keys(jax.random.fold_in(key, repeat), batch["index"])
    x, log_q = prepare(keys, batch["image"])
    log_density, nfe, t = log_p(score, fold(keys, PROBE), x, experiment.condition(batch))
    return jnp.stack([log_density - log_q, nfe, t], axis=1)

  name = f"bits/dim ({e.likelihood})"
  repeats = [
    _over_batches(name, config, source, functools.partial(run, repeat), cache, f"repeat_{repeat}_", (3,))
    for repeat in range(e.num_repeats)
  ]
  log_density, nfe = np.mean([r[:, 0] for r in repeats], axis=0), np.mean([r[:, 1] for r in repeats])
  reached = np.stack([r[:, 2] for r in repeats])  # the time at which each solve ended
  finished: np.ndarray = np.asarray(np.all(reached >= experiment.sde.T, axis=0) & np.isfinite(log_density))
  failed = np.flatnonzero(~finished)
  if len(failed):
    some = ", ".join(f"{i} (t = {reached[:, i].min():.3g})" for i in failed[:8])
    log.warning(
      "%d of %d examples are left out of the likelihood: not finite, or their solves exceeded sampling.max_steps: %s.",
      len(failed), len(finished), some,
    )  # fmt: skip
  counts = {"likelihood_nfe": float(nfe), "likelihood_failed": len(failed), "examples": int(finished.sum())}
  unit = "bits_per_dim" if experiment.scaling.has_levels else "nats"
  if not experiment.scaling.has_levels:
    values = experiment.scaling.log_slope(experiment.shape) - log_density
  elif e.likelihood == "chain" or e.dequantization == "truncated_normal":  # of discrete images
    values = -log_density / (dims * math.log(2))
  else:
    values = np.asarray(bits_per_dim(log_density, dims, config.data.levels, experiment.scaling.slope))
  result = _mean_and_error(unit, values[finished]) if finished.any() else {}
  return {"likelihood": e.likelihood} | result | counts, np.where(finished, values, np.nan)


def keep_likelihoods(
  file: Path, fingerprint: str, step: int, values: np.ndarray, unit: str, names: Sequence[str] = ()
) -> None:
  """Adds the likelihoods of all examples, `values` (N,) of a checkpoint, to an NPZ file.

  It holds "step" (K,), the values under `unit` ("bits_per_dim" or "nats"), (K, N) with NaN for failed solves, "name"
  (N,), by default the numbers of the examples, and the "fingerprint" of the evaluation's settings. Steps of an
  evaluation with other settings are dropped.
  """
  name = np.array(list(names)[: len(values)] if names else range(len(values)), str)
  kept: dict[int, np.ndarray] = {}
  with contextlib.suppress(Exception), arrays_of(file) as old:  # another evaluation's, or a damaged one, is replaced
    if str(old["fingerprint"]) == fingerprint and np.array_equal(old["name"], name):
      kept = dict(zip(old["step"].tolist(), old[unit], strict=True))
  kept[step] = values
  steps = sorted(kept)
  arrays: dict[str, Any] = {"step": np.array(steps), unit: np.stack([kept[s] for s in steps]), "name": name}
  arrays["fingerprint"] = np.array(fingerprint)
  save_atomically(file, lambda handle: np.savez_compressed(handle, **arrays))


# The programs are kept for the next checkpoint of the same experiment: likelihoods of a large network take minutes to
# trace and to compile.
_kept_for_one_experiment = functools.lru_cache(maxsize=1)


@_kept_for_one_experiment
def _losses(experiment: Experiment) -> Callable[..., jax.Array]:
  """Returns (params, key, total, more, batch) -> losses (B,), compiled. `more` holds further arguments of the loss."""
  loss, scaling = experiment.loss, experiment.scaling

  assert loss is not None

  def losses(params, key, total, more, batch):
    keys = example_keys(key, batch["index"])
    x, y = scaling.prepare(fold(keys, DATA), batch["image"]), experiment.given(batch)
    return loss(params, fold(keys, PROBE), x, batch["index"], total, train=False, y=y, **more)

  return devices.over_devices(losses, shared=4, name="the loss")


@_kept_for_one_experiment
def _right(experiment: Experiment) -> Callable[..., jax.Array]:
  """Returns (params, key, t, batch) -> whether the classifier is right about each example (B,), compiled."""
  model, scaling = experiment.classifier, experiment.scaling

  def right(params, key, t, batch):
    keys = example_keys(key, batch["index"])
    x = scaling.prepare(fold(keys, DATA), batch["image"])
    logits = model.at_time(params, fold(keys, PROBE), x, jnp.full(keys.shape, t))
    return jnp.argmax(logits, axis=1) == batch["label"]

  return devices.over_devices(right, shared=3, name="the classifier")


@_kept_for_one_experiment
def _likelihood(experiment: Experiment) -> tuple[Callable[..., jax.Array], Callable[..., tuple[jax.Array, ...]]]:
  """Returns two compiled functions.

  The first prepares images, (keys, image) -> (x, log-density of its noise to subtract (B,)). The second is
  (score, keys, x, y) -> (log-density or log-probability, evaluations, time reached), each (B,).
  """
  config, sde = experiment.config, experiment.sde
  # The likelihood is that of dequantized data, however the model was trained. The chain's is that of discrete images.
  truncated = config.eval.dequantization == "truncated_normal"
  uniform = config.eval.likelihood != "chain" and not truncated
  scaling = dataclasses.replace(experiment.scaling, uniform_dequantization=uniform)

  @jax.jit
  def prepare(keys, image):
    x = scaling.prepare(fold(keys, DATA), image)
    if not truncated:  # the Jacobian of uniform dequantization is in bits_per_dim
      return x, jnp.zeros(keys.shape)
    gap = 1 / (experiment.scaling.slope * (config.data.levels - 1))
    its = linear(sde, "Truncated-normal dequantization")
    return dequantize_by_truncated_normal(its, fold(keys, DATA), x, gap, config.eval.eps)

  if config.eval.likelihood == "ode":
    exact = make(ExactLikelihood, config, "eval", max_steps=config.sampling.max_steps)
    log_p = devices.over_devices(lambda score, batch: exact(sde, score, *batch), name="the likelihood")

    def by_ode(score, keys, x, y):
      found = log_p(score, (keys, x, y))
      return found.log_p, found.nfe.astype(jnp.float32), found.t

    return prepare, by_ode
  if config.eval.likelihood == "elbo":
    bound = make(EvidenceBound, config, "eval")
  else:
    bound = ChainBound(
      num_scales=config.model.num_scales, low=experiment.scaling.low, levels=config.data.levels,
      posterior_variance=config.sampling.posterior_variance,
    )  # fmt: skip
  run = devices.over_devices(lambda score, batch: bound(sde, bind(score, batch[2]), *batch[:2]), name="the likelihood")

  def by_bound(score, keys, x, y):
    constant = lambda value: jnp.full(x.shape[:1], value, jnp.float32)
    return run(score, (keys, x, y)), constant(bound.evaluations), constant(sde.T)

  return prepare, by_bound


def _over_batches(
  name: str,
  config: ConfigDict,
  source: data.Source,
  run: Callable[[dict], Any],
  cache: Path | None,
  prefix: str = "",
  shape: tuple[int, ...] = (),
) -> np.ndarray:
  """Runs `run` on all batches of `source` and returns the concatenated results. Pads all batches to the same size.

  With a folder `cache`, hosts take the batches in turn. They write their results there, and read results that already
  exist and have the `shape` of an example's result. Without `cache`, this host runs all batches.
  """
  readers = data.in_order(source, config.eval.batch_size, config.eval.num_examples)
  total = min(len(source), config.eval.num_examples or len(source))
  size = min(config.eval.batch_size, -(-total // devices.device_count()) * devices.device_count())
  files: list[Any] = [cache and cache / f"{prefix}batch_{i:06d}.npy" for i in range(len(readers))]
  results = {}
  with Bar(name, total, " examples") as bar:
    for i, read in enumerate(readers):
      others = cache and i % devices.host_count() != devices.host_index()
      n = min(config.eval.batch_size, total - i * config.eval.batch_size)
      if others or (cache and _kept(files[i], (n, *shape)) is not None):
        bar.show(min((i + 1) * config.eval.batch_size, total))
        continue
      batch = read()
      batch["index"] = np.arange(n, dtype=np.int32) + i * config.eval.batch_size
      batch = {k: np.concatenate([v, np.repeat(v[-1:], size - n, axis=0)]) for k, v in batch.items()}
      results[i] = np.asarray(run(batch))[:n]
      if cache:
        save_atomically(files[i], lambda handle, done=results[i]: np.save(handle, done))
      bar.step(min((i + 1) * config.eval.batch_size, total), total)
  if cache:
    devices.wait_for_all(f"{name} in {cache}")
  return np.concatenate([results[i] if i in results else read_array(file) for i, file in enumerate(files)])


def _kept(file: Path, shape: tuple[int, ...]) -> np.ndarray | None:
  """Returns the results that an earlier evaluation left in `file`, or None if there are none, or damaged ones."""
  if not file.exists():
    return None
  with contextlib.suppress(Exception):  # damaged files raise errors of every kind
    found = read_array(file)
    if found.shape == shape and found.dtype.kind in "fb":
      return found
  log.warning("%s is damaged; its batch is computed again.", file)
  return None


def _mean_and_error(name: str, values: np.ndarray) -> dict[str, float]:
  """Returns the mean of `values` and its standard error, which a single value does not have."""
  values = np.asarray(values, np.float64)
  found = {name: float(values.mean())}
  return found | ({f"{name}_error": float(values.std(ddof=1) / math.sqrt(len(values)))} if len(values) > 1 else {})
