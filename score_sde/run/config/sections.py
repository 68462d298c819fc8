"""Sections of a config: the keys that are not options of the core's own objects."""

import dataclasses
from typing import Any

from score_sde.options import Options, Other, option
from score_sde.run.toys import TOYS
from score_sde.sampling import GRIDS

LINEAR_TASKS = ("inpaint", "colorize", "super_resolution", "deblur", "motion_deblur", "fourier", "projections")
NONLINEAR_TASKS = ("phase_retrieval", "jpeg")
EDITING_TASKS = ("edit", "interpolate")
GIVEN_TASKS = ("class", "condition")  # tasks whose y the network or a classifier takes
CLASS_METHODS = ("classifier", "classifier_free")
AUTOGUIDANCE = "autoguidance"
SCORE_METHODS = ("pigdm", "tmpd", "dps")  # their scores contain derivatives of the network
CONSTRAINTS = ("replacement", "projection", "ddrm")

# Values of sampling.method that read sampling.grid and sampling.num_steps.
STEPPING = Other(("ode", "adaptive_sde", "ncsn", "ddpm"))


def trains_paths(training: Any) -> bool:
  """Returns whether the network is a consistency function, so that it gives the end of a path and no score."""
  return training.task == "consistency" and training.objective != "progressive"


def distills_progressively(training: Any) -> bool:
  """Returns whether the network is a score model whose training halves its steps."""
  return training.task == "consistency" and training.objective == "progressive"


def height_and_width(data: Any) -> tuple[int, int]:
  """Returns (height, width) of the images of config.data, whose image_size may be one number."""
  size = data.image_size
  height, width = (size, size) if isinstance(size, int) else size
  return int(height), int(width)


_LEVELS = {"dataset": Other(tuple(TOYS))}
_IMAGES = {"dataset": Other((*TOYS, "array"))}
_FOLDERS = {"dataset": ("folder", "FFHQ", "CelebAHQ")}
_ARRAYS = {"dataset": ("array",)}
_SAMPLED = ({"enable_sampling": ()}, {"training.fid_samples": ()})
_LIKELIHOOD = {"enable_bpd": ()}
_INPUTS = {"task": Other(("none", *GIVEN_TASKS))}


@dataclasses.dataclass(frozen=True)
class Data(Options):
  """config.data: the data set, and the scaling of its examples for the model."""

  dataset: str = option(
    "digits",
    "digits, a toy, idx, folder, array, tfrecords, FILE.py:FUNCTION, or a name of tensorflow-datasets or the official "
    "code",
  )
  path: str = option(
    "", "path of images, arrays, IDX files or TFRecords; for tensorflow-datasets its data_dir (unset: its default)",
    needs={"dataset": Other(("digits", *TOYS))},
  )  # fmt: skip
  category: str = option("", "category of LSUN: bedroom, church_outdoor, ...", needs={"dataset": ("LSUN",)})
  test_path: str = option("", "file of the test split; unset: a tenth of data.path", needs=_ARRAYS)
  columns: tuple[str, ...] = option(
    (), "columns of a table that are the data, such as height,width; unset: all of numbers", needs=_ARRAYS
  )
  label_column: str = option("", "column of a table that has the classes", needs=_ARRAYS)
  standardize: bool = option(True, "scale the channels of floats to mean 0 and standard deviation 1", needs=_ARRAYS)
  condition: str = option(
    "", "conditions of the network: those of an array file, if it has any; none; or FILE.py:FUNCTION(examples)"
  )
  image_size: Any = option(32, "pixels per side, or (height, width)", "[1, inf)", needs=_IMAGES)
  num_channels: int = option(3, "channels of an image", "[1, inf)", needs=_IMAGES)
  levels: int | None = option(
    None, "levels of integers; follows the data: 17 for digits, 65536 for uint16, else 256", "[2, inf)", needs=_LEVELS
  )
  random_flip: bool | None = option(
    None, "flip images left to right at random in training; follows the data: True for images of up to 256 gray levels"
  )
  centered: bool | None = option(None, "scale data to [-1, 1], not [0, 1]; follows the SDE: False for VE")
  uniform_dequantization: bool = option(False, "fill the gaps between levels with noise", needs=_LEVELS)
  resize: str = option(
    "lanczos", "how images get their size: by Lanczos' filter, by areas' means, cropped, padded, or cropped at random "
    "in training", choices=("lanczos", "area", "crop", "pad", "random_crop"), needs=_IMAGES,
  )  # fmt: skip
  background: str = option("white", "colour of transparent parts and of padding", needs=_IMAGES)
  on_corrupt: str = option(
    "error", "action for an unreadable image of a folder", choices=("error", "skip"), needs=_FOLDERS
  )
  accept_changes: bool = option(False, "go on in a workdir although the data are not those that its run began with")
  cache_gib: float = option(
    4.0, "folders up to this size (GiB) are read once into memory", "[0, inf)",
    needs={"dataset": (*_FOLDERS["dataset"], *_ARRAYS["dataset"])},
  )  # fmt: skip
  shape: tuple[int, ...] = option((), "shape of an example; follows the file", needs=_ARRAYS)
  mean: tuple[float, ...] = option((), "mean of each channel; follows the file", needs=_ARRAYS)
  std: tuple[float, ...] = option((), "standard deviation of each channel; follows the file", needs=_ARRAYS)
  condition_shape: tuple[int, ...] = option((), "shape of a condition; follows the data")
  condition_mean: tuple[float, ...] = option((), "mean of each channel of conditions; follows the file", needs=_ARRAYS)
  condition_std: tuple[float, ...] = option((), "their standard deviation; follows the file", needs=_ARRAYS)


