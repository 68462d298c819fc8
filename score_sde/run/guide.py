"""Conditional generation with a trained model, as set in config.guidance: `--mode=sample` and `--mode=eval`."""

import dataclasses
import difflib
import functools
import logging
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from PIL import Image

from score_sde import guidance
from score_sde.batch import example_keys, expand, fold, normal
from score_sde.guidance import Autoguidance, ByClassifier, ClassifierFree, condition_on, operators, put_in
from score_sde.guidance.nonlinear import PhaseRetrieval, Quantized
from score_sde.likelihood import decode, encode, interpolate
from score_sde.run import checkpoints, data, devices
from score_sde.run import evaluate as evaluation
from score_sde.run.classifiers import load_classifier
from score_sde.run.config import (
  AUTOGUIDANCE,
  CONSTRAINTS,
  GIVEN_TASKS,
  LINEAR_TASKS,
  BadInput,
  as_bad_input,
  make,
  names_of,
  sde_name,
  signature,
)
from score_sde.run.config.checks import check_label
from score_sde.run.data.files import as_shown
from score_sde.run.experiment import Experiment, Params, build
from score_sde.run.report import page, pictures
from score_sde.run.report.progress import Bar
from score_sde.run.storage import path_of
from score_sde.run.teacher import find_model
from score_sde.run.workdir import all_class_names, class_names, recalled
from score_sde.sampling import AdaptiveODE
from score_sde.sde import linear

log = logging.getLogger(__name__)

# Streams of the run's key.
MEASURE, DRAW = range(2)

# Images per pair of inputs, both ends included, for guidance.task=interpolate.
BETWEEN = 9


def sample(config: ConfigDict, workdir: str) -> None:
  """Runs `run.py --mode=sample`: draws samples of a checkpoint in `workdir`, conditioned by config.guidance.

  Without guidance, or guided to a class, see `evaluation.sample`. Every other task writes `guided/NAME.png` per input,
  guided.png with all of them, and guided.npz ("inputs", "measurements", "samples", "finite"). report.html shows them.

  Raises:
    BadInput: if the config or the workdir is wrong. This comes before sampling.
    SolvesFailed: if all images failed, after the files are written.
    Interrupted: after a signal to stop.
  """
  config = _with_label(recalled(config, workdir), workdir)
  experiment = build(config)
  if experiment.config.guidance.method == AUTOGUIDANCE:
    evaluation.sample(config, workdir, with_weak(experiment, workdir))
  elif experiment.config.guidance.task == "none":
    evaluation.sample(config, workdir, experiment)
  elif experiment.config.guidance.task in GIVEN_TASKS:
    evaluation.sample(config, workdir, with_class(experiment))
  elif not data.is_image(experiment.config):
    raise BadInput(f"guidance.task={experiment.config.guidance.task!r} needs images, not {config.data.dataset!r}.")
  else:
    _sample_inputs(experiment, workdir)
  if devices.is_first_host():
    page.refresh(path_of(workdir))


def evaluate(config: ConfigDict, workdir: str) -> None:
  """Runs `run.py --mode=eval`, see `evaluation.evaluate`. With guidance.task=class it evaluates the guided score."""
  config = _with_label(recalled(config, workdir), workdir)
  experiment = build(config)
  if experiment.config.guidance.method == AUTOGUIDANCE:
    experiment = with_weak(experiment, workdir)
  elif config.guidance.task in GIVEN_TASKS:
    experiment = with_class(experiment)
  evaluation.evaluate(config, workdir, experiment)
  if devices.is_first_host():
    page.refresh(path_of(workdir))


# --- a class ------------------------------------------------------------------------------------------------------


def _with_label(config: ConfigDict, workdir: str) -> ConfigDict:
  """Returns `config` with the number of the class in guidance.label, if that is a name.

  Names are those of the classifier's data, or of the data of the run in `workdir`.

  Raises:
    BadInput: if no class has that name.
  """
  name = config.guidance.label
  if name is None:
    return config
  folder = config.guidance.classifier or workdir
  names = all_class_names(path_of(folder))
  if not isinstance(name, str):
    if str(name) not in names:
      return config
    name = str(name)  # folders that are called 0, 1, 10, 11, ..., and flags, which take a number as such
  if name not in names and not (name.isdigit() and not names):
    known = ", ".join(map(repr, names[:20])) if names else "they have numbers from 0"
    near = difflib.get_close_matches(name, names, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"guidance.label={name!r} is no class of the data of {folder!r}: {known}.{hint}")
  config = ConfigDict(config).copy_and_resolve_references()
  with config.unlocked(), config.guidance.ignore_type():
    config.guidance.label = names.index(name) if names else int(name)
  return config


