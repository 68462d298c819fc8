"""What reads a key: many mean something only where another key has a certain value."""

from collections.abc import Callable

from ml_collections import ConfigDict

from score_sde.run.config.sdes import SDES, make_sde
from score_sde.sampling import FEW_STEP
from score_sde.sde import LinearSDE


def _named(config: ConfigDict, *names: str) -> bool:
  """Whether the SDE is one of `names`; a user's own may read any key of the model."""
  return config.training.sde in names or config.training.sde not in SDES


def _corrects(c: ConfigDict) -> bool:
  return c.sampling.method == "ncsn" or (c.sampling.method == "pc" and c.sampling.corrector != "none")


# (keys, whether a complete config has something that reads them, what that is)
_READERS: tuple[tuple[tuple[str, ...], Callable[[ConfigDict], bool], str], ...] = (
  (
    ("model.sigma_min", "model.sigma_max"),
    lambda c: _named(c, "vesde") or c.model.scale_by_sigma,
    "training.sde='vesde'",
  ),
  (
    ("model.beta_min", "model.beta_max"),
    lambda c: _named(c, "vpsde", "subvpsde"),
    "training.sde='vpsde' or 'subvpsde'",
  ),
  (("model.cosine_s",), lambda c: _named(c, "cosine"), "training.sde='cosine'"),
  (("model.delta",), lambda c: _named(c, "cosine", "rectified_flow"), "training.sde='cosine' or 'rectified_flow'"),
  (
    ("model.sigma_data",),
    lambda c: "edm" in (c.model.parameterization, c.training.weighting),
    "model.parameterization='edm' or training.weighting='edm'",
  ),
  (("data.category",), lambda c: c.data.dataset == "LSUN", "data.dataset='LSUN'"),
  (("data.on_corrupt", "data.cache_gib"), lambda c: c.data.dataset in ("folder", "FFHQ", "CelebAHQ"), "a folder"),
  (
    ("training.p_mean", "training.p_std"),
    lambda c: c.training.time_sampling == "lognormal",
    "time_sampling='lognormal'",
  ),
  (("training.single_sigma",), lambda c: c.training.time_sampling == "single", "training.time_sampling='single'"),
  (("training.weighting_power",), lambda c: c.training.weighting == "power", "training.weighting='power'"),
  (("training.snr_gamma",), lambda c: c.training.weighting == "min_snr", "training.weighting='min_snr'"),
  (("training.importance_sampling",), lambda c: c.training.weighting == "likelihood", "training.likelihood_weighting"),
  (
    ("training.probe", "training.num_probes"),
    lambda c: c.training.objective in ("ssm", "ssm_vr", "fd_ssm"),
    "training.objective='ssm', 'ssm_vr' or 'fd_ssm'",
  ),
  (("training.fd_step",), lambda c: c.training.objective == "fd_ssm", "training.objective='fd_ssm'"),
  (("training.path_steps",), lambda c: not isinstance(make_sde(c), LinearSDE), "an SDE without a closed-form kernel"),
  (("training.fsdp_devices",), lambda c: c.training.parallelism == "fsdp", "training.parallelism='fsdp'"),
  (("training.fid_steps",), lambda c: c.training.fid_samples > 0, "training.fid_samples"),
  (
    ("sampling.predictor", "sampling.corrector", "sampling.probability_flow"),
    lambda c: c.sampling.method == "pc",
    "sampling.method='pc'",
  ),
  (("sampling.snr", "sampling.n_steps_each"), _corrects, "a sampling.corrector"),
  (
    ("sampling.ald_step",),
    lambda c: c.sampling.method == "ncsn" or (_corrects(c) and c.sampling.corrector == "ald"),
    "sampling.corrector='ald' or sampling.method='ncsn'",
  ),
  (("sampling.norms",), lambda c: _corrects(c) or c.sampling.method == "ode", "a sampling.corrector or method='ode'"),
  (
    ("sampling.grid", "sampling.num_steps"),
    lambda c: c.sampling.method in ("pc", *FEW_STEP) or c.guidance.method == "ddrm",
    "a sampling.method whose steps are chosen (not ode, adaptive_sde, ncsn, ddpm)",
  ),
  (("sampling.eta",), lambda c: c.sampling.method == "ddim", "sampling.method='ddim'"),
  (
    ("sampling.churn", "sampling.churn_min", "sampling.churn_max", "sampling.churn_noise"),
    lambda c: c.sampling.method == "heun",
    "sampling.method='heun'",
  ),
  (
    ("sampling.rtol", "sampling.atol", "sampling.solver"),
    lambda c: c.sampling.method == "ode" or c.guidance.task == "interpolate",
    "sampling.method='ode'",
  ),
  (("sampling.temperature",), lambda c: c.sampling.method == "ode", "sampling.method='ode'"),
  (
    ("sampling.sde_rtol", "sampling.sde_atol"),
    lambda c: c.sampling.method == "adaptive_sde",
    "sampling.method='adaptive_sde'",
  ),
  (("guidance.scale",), lambda c: c.guidance.task != "none", "a guidance.task"),
  (
    ("guidance.label",),
    lambda c: c.guidance.task == "class" or (c.model.num_classes > 0 and c.training.task == "score"),
    "guidance.task='class' or a network of classes",
  ),
  (
    ("guidance.classifier", "guidance.low", "guidance.high"),
    lambda c: c.guidance.task == "class",
    "guidance.task='class'",
  ),
  (
    tuple(f"guidance.{k}" for k in ("method", "input", "num_inputs", "samples_per_input")),
    lambda c: c.guidance.task != "none",
    "a guidance.task",
  ),
  (("guidance.mask",), lambda c: c.guidance.task == "inpaint", "guidance.task='inpaint'"),
  (
    ("guidance.fraction",),
    lambda c: (
      c.guidance.task in ("fourier", "projections") or (c.guidance.task, c.guidance.mask) == ("inpaint", "random")
    ),
    "guidance.task='fourier' or 'projections', or guidance.mask='random'",
  ),
  (
    ("guidance.factor", "guidance.kernel"),
    lambda c: c.guidance.task == "super_resolution",
    "guidance.task='super_resolution'",
  ),
  (("guidance.blur",), lambda c: c.guidance.task == "deblur", "guidance.task='deblur'"),
  (("guidance.length",), lambda c: c.guidance.task == "motion_deblur", "guidance.task='motion_deblur'"),
  (("guidance.quality",), lambda c: c.guidance.task == "jpeg", "guidance.task='jpeg'"),
  (("guidance.prior_variance",), lambda c: c.guidance.method in ("pigdm", "dps"), "guidance.method='pigdm' or 'dps'"),
  (("guidance.covariance", "guidance.iterations"), lambda c: c.guidance.method == "tmpd", "guidance.method='tmpd'"),
  (("guidance.paper_steps",), lambda c: c.guidance.method == "dps", "guidance.method='dps'"),
  (("guidance.strength",), lambda c: c.guidance.method == "projection", "guidance.method='projection'"),
  (("guidance.eta", "guidance.eta_b"), lambda c: c.guidance.method == "ddrm", "guidance.method='ddrm'"),
  (("guidance.t0",), lambda c: c.guidance.task == "edit", "guidance.task='edit'"),
  (("eval.num_samples", "eval.save_samples"), lambda c: c.eval.enable_sampling, "eval.enable_sampling"),
  (("eval.likelihood", "eval.num_repeats", "eval.eps"), lambda c: c.eval.enable_bpd, "eval.enable_bpd"),
  (
    ("eval.num_times",),
    lambda c: c.eval.enable_bpd and c.eval.likelihood == "elbo",
    "eval.enable_bpd with eval.likelihood='elbo'",
  ),
  (
    ("eval.rtol", "eval.atol", "eval.probe", "eval.num_probes"),
    lambda c: c.eval.enable_bpd and c.eval.likelihood == "ode",
    "eval.enable_bpd with eval.likelihood='ode'",
  ),
)


def why_unread(config: ConfigDict, key: str) -> str | None:
  """What would read the dotted `key`, where nothing in the complete `config` does; None where something does.

  Keys of networks are `models.create`'s to refuse.
  """
  for keys, read, reader in _READERS:
    if key in keys:
      return None if read(config) else reader
  return None