@dataclasses.dataclass(frozen=True)
class Model(Options):
  """config.model: the network, and the settings that are no fields of a network."""

  name: str = option("ncsnpp", "the network, or FILE.py:FUNCTION(config.model) -> a Flax module (x, t, y)")
  num_scales: int = option(1000, "noise levels of a discrete model; steps of the published samplers", "[1, inf)")
  ema_rate: float = option(0.999, "decay rate of the moving average of the parameters", "[0, 1)")
  ema_warmup: bool = option(
    False, "use rate min(ema_rate, (1 + step) / (10 + step)), so that short runs forget the initial parameters"
  )
  ema_widths: tuple[float, ...] = option(
    (), "widths of averages from which python -m score_sde ema makes one of any width later, such as (0.05, 0.1)"
  )
  energy: str = option(
    "none", "scalar head of an energy, whose gradient is the score", choices=("none", "inner", "norm", "sum"),
    needs={"training.task": ("score",)},
  )  # fmt: skip
  dtype: str = option("float32", "type of convolutions and matrix products", choices=("float32", "bfloat16"))
  embedding_type: str | None = option(
    None, "embedding of the noise level; follows the SDE", choices=("fourier", "positional")
  )
  scale_by_sigma: bool | None = option(
    None, "divide the output by the noise level; follows model: True for ncsnpp and ncsnv2 that predict the score"
  )
  normalization: str | None = option(
    None, "norm of the network's layers; follows model.name", choices=("GroupNorm", "InstanceNorm++", "LayerNorm")
  )
  attention_type: str = option("ddpm", "type of attention", choices=("ddpm",))
  conv_size: int = option(3, "size of convolution kernels", choices=(3,))


