"""Every setting of a run, its default, and what follows from what.

A config file returns `default_config()` with what differs. Section and key names are those of the official code, so its
configs and overrides mean the same here. Keys that follow from others (from the SDE, mostly) are placeholders until
`resolve` fills those that were not set.
"""

import contextlib
import difflib
import functools
import math
import os
import pathlib
import re
import runpy
from collections.abc import Callable
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from score_sde.sde import SDE, VE, VP, CosineVP, LinearSDE, RectifiedFlow, SubVP


class BadInput(ValueError):
  """Something the user gave cannot work. The message names it, says what is accepted and what to do."""


@contextlib.contextmanager
def as_bad_input():
  """Turns the ValueErrors of the library's parts into BadInput, while a run is being set up."""
  try:
    yield
  except BadInput:
    raise
  except ValueError as error:
    raise BadInput(str(error)) from error


def default_config() -> ConfigDict:
  """The base of every config: all keys there are. Placeholders are marked with what they follow."""
  config = ConfigDict()
  config.seed = 42

  data = config.data = ConfigDict()
  data.dataset = "digits"  # digits, a toy, idx, folder, or a tensorflow-datasets name (official ones included)
  data.path = ""  # of an image folder or of IDX files; for tensorflow-datasets its data_dir, "" its default
  data.category = ""  # of LSUN: "bedroom", "church_outdoor", ...
  data.image_size = 32
  data.num_channels = 3
  data.levels = placeholder(int)  # gray levels; follows dataset: 17 for digits, 256
  data.random_flip = True
  data.centered = placeholder(bool)  # data in [-1, 1], not [0, 1]; follows the SDE: False for VE
  data.uniform_dequantization = False
  data.on_corrupt = "error"  # an unreadable image in a folder: "error" or "skip"
  data.cache_gib = 4.0  # image folders up to this size are decoded once into memory

  model = config.model = ConfigDict()
  model.name = "ncsnpp"
  model.parameterization = placeholder(str)  # score, noise, data, velocity, flow, edm; follows the SDE
  model.conditioning = placeholder(str)  # sigma, log_sigma or time, for continuous models; follows the SDE
  model.sigma_data = 0.5  # standard deviation of the data, for edm
  model.sigma_min = 0.01  # VE
  model.sigma_max = 50.0  # VE
  model.beta_min = 0.1  # VP, sub-VP
  model.beta_max = 20.0  # VP, sub-VP
  model.cosine_s = 0.008  # cosine VP
  model.delta = 1e-3  # cosine VP, rectified flow: time ends at 1 - delta, before all signal is gone
  model.num_scales = 1000  # noise levels of a discrete model; steps of the published samplers
  model.ema_rate = 0.999
  model.ema_warmup = False  # rate min(ema_rate, (1 + step) / (10 + step)): a short run forgets where it began
  model.energy = "none"  # the score as gradient of an energy, by a scalar head: none, inner, norm, sum
  model.dtype = "float32"  # of convolutions and products: float32 or bfloat16
  model.nf = 128
  model.ch_mult = (1, 2, 2, 2)
  model.num_res_blocks = 4
  model.attn_resolutions = (16,)
  model.attn_every_block = False  # ddpm: attend after every block on the way up, not only the last
  model.attention_type = "ddpm"  # the only one
  model.head_dim = placeholder(int)  # channels a head of attention; unset: one head
  model.conv_size = 3  # the only one
  model.dropout = 0.1
  model.nonlinearity = "swish"
  model.normalization = placeholder(str)  # GroupNorm or InstanceNorm++: the network's own, follows model.name
  model.resblock_type = "biggan"
  model.embedding_type = placeholder(str)  # fourier or positional; follows the SDE
  model.fourier_scale = 16.0
  model.conditional = True
  model.fir = True
  model.fir_kernel = (1, 3, 3, 1)
  model.resamp_with_conv = True
  model.progressive = "none"
  model.progressive_input = "residual"
  model.progressive_combine = "sum"
  model.skip_rescale = True
  model.init_scale = 0.0
  model.scale_by_sigma = placeholder(bool)  # ncsnpp, ncsnv2: True where they predict the score; else False
  model.interpolation = "bilinear"  # ncsnv2: of its fusion blocks, bilinear or nearest_neighbor
  model.reference = "jax"  # ncsnv2: which published implementation, jax or pytorch
  model.num_heads = 6  # dit
  model.patch_size = 2  # dit
  model.num_classes = 0  # of a class-conditional network
  model.label_dropout = 0.1  # examples trained without their class, for classifier-free guidance
  model.blocks_per_group = 4  # wideresnet
  model.channel_multiplier = 10  # wideresnet
  model.remat = False  # keep no activations within blocks: slower, much less memory

  optim = config.optim = ConfigDict()
  optim.optimizer = "Adam"
  optim.lr = 2e-4
  optim.beta1 = 0.9
  optim.beta2 = 0.999
  optim.eps = 1e-8
  optim.amsgrad = False
  optim.weight_decay = 0.0
  optim.warmup = 5000
  optim.grad_clip = 1.0  # of the global norm; negative for none
  optim.decay = "none"  # of the learning rate after warm-up: none or cosine

  training = config.training = ConfigDict()
  training.task = "score"  # or "classifier": of noisy data, for guidance
  training.sde = "vesde"  # vesde, vpsde, subvpsde, cosine, rectified_flow, or FILE.py:FUNCTION(config.model) -> SDE
  training.continuous = True
  training.batch_size = 128
  training.n_iters = 1300001
  training.n_jitted_steps = 5
  training.accumulation = 1  # parts that a device's share of the batch is worked through in, to save memory
  training.parallelism = "pmap"  # a copy of the state on each device; or fsdp: state and gradients split among them
  training.fsdp_devices = 0  # that share one copy under fsdp; 0: all
  training.data_timeout = 600.0  # seconds without a batch after which the run ends
  training.log_freq = 50
  training.eval_freq = 100
  training.snapshot_freq = 50000
  training.snapshot_freq_for_preemption = 10000
  training.snapshot_sampling = True
  # dsm, esm, ism, ssm, ssm_vr, fd_ssm (denoising, explicit, implicit, sliced, its variance reduced, by finite
  # differences); follows the SDE: dsm where its kernel is known, else ssm_vr on simulated paths
  training.objective = placeholder(str)
  training.probe = "rademacher"  # of sliced score matching: rademacher or gaussian
  training.num_probes = 1
  training.fd_step = 0.05  # of fd_ssm, in units of sigma
  training.path_steps = 128  # Euler-Maruyama steps of a simulated path
  training.likelihood_weighting = False
  training.importance_sampling = False  # of t, for likelihood weighting
  training.weighting = placeholder(str)  # simple, likelihood, edm, flow, power, min_snr; follows likelihood_weighting
  training.weighting_power = 0.0  # of power: sigma^power times the squared error of the noise; -2 weights the score's
  training.snr_gamma = 5.0  # of min_snr
  training.time_sampling = placeholder(str)  # uniform, importance, lognormal, single; follows importance_sampling
  training.single_sigma = 0.1  # sigma / alpha of the one noise level, for single
  training.p_mean = -1.2  # of log(sigma / alpha), for lognormal times
  training.p_std = 1.2
  training.stratified = False  # spread the times of a batch evenly
  training.reduce_mean = placeholder(bool)  # mean over dimensions, not half their sum; follows the SDE
  training.eps = 1e-5  # smallest time of a continuous model
  training.fid_samples = 0  # drawn at each snapshot for its FID in eval.features; 0: none
  training.fid_steps = 50  # of DPM-Solver++, for these
  training.final_report = False  # evaluate and draw samples when training ends

  sampling = config.sampling = ConfigDict()
  # pc; ncsn and ddpm, whole samplers of these papers; ode, adaptive_sde; or for few steps ddim, dpm_solver,
  # dpm_solver_sde, unipc, heun
  sampling.method = "pc"
  sampling.predictor = placeholder(str)  # follows the SDE
  sampling.corrector = placeholder(str)  # follows the SDE
  sampling.snr = 0.16
  sampling.n_steps_each = 1
  sampling.norms = "sample"  # Langevin's norms, and the ODE's error: of each "sample", or of the "batch" (as the paper)
  sampling.ald_step = "code"  # of ald: "paper" takes half the step, as NCSN's Algorithm 1 has it
  sampling.posterior_variance = placeholder(bool)  # of ancestral sampling; unset: False for VP (beta), else True
  sampling.noise_removal = True
  sampling.probability_flow = False
  sampling.grid = "uniform"  # official, uniform, log_snr, karras, quadratic
  sampling.eta = 0.0  # of ddim: 0 is the ODE, 1 ancestral sampling
  sampling.churn = 0.0  # of heun: noise added over all steps (EDM's S_churn, S_min, S_max, S_noise)
  sampling.churn_min = 0.0
  sampling.churn_max = float("inf")
  sampling.churn_noise = 1.0
  sampling.num_steps = placeholder(int)  # follows model.num_scales
  sampling.eps = placeholder(float)  # where time ends; follows the SDE
  sampling.rtol = 1e-5  # of the ODE
  sampling.atol = 1e-5
  sampling.solver = "dopri5"
  sampling.temperature = 1.0  # of the ODE: scales the noise it starts from
  sampling.sde_rtol = 0.05  # of adaptive_sde
  sampling.sde_atol = placeholder(float)  # follows data.centered: one of 256 gray levels
  sampling.max_steps = 4096
  sampling.num_samples = 64

  evaluation = config.eval = ConfigDict()
  evaluation.batch_size = 1024
  evaluation.checkpoint = "latest"  # or "best", by the FID while training, or a step; of --mode=sample, too
  evaluation.begin_ckpt = placeholder(int)  # first and last snapshot, in place of that one checkpoint
  evaluation.end_ckpt = placeholder(int)
  evaluation.wait_minutes = 0.0  # for each snapshot that a training has yet to write
  evaluation.report = "report"  # name of the reports; another evaluation of the run keeps another
  evaluation.enable_loss = True
  evaluation.enable_bpd = False
  evaluation.enable_sampling = False
  evaluation.num_samples = 50000
  evaluation.quantization = "truncate"  # of samples to 256 gray levels: truncate, as the official code, or round
  evaluation.save_samples = "npz"  # npz, png, array_record, none
  evaluation.features = ""  # of samples' metrics: "inception", or the workdir of a classifier; unset: none
  evaluation.inception_path = ""  # weights of inception; unset: downloaded once
  evaluation.reference = ""  # statistics (.npz) to compare with; unset: those of the training images
  evaluation.fidelity_engine = "own"  # what measures samples: own, or torch-fidelity (pip install -e '.[fidelity]')
  evaluation.num_features = 10000  # kept of each set, for KID, precision and recall
  evaluation.bpd_dataset = "test"
  evaluation.num_examples = placeholder(int)  # score this many examples; unset: all
  evaluation.num_repeats = 1  # dequantizations an example
  # ode: exact, of the probability-flow ODE; bounds: elbo, of the reverse-time SDE; chain, of a discrete model (DDPM)
  evaluation.likelihood = "ode"
  evaluation.num_times = 64  # noise levels an example, for elbo
  evaluation.probe = "rademacher"
  evaluation.num_probes = 1
  evaluation.rtol = 1e-5
  evaluation.atol = 1e-5
  evaluation.eps = 1e-5

  guidance = config.guidance = ConfigDict()  # of --mode=sample; of eval, for a class
  # class; inpaint, colorize, super_resolution, deblur, motion_deblur, fourier, projections, phase_retrieval, jpeg;
  # edit, interpolate
  guidance.task = "none"
  # class: classifier or classifier_free; measurements: pigdm, tmpd, dps, replacement, projection, ddrm; follows task
  guidance.method = placeholder(str)
  guidance.scale = 1.0  # of guidance: 0 is none, 1 Bayes' rule
  guidance.label = placeholder(int)  # the class; unset: all in turn
  guidance.classifier = ""  # workdir of the classifier, for method classifier
  guidance.low = 0.0  # sigma / alpha between which classifier_free guides
  guidance.high = float("inf")
  guidance.input = ""  # folder of images, or one image; unset: the first test examples
  guidance.num_inputs = 4
  guidance.samples_per_input = 4
  guidance.noise = 0.0  # standard deviation of the measurement's, for images in [0, 1]
  # what inpaint lacks: left, right, top, bottom, center, random, or a black and white PNG
  guidance.mask = "right"
  guidance.fraction = 0.3  # measured, of a random mask, fourier, projections
  guidance.factor = 4  # super_resolution
  guidance.kernel = "average"  # super_resolution: average or bicubic
  guidance.blur = 2.0  # deblur: standard deviation in pixels
  guidance.length = 9  # motion_deblur: pixels
  guidance.quality = 10  # jpeg: 1 to 100
  guidance.prior_variance = placeholder(float)  # of pigdm and dps; follows data.centered: 1, or 1/4
  guidance.covariance = "diagonal"  # of tmpd: diagonal, or full (conjugate gradients)
  guidance.iterations = 20  # of tmpd's conjugate gradients
  guidance.paper_steps = placeholder(int)  # of dps: its published step, in as many steps equal in time
  guidance.strength = 1.0  # of projection
  guidance.eta = 0.85  # of ddrm
  guidance.eta_b = 1.0
  guidance.t0 = 0.5  # edit: noise is added up to this time
  return config.lock()


