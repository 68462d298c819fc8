"""Solvers of the reverse-time SDE and the probability-flow ODE, and `sample`, which runs them from noise to data.

A solver is a frozen dataclass. Its fields are its options, and `init`, `step` and `finish` are pure functions. Each
file has one family of solvers. `METHODS` maps the names in configs to the solvers.
"""

from score_sde.sampling.adaptive import AdaptiveSDE
from score_sde.sampling.clip import Clip
from score_sde.sampling.consistency import Consistency
from score_sde.sampling.correctors import CORRECTORS
from score_sde.sampling.ddim import DDIM
from score_sde.sampling.dpm_solver import DPMSolver, DPMSolverSDE
from score_sde.sampling.grids import GRIDS, TimeGrid, make_grid
from score_sde.sampling.heun import Heun
from score_sde.sampling.ode import AdaptiveODE
from score_sde.sampling.predictor_corrector import DDPM, NCSN, PredictorCorrector
from score_sde.sampling.predictors import PREDICTORS
from score_sde.sampling.restart import Interval, Restart
from score_sde.sampling.sa_solver import SASolver
from score_sde.sampling.sample import AnySolver, grid_for, papers_solver, sample
from score_sde.sampling.solver import FewStep, Solver, State
from score_sde.sampling.unipc import UniPC

METHODS: dict[str, type] = {
  "pc": PredictorCorrector,
  "ncsn": NCSN,
  "ddpm": DDPM,
  "ode": AdaptiveODE,
  "adaptive_sde": AdaptiveSDE,
  "ddim": DDIM,
  "dpm_solver": DPMSolver,
  "dpm_solver_sde": DPMSolverSDE,
  "unipc": UniPC,
  "sa_solver": SASolver,
  "heun": Heun,
  "consistency": Consistency,
}

__all__ = [
  "CORRECTORS",
  "DDIM",
  "DDPM",
  "GRIDS",
  "METHODS",
  "NCSN",
  "PREDICTORS",
  "AdaptiveODE",
  "AdaptiveSDE",
  "AnySolver",
  "Clip",
  "Consistency",
  "DPMSolver",
  "DPMSolverSDE",
  "FewStep",
  "Heun",
  "Interval",
  "PredictorCorrector",
  "Restart",
  "SASolver",
  "Solver",
  "State",
  "TimeGrid",
  "UniPC",
  "grid_for",
  "make_grid",
  "papers_solver",
  "sample",
]