@dataclasses.dataclass(frozen=True)
class Optim(Options):
  """config.optim: the optimizer."""

  optimizer: str = option("Adam", "the optimizer; RAdam (Liu et al. 2020) needs no warm-up", choices=("Adam", "RAdam"))
  lr: float = option(2e-4, "learning rate after warm-up", "(0, inf)")
  beta1: float = option(0.9, "decay of the running mean of gradients", "[0, 1)")
  beta2: float = option(0.999, "decay of the running mean of squared gradients", "[0, 1)")
  eps: float = option(1e-8, "added to the square root of the mean of squared gradients", "(0, inf)")
  amsgrad: bool = option(False, "use the largest mean of squared gradients so far", needs={"optimizer": ("Adam",)})
  weight_decay: float = option(
    0.0, "decoupled decay of the parameters, per step in units of the learning rate", "[0, inf)"
  )
  warmup: int = option(5000, "steps over which the learning rate rises from 0", "[0, inf)")
  grad_clip: float = option(1.0, "largest global norm of the gradient; 0 or less: no limit", "(-inf, inf)")
  decay: str = option("none", "decay of the learning rate after warm-up", choices=("none", "cosine"))


@dataclasses.dataclass(frozen=True)
class Training(Options):
  """config.training: the run. The section also has the keys of the loss, see `losses`."""

  task: str = option(
    "score", "train a score model, a consistency model (or progressive distillation), or a classifier of noisy data",
    choices=("score", "consistency", "classifier"),
  )  # fmt: skip
  teacher: str = option(
    "", "workdir or .safetensors file of the trained score model that is distilled or tuned",
    needs={"task": ("consistency",)},
  )  # fmt: skip
  finetune: bool = option(True, "start from the teacher's parameters", needs={"teacher": ()})
  sde: str = option("vesde", "vesde, vpsde, subvpsde, cosine, rectified_flow, or FILE.py:FUNCTION(config.model) -> SDE")
  continuous: bool = option(True, "train a model of all times, not of discrete noise levels")
  batch_size: int = option(128, "examples per step, over all devices and hosts", "[1, inf)")
  n_iters: int = option(1300001, "number of training steps", "[1, inf)")
  n_jitted_steps: int = option(
    5, "steps per dispatch; on a CPU, the default for networks with convolutions is 1", "[1, inf)"
  )
  accumulation: int = option(
    1, "split each device's share of the batch into this many parts, to save memory", "[1, inf)"
  )
  parallelism: str = option(
    "pmap", "pmap: each device has a copy of the state; fsdp: the state is split", choices=("pmap", "fsdp")
  )
  fsdp_devices: int = option(
    0, "number of devices that share one copy of the state; 0: all", "[0, inf)", needs={"parallelism": ("fsdp",)}
  )
  data_timeout: float = option(600.0, "seconds without a batch after which the run stops", "(0, inf)")
  log_freq: int = option(50, "steps between rows of the curves", "[1, inf)")
  eval_freq: int = option(100, "steps between evaluations of the test loss", "[1, inf)")
  snapshot_freq: int = option(50000, "steps between checkpoints that are kept", "[1, inf)")
  snapshot_freq_for_preemption: int = option(
    10000, "steps between checkpoints for resuming, of which the last two are kept", "[1, inf)"
  )
  snapshot_sampling: bool = option(True, "draw samples at each snapshot")
  likelihood_weighting: bool = option(False, "the same as weighting='likelihood'")
  importance_sampling: bool = option(
    False, "sample t by importance, for likelihood weighting", needs={"weighting": ("likelihood",)}
  )
  fid_samples: int = option(
    0, "number of samples for the FID of each snapshot, with eval.features; 0: none", "[0, inf)"
  )
  fid_steps: int = option(
    50, "steps of DPM-Solver++ for the samples of fid_samples", "[1, inf)", needs={"fid_samples": ()}
  )
  final_report: bool = option(False, "evaluate and draw samples when training ends")
  wandb_project: str = option("", "project of Weights & Biases to log to (pip install -e '.[wandb]'); unset: none")
  profile_steps: tuple[int, ...] = option(
    (), "first and last step of a profile for TensorBoard and Perfetto, such as (100, 110); (): none"
  )