# What follows from the SDE where the config leaves it open. Song et al. 2021, Appendices C, D and G.
_FOLLOWS = {
  "vesde": {
    "data.centered": False,
    "model.parameterization": "score",
    "model.conditioning": "sigma",
    "model.embedding_type": "fourier",
    "training.reduce_mean": False,
    "sampling.predictor": "reverse_diffusion",
    "sampling.corrector": "langevin",
    "sampling.eps": 1e-5,
  },
  "vpsde": {
    "data.centered": True,
    "model.parameterization": "noise",
    "model.conditioning": "time",
    "model.embedding_type": "positional",
    "training.reduce_mean": True,
    "sampling.predictor": "euler_maruyama",
    "sampling.corrector": "none",
    "sampling.eps": 1e-3,
  },
}
_FOLLOWS["subvpsde"] = _FOLLOWS["cosine"] = _FOLLOWS["vpsde"]
_FOLLOWS["rectified_flow"] = _FOLLOWS["vpsde"] | {"model.parameterization": "flow", "training.weighting": "flow"}
# The two kinds of a user's own: with a closed-form kernel and without.
_LINEAR = _FOLLOWS["vpsde"] | {"model.conditioning": "log_sigma"}
_SIMULATED = _FOLLOWS["vpsde"] | {
  "model.conditioning": "sigma",
  "model.embedding_type": "fourier",
  "training.objective": "ssm_vr",
}

