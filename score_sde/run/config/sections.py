"""What a run can be told beside the options of the core's own objects: the rest of the keys of a config."""

import dataclasses

from score_sde.options import Options, Other, option
from score_sde.run.toys import TOYS
from score_sde.sampling import GRIDS

LINEAR_TASKS = ("inpaint", "colorize", "super_resolution", "deblur", "motion_deblur", "fourier", "projections")
NONLINEAR_TASKS = ("phase_retrieval", "jpeg")
EDITING_TASKS = ("edit", "interpolate")
CLASS_METHODS = ("classifier", "classifier_free")
SCORE_METHODS = ("pigdm", "tmpd", "dps")  # their scores hold derivatives of the network
CONSTRAINTS = ("replacement", "projection", "ddrm")

# Values of sampling.method whose steps sampling.grid and sampling.num_steps place.
STEPPING = Other(("ode", "adaptive_sde", "ncsn", "ddpm"))

_IMAGES = {"dataset": Other(tuple(TOYS))}
_FOLDERS = {"dataset": ("folder", "FFHQ", "CelebAHQ")}
_SAMPLED = ({"enable_sampling": ()}, {"training.fid_samples": ()})
_LIKELIHOOD = {"enable_bpd": ()}
_INPUTS = {"task": Other(("none", "class"))}


@dataclasses.dataclass(frozen=True)
class Data(Options):
  """config.data: which examples, and how they are shown to the model."""

  dataset: str = option(
    "digits",
    "digits, a toy, idx, folder, tfrecords, FILE.py:FUNCTION, or a name of tensorflow-datasets or the official code",
  )
  path: str = option(
    "", "of images, IDX files or TFRecords; for tensorflow-datasets its data_dir, unset its default",
    needs={"dataset": Other(("digits", *TOYS))},
  )  # fmt: skip
  category: str = option("", "of LSUN: bedroom, church_outdoor, ...", needs={"dataset": ("LSUN",)})
  image_size: int = option(32, "pixels per side", "[1, inf)", needs=_IMAGES)
  num_channels: int = option(3, "channels of an image", "[1, inf)", needs=_IMAGES)
  levels: int | None = option(None, "gray levels; follows dataset: 17 for digits, else 256", "[2, inf)", needs=_IMAGES)
  random_flip: bool = option(True, "mirror images at random in training", needs=_IMAGES)
  centered: bool | None = option(None, "show [-1, 1], not [0, 1]; follows the SDE: False for VE")
  uniform_dequantization: bool = option(False, "fill the gaps between gray levels with noise", needs=_IMAGES)
  on_corrupt: str = option("error", "for an unreadable image in a folder", choices=("error", "skip"), needs=_FOLDERS)
  cache_gib: float = option(
    4.0, "image folders up to this size are decoded once into memory", "[0, inf)", needs=_FOLDERS
  )


@dataclasses.dataclass(frozen=True)
class Model(Options):
  """config.model: which network, and what of it no network's own field says."""

  name: str = option("ncsnpp", "the network, or FILE.py:FUNCTION(config.model) -> a Flax module (x, t, y)")
  num_scales: int = option(1000, "noise levels of a discrete model; steps of the published samplers", "[1, inf)")
  ema_rate: float = option(0.999, "of the average of the parameters", "[0, 1)")
  ema_warmup: bool = option(False, "rate min(ema_rate, (1 + step) / (10 + step)): a short run forgets where it began")
  energy: str = option(
    "none", "the score as gradient of an energy, by a scalar head", choices=("none", "inner", "norm", "sum"),
    needs={"training.task": ("score",)},
  )  # fmt: skip
  dtype: str = option("float32", "of convolutions and products", choices=("float32", "bfloat16"))
  embedding_type: str | None = option(
    None, "how the noise level is embedded; follows the SDE", choices=("fourier", "positional")
  )
  scale_by_sigma: bool | None = option(
    None, "divide the output by the noise level; ncsnpp, ncsnv2: True where they predict the score, else False"
  )
  normalization: str | None = option(
    None, "the network's own; follows model.name", choices=("GroupNorm", "InstanceNorm++", "LayerNorm")
  )
  attention_type: str = option("ddpm", "the only one", choices=("ddpm",))
  conv_size: int = option(3, "the only one", choices=(3,))


