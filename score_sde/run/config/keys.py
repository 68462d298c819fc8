"""Every key of a config, and its default. Keys marked with what they follow are placeholders until `resolve`."""

import contextlib
import difflib
from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


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
  data.dataset = "digits"  # digits, a toy, idx, folder, tfrecords, or a name of tensorflow-datasets or the official
  data.path = ""  # of images, IDX files or TFRecords; for tensorflow-datasets its data_dir, "" its default
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


def get(config: ConfigDict, key: str) -> Any:
  """The value of a dotted key such as "model.nf"."""
  for name in key.split("."):
    config = config[name]
  return config


def choose(key: str, value: Any, accepted: tuple) -> None:
  """Raises BadInput unless `value`, given for `key`, is among `accepted`."""
  if value not in accepted:
    near = difflib.get_close_matches(str(value), [str(a) for a in accepted], n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    raise BadInput(f"{key}={value!r} is unknown; choose one of {', '.join(map(str, accepted))}.{hint}")


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