SDES = {
  "vesde": lambda model: VE(model.sigma_min, model.sigma_max),
  "vpsde": lambda model: VP(model.beta_min, model.beta_max),
  "subvpsde": lambda model: SubVP(model.beta_min, model.beta_max),
  "cosine": lambda model: CosineVP(model.cosine_s, model.delta),
  "rectified_flow": lambda model: RectifiedFlow(model.delta),
}

_NAMES = {
  "vesde": "VE SDE",
  "vpsde": "VP SDE",
  "subvpsde": "sub-VP SDE",
  "cosine": "cosine VP SDE",
  "rectified_flow": "rectified flow",
}

CLASS_METHODS = ("classifier", "classifier_free")
SCORE_METHODS = ("pigdm", "tmpd", "dps")  # their scores hold derivatives of the network
CONSTRAINTS = ("replacement", "projection", "ddrm")
LINEAR_TASKS = (
  "inpaint",
  "colorize",
  "super_resolution",
  "deblur",
  "motion_deblur",
  "fourier",
  "projections",
)
NONLINEAR_TASKS = ("phase_retrieval", "jpeg")
EDITING_TASKS = ("edit", "interpolate")

_CHOICES = {
  "training.task": ("score", "classifier"),
  "guidance.task": ("none", "class", *LINEAR_TASKS, *NONLINEAR_TASKS, *EDITING_TASKS),
  "guidance.kernel": ("average", "bicubic"),
  "guidance.covariance": ("diagonal", "full"),
  "data.on_corrupt": ("error", "skip"),
  "model.parameterization": ("score", "noise", "data", "velocity", "flow", "edm"),
  "model.conditioning": ("sigma", "log_sigma", "time"),
  "model.embedding_type": ("fourier", "positional"),
  "model.dtype": ("float32", "bfloat16"),
  "model.normalization": ("GroupNorm", "InstanceNorm++", "LayerNorm"),
  "model.attention_type": ("ddpm",),
  "model.conv_size": (3,),
  "model.interpolation": ("bilinear", "nearest_neighbor"),
  "model.reference": ("jax", "pytorch"),
  "model.nonlinearity": ("elu", "relu", "lrelu", "swish"),
  "model.resblock_type": ("ddpm", "biggan"),
  "model.progressive": ("none", "output_skip", "residual"),
  "model.progressive_input": ("none", "input_skip", "residual"),
  "model.progressive_combine": ("sum", "cat"),
  "optim.optimizer": ("Adam",),
  "optim.decay": ("none", "cosine"),
  "eval.bpd_dataset": ("train", "test"),
  "eval.likelihood": ("ode", "elbo", "chain"),
  "training.parallelism": ("pmap", "fsdp"),
  "eval.quantization": ("truncate", "round"),
  "eval.save_samples": ("npz", "png", "array_record", "none"),
  "eval.fidelity_engine": ("own", "torch-fidelity"),
}