@dataclasses.dataclass(frozen=True)
class Optim(Options):
  """config.optim: the optimizer."""

  optimizer: str = option("Adam", "the optimizer", choices=("Adam",))
  lr: float = option(2e-4, "learning rate after warm-up", "(0, inf)")
  beta1: float = option(0.9, "decay of the mean of gradients", "[0, 1)")
  beta2: float = option(0.999, "decay of the mean of their squares", "[0, 1)")
  eps: float = option(1e-8, "added to the root of that mean", "(0, inf)")
  amsgrad: bool = option(False, "divide by the largest mean so far")
  weight_decay: float = option(
    0.0, "decoupled decay of the parameters, per step in units of the learning rate", "[0, inf)"
  )
  warmup: int = option(5000, "steps over which the learning rate rises from 0", "[0, inf)")
  grad_clip: float = option(1.0, "largest global norm of the gradient; 0 or less: no limit", "(-inf, inf)")
  decay: str = option("none", "of the learning rate after warm-up", choices=("none", "cosine"))


@dataclasses.dataclass(frozen=True)
class Training(Options):
  """config.training: the run itself. The loss has its own keys here, see `losses.ScoreMatching`."""

  task: str = option(
    "score", "what is trained; a classifier is of noisy data, for guidance", choices=("score", "classifier")
  )
  sde: str = option("vesde", "vesde, vpsde, subvpsde, cosine, rectified_flow, or FILE.py:FUNCTION(config.model) -> SDE")
  continuous: bool = option(True, "a model of all times, not of a table of noise levels")
  batch_size: int = option(128, "examples per step, over all devices and hosts", "[1, inf)")
  n_iters: int = option(1300001, "steps", "[1, inf)")
  n_jitted_steps: int = option(5, "steps per dispatch", "[1, inf)")
  accumulation: int = option(1, "parts that a device's share of the batch is split into, to save memory", "[1, inf)")
  parallelism: str = option(
    "pmap", "a copy of the state on each device, or the state split among them", choices=("pmap", "fsdp")
  )
  fsdp_devices: int = option(0, "that share one copy under fsdp; 0: all", "[0, inf)", needs={"parallelism": ("fsdp",)})
  data_timeout: float = option(600.0, "seconds without a batch after which the run ends", "(0, inf)")
  log_freq: int = option(50, "steps between rows of the curves", "[1, inf)")
  eval_freq: int = option(100, "steps between losses of test examples", "[1, inf)")
  snapshot_freq: int = option(50000, "steps between checkpoints that are kept", "[1, inf)")
  snapshot_freq_for_preemption: int = option(
    10000, "steps between checkpoints of which the last two are kept", "[1, inf)"
  )
  snapshot_sampling: bool = option(True, "draw samples at each snapshot")
  likelihood_weighting: bool = option(False, "the same as weighting='likelihood'")
  importance_sampling: bool = option(False, "of t, for likelihood weighting", needs={"weighting": ("likelihood",)})
  fid_samples: int = option(0, "drawn at each snapshot for its FID in eval.features; 0: none", "[0, inf)")
  fid_steps: int = option(50, "of DPM-Solver++, for these", "[1, inf)", needs={"fid_samples": ()})
  final_report: bool = option(False, "evaluate and draw samples when training ends")