def with_class(experiment: Experiment) -> Experiment:
  """Returns the experiment with a score that is guided to classes.

  Raises:
    BadInput: if the classifier is missing, or was trained on other data or another SDE; or if the class does not exist.
  """
  config, g = experiment.config, experiment.config.guidance
  if g.method == "classifier_free":
    free = make(ClassifierFree, config, "guidance", sde=experiment.sde)
    return dataclasses.replace(experiment, guide=lambda score: condition_on(score, free))
  classifier, params = load_classifier(g.classifier, config)
  check_fits(classifier, config, g.classifier)
  logits = classifier.classifier.logits
  conditional = make(ByClassifier, config, "guidance", logits=logits)
  classes = classifier.config.model.num_classes
  check_label(g.label, classes, f"the classifier of {g.classifier!r} has")
  guide = lambda score: condition_on(score, conditional, params)
  names = tuple(class_names(path_of(g.classifier), classes))
  return dataclasses.replace(experiment, guide=guide, sampled_classes=classes, class_names=names)


def with_weak(experiment: Experiment, workdir: str) -> Experiment:
  """Returns the experiment with a score that the model of guidance.weak guides; by default one of `workdir` itself.

  Raises:
    BadInput: if that model is missing, or has another SDE or other data.
  """
  config, g = experiment.config, experiment.config.guidance
  key = "guidance.weak" if g.weak else "--workdir"
  found = find_model(key, g.weak or workdir, config, checkpoint=g.weak_checkpoint)
  weak = jax.tree_util.Partial(found.model.score, found.params)
  how = make(Autoguidance, config, "guidance", sde=experiment.sde)
  return dataclasses.replace(experiment, guide=lambda score: how.of(score, weak))


def check_fits(classifier: Experiment, config: ConfigDict, workdir: str) -> None:
  """Raises BadInput if the classifier trained in `workdir` has other data or another SDE than the model of `config`."""
  theirs, ours = signature(classifier.config), signature(config)
  keys = ("training.sde", "the SDE", "data.centered", "data.image_size", "data.num_channels", "data.mean", "data.std")
  of = lambda values, key: values.get(key, "unset")
  differ = "; ".join(
    f"{k} is {of(theirs, k)!r}, the model's {of(ours, k)!r}" for k in keys if of(theirs, k) != of(ours, k)
  )
  if differ:
    raise BadInput(
      f"The classifier of guidance.classifier={workdir!r} does not fit the model: {differ}. Train one under the same "
      "SDE and on images of the same size and scale."
    )


# --- measurements and editing -------------------------------------------------------------------------------------


def make_operator(config: ConfigDict, batch: int) -> Any:
  """Returns the measurement operator of config.guidance.task for `batch` images.

  Random masks, lines, signs and angles are drawn from config.seed, per image.

  Raises:
    BadInput: if a mask has the wrong size or values, or if the settings do not fit the images.
  """
  g, (*size, channels) = config.guidance, data.example_shape(config)
  shape, rng, size = (batch, *size, channels), np.random.default_rng(config.seed), (size[0], size[1])
  if g.task == "colorize" and channels != 3:
    raise BadInput(f"guidance.task='colorize' needs data.num_channels=3, images in colour; these have {channels}.")
  pool = {"average": operators.average_pool, "bicubic": operators.bicubic}[g.kernel]
  makers = {
    "inpaint": lambda: operators.mask(_known(g.mask, g.fraction, rng, (batch, *size, 1))),
    "colorize": lambda: operators.grayscale(batch),
    "super_resolution": lambda: pool(batch, size, g.factor),
    "deblur": lambda: operators.gaussian_blur(batch, size, g.blur),
    "motion_deblur": lambda: operators.motion_blur(rng.uniform(0, np.pi, batch), size, g.length),
    "fourier": lambda: operators.fourier_lines(rng, shape, g.fraction),
    "projections": lambda: operators.random_projections(rng, shape, g.fraction),
    "phase_retrieval": PhaseRetrieval,
    "jpeg": lambda: Quantized(g.quality, 2.0 if config.data.centered else 1.0),
  }
  with as_bad_input(names_of("guidance")):
    operator = makers[g.task]()
    if g.task in LINEAR_TASKS:
      operators.check_operator(operator, shape, jax.random.key(config.seed))
  return operator