NORMALIZATIONS = {"ncsnpp": "GroupNorm", "ddpm": "GroupNorm", "ncsn": "InstanceNorm++", "ncsnv2": "InstanceNorm++"}

_POSITIVE = (
  "data.image_size", "data.num_channels", "model.sigma_data", "model.num_scales", "model.nf", "model.num_res_blocks",
  "model.num_heads", "model.patch_size",
  "training.num_probes", "training.fd_step", "training.path_steps", "training.snr_gamma", "training.single_sigma",
  "optim.lr", "training.batch_size", "training.n_iters", "training.n_jitted_steps", "training.log_freq",
  "training.eval_freq", "training.snapshot_freq", "training.snapshot_freq_for_preemption", "sampling.num_steps",
  "sampling.n_steps_each", "sampling.num_samples", "sampling.temperature", "sampling.rtol", "sampling.atol",
  "sampling.sde_rtol", "sampling.sde_atol", "eval.batch_size", "eval.num_samples", "eval.num_repeats",
  "eval.num_probes", "eval.num_features", "eval.num_times", "eval.rtol", "eval.atol", "training.fid_steps",
  "training.accumulation", "training.data_timeout",
  "model.blocks_per_group", "model.channel_multiplier",
  "guidance.num_inputs", "guidance.samples_per_input", "guidance.prior_variance", "guidance.iterations",
)  # fmt: skip