@dataclasses.dataclass(frozen=True)
class Sampling(Options):
  """config.sampling: which solver, on which steps. A solver has its own keys here, see `sampling`."""

  method: str = option(
    "pc",
    "pc (predictor and corrector); ncsn and ddpm, whole samplers of these papers; ode, adaptive_sde; for few steps "
    "ddim, dpm_solver, dpm_solver_sde, unipc, heun; or FILE.py:FUNCTION(config.sampling) -> Solver",
  )
  grid: str | None = option(
    None, "where the steps are; follows method: log_snr for few steps, else uniform", choices=GRIDS,
    needs=({"method": STEPPING}, {"guidance.method": ("ddrm",)}),
  )  # fmt: skip
  num_steps: int | None = option(
    None, "steps, the last one to sigma = 0 included; follows method: 20 for few steps, else model.num_scales",
    "[1, inf)",
    needs=({"method": STEPPING}, {"guidance.method": ("ddrm",)}),
  )  # fmt: skip
  eps: float | None = option(None, "time at which sampling ends; follows the SDE", "(0, inf)")
  num_samples: int = option(64, "drawn for a picture", "[1, inf)")


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
  """config.eval: what is measured of a checkpoint. Likelihoods have their own keys here."""

  batch_size: int = option(1024, "examples or samples at once", "[1, inf)")
  checkpoint: str = option("latest", "latest, best (by the FID while training), or a step; of --mode=sample, too")
  begin_ckpt: int | None = option(None, "first snapshot, in place of that one checkpoint", "[0, inf)")
  end_ckpt: int | None = option(None, "last snapshot", "[0, inf)")
  wait_minutes: float = option(0.0, "for each snapshot that a training has yet to write", "[0, inf)")
  report: str = option("report", "name of the reports; another evaluation of the run keeps another")
  enable_loss: bool = option(True, "measure the loss")
  enable_bpd: bool = option(False, "measure bits/dim")
  enable_sampling: bool = option(False, "draw samples, and measure them")
  num_samples: int = option(50000, "samples", "[1, inf)", needs={"enable_sampling": ()})
  quantization: str = option(
    "truncate", "of samples to 256 gray levels; truncate is the official code's", choices=("truncate", "round")
  )
  save_samples: str = option(
    "npz", "how samples are kept", choices=("npz", "png", "array_record", "none"), needs={"enable_sampling": ()}
  )
  features: str = option(
    "", "of samples' metrics: inception, or the workdir of a classifier; unset: none", needs=_SAMPLED
  )
  inception_path: str = option("", "weights of inception; unset: downloaded once", needs={"features": ("inception",)})
  reference: str = option(
    "", "statistics (.npz) to compare with; unset: those of the training images", needs={"features": ()}
  )
  metrics: str = option(
    "", "more metrics: FILE.py:FUNCTION(samples, test examples) -> {name: number}", needs={"enable_sampling": ()}
  )
  fidelity_engine: str = option(
    "own", "what measures samples (torch-fidelity: pip install -e '.[fidelity]')", choices=("own", "torch-fidelity"),
    needs={"enable_sampling": ()},
  )  # fmt: skip
  num_features: int = option(
    10000, "kept of each set, for KID, precision and recall", "[2, inf)", needs={"features": ()}
  )
  bpd_dataset: str = option("test", "split of losses and likelihoods", choices=("train", "test"))
  num_examples: int | None = option(None, "score this many examples; unset: all", "[1, inf)")
  num_repeats: int = option(1, "dequantizations per example", "[1, inf)", needs=_LIKELIHOOD)
  likelihood: str = option(
    "ode", "exact, of the probability-flow ODE; a bound of the reverse-time SDE; a bound of a discrete model (DDPM)",
    choices=("ode", "elbo", "chain"), needs=_LIKELIHOOD,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Guidance(Options):
  """config.guidance: what samples are conditioned on. Methods have their own keys here, see `guidance`."""

  task: str = option(
    "none", "what samples are conditioned on",
    choices=("none", "class", *LINEAR_TASKS, *NONLINEAR_TASKS, *EDITING_TASKS),
  )  # fmt: skip
  method: str | None = option(
    None,
    "class: classifier or classifier_free; measurements: pigdm, tmpd, dps, replacement, projection, ddrm; follows task",
    needs={"task": Other(("none",))},
  )  # fmt: skip
  label: int | None = option(
    None, "the class; unset: all in turn", "[0, inf)",
    needs=({"task": ("class",)}, {"model.num_classes": (), "training.task": ("score",)}),
  )  # fmt: skip
  classifier: str = option("", "workdir of the classifier", needs={"method": ("classifier",)})
  input: str = option("", "folder of images, or one image; unset: the first test examples", needs=_INPUTS)
  num_inputs: int = option(4, "images", "[1, inf)", needs=_INPUTS)
  samples_per_input: int = option(4, "samples for each", "[1, inf)", needs=_INPUTS)
  noise: float = option(
    0.0, "standard deviation of the measurement's noise, for images in [0, 1]", "[0, inf)",
    needs={"task": (*LINEAR_TASKS, *NONLINEAR_TASKS)},
  )  # fmt: skip
  mask: str = option(
    "right", "what inpaint lacks: left, right, top, bottom, center, random, or a black and white PNG",
    needs={"task": ("inpaint",)},
  )  # fmt: skip
  fraction: float = option(
    0.3, "share that is measured", "(0, 1]",
    needs=({"task": ("fourier", "projections")}, {"task": ("inpaint",), "mask": ("random",)}),
  )  # fmt: skip
  factor: int = option(4, "how many times smaller", "[2, inf)", needs={"task": ("super_resolution",)})
  kernel: str = option(
    "average", "of super_resolution", choices=("average", "bicubic"), needs={"task": ("super_resolution",)}
  )
  blur: float = option(2.0, "standard deviation in pixels", "(0, inf)", needs={"task": ("deblur",)})
  length: int = option(9, "pixels of motion", "[2, inf)", needs={"task": ("motion_deblur",)})
  quality: int = option(10, "of JPEG", "[1, 100]", needs={"task": ("jpeg",)})
  t0: float = option(0.5, "time up to which noise is added", "(0, inf)", needs={"task": ("edit",)})
