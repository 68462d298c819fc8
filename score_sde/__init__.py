"""Score-based generative modeling through stochastic differential equations (Song et al. 2021, arXiv:2011.13456).

An SDE carries data to noise, and everything else is a pure function of that SDE and a score, the gradient of the
log-density of the noisy data:

    import jax, score_sde as ss
    x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (16, 2), solver=ss.UniPC(), steps=20)

    SDEs           VE, VP, SubVP, CosineVP, RectifiedFlow, Reflected; SDE and LinearSDE to write another
    samples        sample, with a solver: PredictorCorrector, NCSN, DDPM, AdaptiveODE, AdaptiveSDE, DDIM, DPMSolver,
                   DPMSolverSDE, UniPC, Heun, SASolver, Restart, Consistency; Solver to write another; TimeGrid,
                   make_grid
    likelihoods    log_likelihood, ExactLikelihood, EvidenceBound, ChainBound, bits_per_dim
    latents        encode, decode, interpolate
    training       ScoreModel (a network as a model of the score), ScoreMatching (the losses), Scaling (of the data);
                   ConsistencyModel (of the ends of the ODE's paths), ConsistencyLoss
    conditions     guidance: classes, measurements, constraints
    ground truth   analytic: distributions whose score and density are known at every time
    trained models load, Model

Functions are pure: call them under jit, vmap, grad and shard_map. `x` is (B, ...), times are (B,), keys are explicit.
`python -m score_sde --help` is the command line that trains, samples and evaluates.
"""

import importlib.metadata

from score_sde import analytic, guidance
from score_sde.bounds import ChainBound, EvidenceBound
from score_sde.errors import InvalidArgument, ScoreSDEError
from score_sde.likelihood import (
  ExactLikelihood,
  bits_per_dim,
  decode,
  encode,
  interpolate,
  log_likelihood,
)
from score_sde.losses import ConsistencyLoss, ScoreMatching
from score_sde.model import Model
from score_sde.parameterization import ConsistencyModel, ScoreModel
from score_sde.sampling import (
  DDIM,
  DDPM,
  NCSN,
  AdaptiveODE,
  AdaptiveSDE,
  Clip,
  Consistency,
  DPMSolver,
  DPMSolverSDE,
  Heun,
  Interval,
  PredictorCorrector,
  Restart,
  SASolver,
  Solver,
  State,
  TimeGrid,
  UniPC,
  make_grid,
  sample,
)
from score_sde.scaling import Scaling
from score_sde.sde import (
  SDE,
  VE,
  VP,
  CosineVP,
  LinearSDE,
  RectifiedFlow,
  Reflected,
  Reverse,
  SubVP,
  denoiser,
  simulate,
)

__version__ = importlib.metadata.version("score_sde")

__all__ = [
  "DDIM",
  "DDPM",
  "NCSN",
  "SDE",
  "VE",
  "VP",
  "AdaptiveODE",
  "AdaptiveSDE",
  "ChainBound",
  "Clip",
  "Consistency",
  "ConsistencyLoss",
  "ConsistencyModel",
  "CosineVP",
  "DPMSolver",
  "DPMSolverSDE",
  "EvidenceBound",
  "ExactLikelihood",
  "Heun",
  "Interval",
  "InvalidArgument",
  "LinearSDE",
  "Model",
  "PredictorCorrector",
  "RectifiedFlow",
  "Reflected",
  "Restart",
  "Reverse",
  "SASolver",
  "Scaling",
  "ScoreMatching",
  "ScoreModel",
  "ScoreSDEError",
  "Solver",
  "State",
  "SubVP",
  "TimeGrid",
  "UniPC",
  "__version__",
  "analytic",
  "bits_per_dim",
  "decode",
  "denoiser",
  "encode",
  "guidance",
  "interpolate",
  "load",
  "log_likelihood",
  "make_grid",
  "sample",
  "simulate",
]


def load(path: str, checkpoint: str = "latest", *, weights: str | None = None, allow_code: bool = False) -> Model:
  """Returns the trained model in `path`. It never trains, writes or prints.

  Args:
    path: the workdir of a run, or a `.safetensors` file that `python -m score_sde export` wrote with its config.
    checkpoint: of a workdir: "latest", "best" (by the FID while training) or a step.
    weights: "ema" for the average of the parameters, "raw" for the parameters themselves; by default the eval.weights
      of its config, which are "ema" unless the run says otherwise.
    allow_code: whether files that the config names (FILE.py:FUNCTION) may be run.

  Raises:
    ScoreSDEError: where there is no model, it is a classifier, a checkpoint is damaged, or code would have to run.

  Example:
    model = ss.load("runs/quickstart")
    images = model.sample(jax.random.key(0), 16)
    logp = model.log_likelihood(jax.random.key(1), images)
  """
  from score_sde.run import loading  # the runner, which a caller of the core alone need not import

  return loading.load(path, checkpoint, weights=weights, allow_code=allow_code)