def _family(config: ConfigDict) -> tuple[str, str]:
  """The family of the network, such as "ncsnv2", and the norm that its layers have."""
  family = config.model.name.split("_")[0]
  return family, NORMALIZATIONS.get(family, "LayerNorm")


@functools.lru_cache
def _load(path: str, name: str) -> Callable[[ConfigDict], SDE]:
  """The function `name` of a Python file."""
  key = f"training.sde='{path}:{name}'"
  if not pathlib.Path(path).is_file():
    raise BadInput(f"{key}: there is no file {path!r}. Give FILE.py:FUNCTION, seen from {os.getcwd()}.")
  try:
    found = runpy.run_path(path)
  except Exception as error:  # a user's file may raise anything
    raise BadInput(f"{key}: {path} cannot be run: {type(error).__name__}: {error}") from error
  if not callable(found.get(name)):
    raise BadInput(f"{key}: {path} has no function {name!r} from config.model to an SDE.")
  return found[name]


def make_sde(config: ConfigDict) -> SDE:
  """The SDE of `config.training.sde`.

  Raises:
    BadInput: for an unknown name, or a user's file or function that does not give an SDE.
    ValueError: for parameters that the SDE refuses.
  """
  name = config.training.sde
  path, _, function = name.rpartition(":")  # "" without a colon
  if not path:
    choose("training.sde", name, tuple(SDES))
    return SDES[name](config.model)
  sde = _load(path, function)(config.model)
  if not isinstance(sde, SDE):
    raise BadInput(f"training.sde={name!r} gives a {type(sde).__name__}, not a score_sde.sde.SDE.")
  return sde