@dataclasses.dataclass(frozen=True)
class Sampling(Options):
  """config.sampling: the solver and its steps. The section also has the keys of the solvers, see `sampling`."""

  method: str = option(
    "pc",
    "pc (predictor and corrector); ncsn, ddpm (the samplers of these papers); ode, adaptive_sde; for few steps "
    "ddim, dpm_solver, dpm_solver_sde, unipc, heun, sa_solver; consistency (for consistency models); or "
    "FILE.py:FUNCTION(config.sampling) -> Solver",
  )
  grid: str | None = option(
    None, "placement of the steps; follows method: log_snr for few steps, else uniform", choices=GRIDS,
    needs=({"method": STEPPING}, {"guidance.method": ("ddrm",)}),
  )  # fmt: skip
  num_steps: int | None = option(
    None, "steps, including the last one to sigma = 0; follows method: 20 for few steps, else model.num_scales",
    "[1, inf)",
    needs=({"method": STEPPING}, {"guidance.method": ("ddrm",)}),
  )  # fmt: skip
  eps: float | None = option(None, "time at which sampling ends; follows the SDE", "(0, inf)")
  clip: str = option(
    "none", "keep estimates of x_0 in the range of the data: static clips, dynamic also scales (Saharia et al. 2022)",
    choices=("none", "static", "dynamic"),
    needs=(
      {"method": Other(("ode", "adaptive_sde")), "guidance.task": Other(("interpolate",))},
      {"guidance.method": ("ddrm",)},
    ),
  )  # fmt: skip
  clip_quantile: float = option(
    0.995, "quantile of an image's |x_0| that dynamic clipping keeps", "(0, 1]", needs={"clip": ("dynamic",)}
  )
  num_samples: int = option(64, "number of samples in a picture", "[1, inf)")
  show_paths: bool = option(False, "draw the score and the paths of samples, paths.png, of points in the plane")
  condition: str = option(
    "", "file of the samples' conditions, .npy or .npz, taken in turn; unset: those of test examples",
    needs={"data.condition_shape": ()},
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Evaluation(Options):
  """config.eval: measurements of a checkpoint. The section also has the keys of the likelihoods."""

  batch_size: int = option(1024, "examples or samples per batch", "[1, inf)")
  weights: str = option("ema", "parameters to use: their moving average, or the raw ones", choices=("ema", "raw"))
  checkpoint: str = option("latest", "latest, best (by the FID while training), or a step; also for --mode=sample")
  begin_ckpt: int | None = option(None, "first of several snapshots, used instead of eval.checkpoint", "[0, inf)")
  end_ckpt: int | None = option(None, "last of several snapshots", "[0, inf)")
  wait_minutes: float = option(0.0, "minutes to wait for each snapshot that training has not written yet", "[0, inf)")
  report: str = option("report", "name of the report files; use different names for different evaluations of a run")
  enable_loss: bool = option(True, "measure the loss")
  enable_bpd: bool = option(False, "measure bits/dim")
  enable_sampling: bool = option(False, "draw and measure samples")
  num_samples: int = option(50000, "number of samples", "[1, inf)", needs={"enable_sampling": ()})
  quantization: str = option(
    "truncate", "rounding of samples to 256 gray levels; the official code truncates", choices=("truncate", "round")
  )
  save_samples: str = option(
    "npz", "file format of samples", choices=("npz", "png", "array_record", "none"), needs={"enable_sampling": ()}
  )
  features: str = option(
    "", "network for metrics of samples: inception, or the workdir of a classifier; unset: none", needs=_SAMPLED
  )
  inception_path: str = option("", "weights of inception; unset: downloaded once", needs={"features": ("inception",)})
  reference: str = option(
    "", "statistics (.npz) to compare with; unset: those of the training images", needs={"features": ()}
  )
  metrics: str = option(
    "", "more metrics: FILE.py:FUNCTION(samples, test examples) -> {name: number}", needs={"enable_sampling": ()}
  )
  fidelity_engine: str = option(
    "own", "code that measures samples (torch-fidelity: pip install -e '.[fidelity]')",
    choices=("own", "torch-fidelity"),
    needs={"enable_sampling": ()},
  )  # fmt: skip
  num_features: int = option(
    10000, "features to keep per set, for KID, precision and recall", "[4, inf)", needs={"features": ()}
  )
  bpd_dataset: str = option("test", "split of losses and likelihoods", choices=("train", "test"))
  num_examples: int | None = option(None, "number of examples for losses and likelihoods; unset: all", "[1, inf)")
  num_repeats: int = option(1, "dequantizations per example", "[1, inf)", needs=_LIKELIHOOD)
  dequantization: str = option(
    "uniform", "noise that fills the gaps between gray levels; truncated_normal is for models of discrete images",
    choices=("uniform", "truncated_normal"), needs={"enable_bpd": (), "likelihood": ("ode",)},
  )  # fmt: skip
  likelihood: str = option(
    "ode", "ode: exact, by the probability-flow ODE; elbo: a bound, by the SDE; chain: a bound, by the discrete chain",
    choices=("ode", "elbo", "chain"), needs=_LIKELIHOOD,
  )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Guidance(Options):
  """config.guidance: conditioning of samples. The section also has the keys of the methods, see `guidance`."""

  task: str = option(
    "none", "condition of the samples",
    choices=("none", *GIVEN_TASKS, *LINEAR_TASKS, *NONLINEAR_TASKS, *EDITING_TASKS),
  )  # fmt: skip
  method: str | None = option(
    None,
    "class: classifier or classifier_free; condition: classifier_free; measurements: pigdm, tmpd, dps, replacement, "
    "projection, ddrm; none or class: autoguidance; follows task",
    needs=({"task": Other(("none",))}, {"method": (AUTOGUIDANCE,)}),
  )  # fmt: skip
  label: Any = option(
    None, "class of the samples, the name of a folder, or a number from 0; unset: all classes in turn, or those of the "
    "conditions of test examples",
    needs=({"task": GIVEN_TASKS}, {"model.num_classes": (), "training.task": ("score", "consistency")}),
  )  # fmt: skip
  weak: str = option(
    "", "workdir or .safetensors file of the weaker model; unset: this workdir", needs={"method": (AUTOGUIDANCE,)}
  )
  weak_checkpoint: str = option(
    "latest", "checkpoint of the weaker model: latest, best, or an earlier step", needs={"method": (AUTOGUIDANCE,)}
  )
  classifier: str = option("", "workdir of the classifier", needs={"method": ("classifier",)})
  input: str = option("", "folder of images, or one image; unset: the first test examples", needs=_INPUTS)
  num_inputs: int = option(4, "number of input images", "[1, inf)", needs=_INPUTS)
  samples_per_input: int = option(4, "number of samples per input", "[1, inf)", needs=_INPUTS)
  noise: float = option(
    0.0, "standard deviation of the measurement noise, for images in [0, 1]", "[0, inf)",
    needs={"task": (*LINEAR_TASKS, *NONLINEAR_TASKS)},
  )  # fmt: skip
  mask: str = option(
    "right", "part to inpaint: left, right, top, bottom, center, random, or a PNG (black: missing, white: known)",
    needs={"task": ("inpaint",)},
  )  # fmt: skip
  fraction: float = option(
    0.3, "share of pixels, lines or projections that is measured", "(0, 1]",
    needs=({"task": ("fourier", "projections")}, {"task": ("inpaint",), "mask": ("random",)}),
  )  # fmt: skip
  factor: int = option(4, "downsampling factor per side", "[2, inf)", needs={"task": ("super_resolution",)})
  kernel: str = option(
    "average", "kernel of super_resolution", choices=("average", "bicubic"), needs={"task": ("super_resolution",)}
  )
  blur: float = option(2.0, "standard deviation of the blur in pixels", "(0, inf)", needs={"task": ("deblur",)})
  length: int = option(9, "length of the motion in pixels", "[2, inf)", needs={"task": ("motion_deblur",)})
  quality: int = option(10, "JPEG quality", "[1, 100]", needs={"task": ("jpeg",)})
  t0: float = option(0.5, "time up to which noise is added", "(0, inf)", needs={"task": ("edit",)})