def _known(name: str, fraction: float, rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
  """Returns a mask by name or from a file, (B, H, W, 1): 1 for known pixels, 0 for missing ones."""
  _, height, width, _ = shape
  known = np.ones(shape, np.float32)
  missing = {
    "left": np.s_[:, :, : width // 2],
    "right": np.s_[:, :, width // 2 :],
    "top": np.s_[:, : height // 2],
    "bottom": np.s_[:, height // 2 :],
    "center": np.s_[:, height // 4 : height - height // 4, width // 4 : width - width // 4],
  }
  if name in missing:
    known[missing[name]] = 0
    return known
  if name == "random":
    if not 0 < fraction < 1:
      raise BadInput(f"guidance.fraction={fraction} of a random mask must lie in (0, 1).")
    return (rng.random(shape) < fraction).astype(np.float32)
  try:
    with Image.open(name) as image:
      pixels = np.asarray(as_shown(image, 1))
  except OSError as error:
    names = ", ".join((*missing, "random"))
    raise BadInput(f"guidance.mask={name!r} is none of {names}, and no image that can be read.") from error
  if pixels.shape != (height, width):
    raise BadInput(
      f"guidance.mask={name!r} has {pixels.shape[0]} x {pixels.shape[1]} pixels; the model's images have "
      f"{height} x {width}. Resize it."
    )
  if not np.isin(pixels, (0, 255)).all():
    raise BadInput(
      f"guidance.mask={name!r} must be black (0, missing) and white (255, known) alone; it has values from "
      f"{pixels.min()} to {pixels.max()} between."
    )
  return np.broadcast_to((pixels[None, ..., None] > 0).astype(np.float32), shape)


def _inputs(config: ConfigDict) -> tuple[list[str], np.ndarray]:
  """Returns the names of the inputs, and the images (N, H, W, C), uint8."""
  g = config.guidance
  if g.input:
    found = data.read_inputs(config)
    return [name for name, _ in found], np.stack([image for _, image in found])
  source = data.load(config, "test")
  n = min(g.num_inputs, len(source))
  return [f"test_{i}" for i in range(n)], source.gather(np.arange(n))["image"]


def _scaled(experiment: Experiment, images: np.ndarray) -> jax.Array:
  """Returns images scaled for the model, without dequantization. Images from files have 256 levels."""
  levels = 256 if experiment.config.guidance.input else experiment.scaling.levels
  plain = dataclasses.replace(experiment.scaling, uniform_dequantization=False, levels=levels)
  return plain.prepare(None, jnp.asarray(images))


def score_of_posterior(experiment: Experiment, params: Params) -> Callable[..., jax.Array]:
  """Returns the model's score, conditioned on a measurement by guidance.method. Constraints leave it unchanged."""
  g, score = experiment.config.guidance, experiment.score(params)
  if g.method in CONSTRAINTS:
    return score
  return condition_on(score, make(guidance.METHODS[g.method], experiment.config, "guidance", sde=experiment.sde))


_METHOD_NAMES = {"pigdm": "ΠGDM", "tmpd": "TMPD", "dps": "DPS", "ddrm": "DDRM"}


def _sample_inputs(experiment: Experiment, workdir: str) -> None:
  config, g = experiment.config, experiment.config.guidance
  names, images = _inputs(config)
  if g.task == "interpolate" and len(images) < 2:
    raise BadInput("guidance.task='interpolate' needs two inputs or more; give a folder of them as guidance.input.")
  operator = None if g.task in ("edit", "interpolate") else make_operator(config, len(images))
  path = evaluation.open_workdir(workdir)
  with checkpoints.manager(workdir) as manager:
    chosen = evaluation.chosen_step(config.eval.checkpoint, workdir)
    step, params = evaluation.restore(manager, experiment, workdir, chosen)
  x, start = _scaled(experiment, images), time.monotonic()
  draw = {"edit": _edit, "interpolate": _interpolate}.get(g.task) or functools.partial(_measure_and_sample, operator)
  columns, samples, nfe, finite = draw(experiment, params, x)
  seconds = time.monotonic() - start
  if not devices.is_first_host():
    return
  rows = [{name: images[i] for name, images in columns.items()} for i in range(len(samples))]
  method = f" by {_METHOD_NAMES.get(g.method, g.method)}" if g.method else ""
  sampler = "" if g.method == "ddrm" else f"{evaluation.sampler_name(experiment)}, "
  title = (
    f"{data.name(config)} · {sde_name(config.training.sde, experiment.sde)} · step {step:,}\n"
    f"{g.task.replace('_', ' ')}{method}, {sampler}{nfe:.0f} evaluations, {seconds:.0f} s for {finite.size} images"
  )
  if not finite.all():
    title += f"\n{int((~finite).sum())} of {finite.size} failed (black)"
  arrays: dict[str, Any] = {"samples": evaluation.to_uint8(samples), "finite": finite}
  arrays["inputs"] = evaluation.to_uint8(_shown(experiment, x))
  if "measurement" in columns:
    arrays["measurements"] = evaluation.to_uint8(columns["measurement"])
  evaluation.keep_arrays(path, "guided.npz", config, step, arrays, ("guided.png", "guided"))
  for name, row in zip(names, rows, strict=False):
    pictures.posteriors(path / "guided" / f"{name}.png", [row], title)
  pictures.posteriors(path / "guided.png", rows, title)
  log.info("Wrote guided.png, guided.npz and %d pictures in guided/ to %s (%.1f s).", len(rows), path, seconds)
  if not finite.any():
    solves = config.sampling.method in ("ode", "adaptive_sde") or g.task == "interpolate"
    raise evaluation.SolvesFailed(
      f"All {finite.size} images failed: they are not finite"
      + (f", or their solves exceeded sampling.max_steps={config.sampling.max_steps}. Raise it" if solves else "")
      + ". Use more steps, or another sampler."
    )


def _shown(experiment: Experiment, x: Any) -> np.ndarray:
  """Returns x as images in [0, 1]. Values that are not finite become black."""
  return np.clip(np.nan_to_num(np.asarray(experiment.scaling.inverse(x)), posinf=0, neginf=0), 0, 1)


def _draw(experiment: Experiment, score, key: jax.Array, x: jax.Array, condition: Any = None, x_T: Any = None):
  """Returns guidance.samples_per_input samples per input, (N, S, ...), the mean nfe, and which are finite, (N, S)."""
  n, each = len(x), experiment.config.guidance.samples_per_input
  repeated = jax.tree.map(lambda a: jnp.repeat(a, each, axis=0), condition)
  with Bar(f"{n} x {each} samples", 1, " steps") as bar:
    out, info = experiment.draw(
      score, key, (n * each, *x.shape[1:]), condition=repeated, x_T=x_T, progress=bar.step
    )  # fmt: skip
  finite = np.asarray(info["finite"]).reshape(n, each)
  if not finite.all():
    log.warning("%d of %d samples are not finite.", int((~finite).sum()), finite.size)
  if condition is not None and hasattr(condition.operator, "put_in"):
    out = put_in(repeated, out)
  return out.reshape(n, each, *x.shape[1:]), float(np.mean(info["nfe"])), finite


def _measure_and_sample(operator: Any, experiment: Experiment, params: Params, x: jax.Array):
  config, g = experiment.config, experiment.config.guidance
  key = jax.random.key(config.seed)
  noise = g.noise / experiment.scaling.slope
  with as_bad_input(names_of("guidance")):
    measurement = operators.measure(
      example_keys(jax.random.fold_in(key, MEASURE), jnp.arange(len(x))), operator, x, noise
    )
  score = score_of_posterior(experiment, params)
  samples, nfe, finite = _draw(experiment, score, jax.random.fold_in(key, DRAW), x, measurement)
  samples = _shown(experiment, samples)
  columns = {"input": _shown(experiment, x), "measurement": _pictured(experiment, measurement, x)}
  return columns | _of_samples(samples, finite), samples, nfe, finite


def _of_samples(samples: np.ndarray, finite: np.ndarray) -> dict[str, np.ndarray]:
  """Returns columns: the first four samples per input, their mean and their standard deviation (white: 1/4 or more).

  Mean and standard deviation are those of the finite samples, `finite` (N, S).
  """
  shown = {f"sample {i + 1}": samples[:, i] for i in range(min(4, samples.shape[1]))}
  used = finite.reshape(*finite.shape, 1, 1, 1)
  count = np.maximum(used.sum(axis=1), 1)
  mean = samples.sum(axis=1, where=used) / count
  deviation = np.sqrt(((samples - mean[:, None]) ** 2).sum(axis=1, where=used) / count)
  spread = deviation.mean(axis=-1, keepdims=True)
  return shown | {"mean": mean, "std": np.broadcast_to(np.clip(4 * spread, 0, 1), samples[:, 0].shape)}


def _pictured(experiment: Experiment, measurement: operators.Measurement, x: jax.Array) -> np.ndarray:
  """Returns a measurement as images: for a linear operator the smallest x that fits it, with unknown pixels gray."""
  operator, y = measurement.operator, measurement.y
  if isinstance(operator, operators.LinearOperator):
    if isinstance(operator, operators.Subsampled) and operator.basis == "pixels":
      middle = experiment.scaling.forward(0.5)
      return _shown(experiment, jnp.where(operator.mask > 0, y, middle))
    return _shown(experiment, operator.pinv(y))
  y = np.asarray(y)
  if y.shape == x.shape:
    return _shown(experiment, y)
  strength = np.log1p(np.fft.fftshift(np.abs(y), axes=(1, 2)))
  return strength / strength.max(axis=(1, 2, 3), keepdims=True)


def _edit(experiment: Experiment, params: Params, x: jax.Array):
  """Edits by SDEdit: adds noise up to guidance.t0, then samples from there. Meng et al. 2022, Algorithm 2."""
  config, g, sde = experiment.config, experiment.config.guidance, experiment.sde
  key = jax.random.key(config.seed)
  repeated = jnp.repeat(x, g.samples_per_input, axis=0)
  keys = example_keys(jax.random.fold_in(key, MEASURE), jnp.arange(len(repeated)))
  mean, std = linear(sde, "guidance.task='edit'").marginal(repeated, jnp.full(len(repeated), g.t0))
  noisy = mean + expand(std, mean) * normal(fold(keys, 0), mean)
  samples, nfe, finite = _draw(experiment, experiment.score(params), jax.random.fold_in(key, DRAW), x, x_T=noisy)
  samples = _shown(experiment, samples)
  first = np.asarray(noisy[:: g.samples_per_input])
  low, high = (f(first, axis=(1, 2, 3), keepdims=True) for f in (np.min, np.max))
  columns = {"input": _shown(experiment, x), f"at t = {g.t0:g}": (first - low) / (high - low)}
  return columns | _of_samples(samples, finite), samples, nfe, finite


def _interpolate(experiment: Experiment, params: Params, x: jax.Array):
  """Interpolates between inputs 1 and 2, 2 and 3, ... along great circles between their latents.

  An image has failed if its solve did not finish, or that of one of the inputs it lies between.
  """
  s = experiment.config.sampling
  ode = AdaptiveODE(rtol=s.rtol, atol=s.atol, solver=s.solver, max_steps=s.max_steps)
  there_of = devices.over_devices(lambda score, x: encode(experiment.sde, score, x, ode=ode), name="the encoder")
  back_of = devices.over_devices(lambda score, x: decode(experiment.sde, score, x, ode=ode), name="the decoder")
  score = experiment.score(params)
  latent, there = there_of(score, x)
  path = interpolate(latent[:-1], latent[1:], jnp.linspace(0, 1, BETWEEN))
  y, back = back_of(score, path.reshape(-1, *x.shape[1:]))
  ends = there["finite"][:-1] & there["finite"][1:]
  finite = np.asarray(back["finite"].reshape(BETWEEN, -1) & ends).T
  if not finite.all():
    log.warning(
      "%d of %d images failed: a solve of the ODE exceeded sampling.max_steps=%d. They are black.",
      int((~finite).sum()), finite.size, s.max_steps,
    )  # fmt: skip
  images = _shown(experiment, jnp.moveaxis(y.reshape(path.shape), 0, 1)) * finite.reshape(*finite.shape, 1, 1, 1)
  columns = {"input": _shown(experiment, x[:-1])}
  columns |= {f"{i}/{BETWEEN - 1}": images[:, i] for i in range(BETWEEN)} | {"next": _shown(experiment, x[1:])}
  return columns, images, float(np.mean(there["nfe"]) + np.mean(back["nfe"])), finite