def sde_name(name: str) -> str:
  """How pictures and reports name the SDE of a config: a user's own by its function."""
  return _NAMES.get(name, name.rpartition(":")[2])


def _follows(config: ConfigDict, sde: SDE) -> dict[str, Any]:
  if config.training.sde in _FOLLOWS:
    return _FOLLOWS[config.training.sde]
  return _LINEAR if isinstance(sde, LinearSDE) else _SIMULATED


def get(config: ConfigDict, key: str) -> Any:
  """The value of a dotted key such as "model.nf"."""
  for name in key.split("."):
    config = config[name]
  return config


def _fill(config: ConfigDict, key: str, value: Any) -> None:
  section, name = key.split(".")
  if config[section][name] is None:
    config[section][name] = value


def choose(key: str, value: Any, accepted: tuple) -> None:
  """Raises BadInput unless `value`, given for `key`, is among `accepted`."""
  if value not in accepted:
    near = difflib.get_close_matches(str(value), [str(a) for a in accepted], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"{key}={value!r} is unknown; choose one of {', '.join(map(str, accepted))}.{hint}")


def resolve(config: ConfigDict) -> ConfigDict:
  """A locked copy of `config` with every placeholder filled and every value checked.

  Raises:
    BadInput: for a value that is not accepted, or a combination that cannot work.
  """
  config = ConfigDict(config).copy_and_resolve_references()
  with as_bad_input():
    sde = make_sde(config)
  if config.training.likelihood_weighting:
    _fill(config, "training.weighting", "likelihood")
  for key, value in _follows(config, sde).items():
    if key == "model.embedding_type" and (not config.training.continuous or config.model.name == "ddpm"):
      value = "positional"  # discrete models see the index of the noise level
    _fill(config, key, value)
  family, normalization = _family(config)
  scaled = config.model.parameterization == "score" and family in ("ncsnpp", "ncsnv2")
  _fill(config, "model.scale_by_sigma", scaled)
  _fill(config, "model.normalization", normalization)
  t = config.training
  _fill(config, "training.weighting", "simple")
  _fill(config, "training.objective", "dsm")
  _fill(config, "training.time_sampling", "importance" if t.importance_sampling else "uniform")
  if t.likelihood_weighting and t.weighting != "likelihood":
    raise BadInput(f"training.likelihood_weighting=True, but training.weighting={t.weighting!r}. Set one of them.")
  if t.importance_sampling and t.time_sampling != "importance":
    raise BadInput(f"training.importance_sampling=True, but training.time_sampling={t.time_sampling!r}. Set one.")
  _fill(config, "sampling.num_steps", config.model.num_scales)
  _fill(config, "sampling.sde_atol", (2 if config.data.centered else 1) / 256)
  _fill(config, "guidance.prior_variance", 1.0 if config.data.centered else 0.25)
  _fill(config, "data.levels", 17 if config.data.dataset == "digits" else 256)
  for key, accepted in _CHOICES.items():
    choose(key, get(config, key), accepted)
  for key in _POSITIVE:
    value = get(config, key)
    if not value > 0 or not math.isfinite(value):
      raise BadInput(f"{key} must be positive, got {value}.")
  for key in ("eval.wait_minutes", "training.fid_samples", "training.fsdp_devices"):
    if not 0 <= get(config, key) < math.inf:
      raise BadInput(f"{key} must be 0 or positive, got {get(config, key)}.")
  if not re.fullmatch(r"report\w*", config.eval.report):
    raise BadInput(
      f"eval.report={config.eval.report!r} must be 'report' with letters and digits after, e.g. report_ode."
    )
  _check_model(config)
  _resolve_guidance(config, sde)
  if config.eval.likelihood == "chain" and t.continuous:
    raise BadInput("eval.likelihood='chain' is of a model trained with training.continuous=False: use 'ode' or 'elbo'.")
  if config.eval.likelihood == "elbo" and not t.continuous:
    raise BadInput("eval.likelihood='elbo' needs training.continuous=True; a discrete model has 'chain', or 'ode'.")
  if config.eval.likelihood == "elbo" and not isinstance(sde, LinearSDE):
    raise BadInput(f"eval.likelihood='elbo' needs a linear SDE, not {type(sde).__name__}.")
  if config.eval.enable_bpd and sde.why_no_likelihood:
    raise BadInput(
      f"eval.enable_bpd=True, but {type(sde).__name__} has no likelihood: {sde.why_no_likelihood} Or use "
      "--config.eval.enable_bpd=False."
    )
  return config.lock()


def _resolve_guidance(config: ConfigDict, sde: SDE) -> None:
  """Fills in the method of the task, and refuses what does not go together."""
  g, networks_classes = config.guidance, config.model.num_classes
  if g.task == "none":
    return
  if config.training.task != "score":
    raise BadInput("guidance.task is of sampling, and training.task='classifier' draws no samples. Leave it at 'none'.")
  if not isinstance(sde, LinearSDE):
    raise BadInput(f"guidance.task={g.task!r} needs a linear SDE, not {type(sde).__name__}.")
  if g.task == "class":
    _fill(config, "guidance.method", "classifier_free" if networks_classes else "classifier")
    choose("guidance.method", g.method, CLASS_METHODS)
    if g.method == "classifier_free" and not networks_classes:
      raise BadInput(
        "guidance.method='classifier_free' needs a class-conditional network (model.num_classes). Use 'classifier', "
        "with guidance.classifier the workdir of one that --config=configs/classifier/*.py trained."
      )
    if g.method == "classifier" and networks_classes:
      raise BadInput(
        f"guidance.method='classifier' is for unconditional networks, and model.num_classes={networks_classes}. Use "
        "'classifier_free'."
      )
    if g.method == "classifier" and not g.classifier:
      raise BadInput("guidance.method='classifier' needs guidance.classifier, the workdir of a trained classifier.")
    if networks_classes and g.label is not None and not 0 <= g.label < networks_classes:
      raise BadInput(f"guidance.label={g.label} is no class: there are {networks_classes}, from 0.")
    return
  if g.method is not None and g.task in EDITING_TASKS:
    raise BadInput(f"guidance.task={g.task!r} has no guidance.method. Leave it unset.")
  if networks_classes:
    raise BadInput(
      f"guidance.task={g.task!r} needs an unconditional network, and model.num_classes={networks_classes}."
    )
  if g.task in EDITING_TASKS:
    if not 0 < g.t0 <= sde.T:
      raise BadInput(f"guidance.t0 must lie in (0, {sde.T}], got {g.t0}.")
    return
  linear = g.task in LINEAR_TASKS
  _fill(config, "guidance.method", "pigdm" if linear else "dps")
  choose("guidance.method", g.method, SCORE_METHODS + CONSTRAINTS)
  if not linear and g.method != "dps":
    raise BadInput(f"guidance.task={g.task!r} is not linear: guidance.method={g.method!r} cannot invert it. Use 'dps'.")
  if not 0 <= g.noise < math.inf:
    raise BadInput(f"guidance.noise must not be negative, got {g.noise}.")


def _check_model(config: ConfigDict) -> None:
  classifier = config.training.task == "classifier"
  if classifier != (config.model.name == "wideresnet"):
    raise BadInput(
      f"training.task={config.training.task!r} with model.name={config.model.name!r}: the classifier is 'wideresnet', "
      "and every other network a model of scores."
    )
  if classifier and not config.model.num_classes:
    raise BadInput("training.task='classifier' needs model.num_classes, the number of classes of the data.")
  if classifier and config.eval.enable_bpd:
    raise BadInput("training.task='classifier' has no likelihood: set --config.eval.enable_bpd=False.")
  model, continuous = config.model, config.training.continuous
  family, normalization = _family(config)
  if model.normalization != normalization:
    raise BadInput(
      f"model.normalization={model.normalization!r}, but model.name={model.name!r} has {normalization}. Leave it unset."
    )
  if family in ("ncsn", "ncsnv2") and (continuous or config.training.sde != "vesde"):
    raise BadInput(
      f"model.name={model.name!r} knows noise levels by their index in a discrete VE model: it needs "
      "--config.training.continuous=False and --config.training.sde=vesde."
    )
  if family == "ddpm" and model.embedding_type == "fourier":
    raise BadInput("model.name='ddpm' has model.embedding_type='positional' alone. Leave it unset, or use ncsnpp.")
  if model.scale_by_sigma and continuous and family == "ddpm":
    raise BadInput("model.scale_by_sigma=True of ddpm divides by the sigma of an index: set training.continuous=False.")
  if config.training.sde == "subvpsde" and not continuous:
    raise BadInput(
      "training.continuous=False has no discrete model for subvpsde. Use vesde (NCSN) or vpsde (DDPM), "
      "or --config.training.continuous=True."
    )
  if continuous and model.embedding_type == "positional" and model.conditioning == "sigma":
    raise BadInput(
      "model.embedding_type='positional' cannot tell noise levels apart: with model.conditioning='sigma' (the default "
      f"of continuous {config.training.sde}) labels are as small as {model.sigma_min}. Use "
      "--config.model.embedding_type=fourier, or --config.training.continuous=False."
    )
  if continuous and model.embedding_type == "fourier" and model.conditioning == "log_sigma":
    raise BadInput("model.embedding_type='fourier' takes the log itself: use --config.model.conditioning=sigma.")
  if not continuous and model.embedding_type == "fourier":
    raise BadInput(
      "model.embedding_type='fourier' takes the log of a noise level, and a discrete model sees its index, which "
      "starts at 0. Use --config.model.embedding_type=positional, or --config.training.continuous=True."
    )
  if model.scale_by_sigma and model.parameterization != "score":
    raise BadInput(
      f"model.scale_by_sigma=True divides the output by sigma, which turns it into a score, but "
      f"model.parameterization={model.parameterization!r}. Use --config.model.scale_by_sigma=False."
    )
  if model.scale_by_sigma and continuous and model.embedding_type == "positional":
    raise BadInput("model.scale_by_sigma=True needs model.embedding_type='fourier' in a continuous model.")
  for name in ("dropout", "ema_rate", "label_dropout"):
    if not 0 <= model[name] < 1:
      raise BadInput(f"model.{name} must lie in [0, 1), got {model[name]}.")
  if model.num_classes < 0:
    raise BadInput(f"model.num_classes must be 0 (none) or positive, got {model.num_classes}.")


def unknown_key(config: ConfigDict, key: str) -> str:
  """One line about a `key` (dotted) that no config has: the ones there are, the closest first."""
  section, _, name = key.rpartition(".")
  try:
    known = sorted(get(config, section) if section else config)
  except (KeyError, TypeError):
    section, name, known = "", key.split(".")[0], sorted(config)
  near = difflib.get_close_matches(name, known, n=1)
  hint = f" Did you mean {section + '.' if section else ''}{near[0]}?" if near else ""
  return f"config has no key {key!r}.{hint} Keys of {section or 'config'}: {', '.join(known)}."


def as_dict(config: ConfigDict) -> dict[str, Any]:
  """Plain nested dict, for JSON."""
  return {k: as_dict(v) if isinstance(v, ConfigDict) else v for k, v in config.items()}


def signature(config: ConfigDict) -> dict[str, Any]:
  """What a checkpoint belongs to: the model, the SDE, and how the data is scaled, as flat {key: value}."""
  # Part of the SDE, where it has them.
  elsewhere = ("sigma_min", "sigma_max", "beta_min", "beta_max", "cosine_s", "delta")
  free = (
    "dropout",
    "label_dropout",
    "ema_rate",
    "ema_warmup",
    "dtype",
    "init_scale",
    "remat",
  )  # may change from one run to the next
  keys = [f"model.{k}" for k in config.model if k not in elsewhere + free]
  keys += ["training.sde", "training.continuous", "data.centered", "data.image_size", "data.num_channels"]
  values = {key: get(config, key) for key in keys}
  values["the SDE"] = str(make_sde(config))
  return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
