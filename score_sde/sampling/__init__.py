"""Solvers, from noise to data along the reverse-time SDE or the probability-flow ODE, and `sample`, which runs them.

A solver is a small frozen dataclass whose fields are its options, with pure functions `init`, `step` and `finish`. One
file a family; `METHODS` is the table of all of them by the names that configs use.
"""

from score_sde.sampling.adaptive import AdaptiveSDE
from score_sde.sampling.correctors import CORRECTORS
from score_sde.sampling.ddim import DDIM
from score_sde.sampling.dpm_solver import DPMSolver, DPMSolverSDE
from score_sde.sampling.grids import GRIDS, TimeGrid, make_grid
from score_sde.sampling.heun import Heun
from score_sde.sampling.ode import AdaptiveODE
from score_sde.sampling.predictor_corrector import DDPM, NCSN, PredictorCorrector
from score_sde.sampling.predictors import PREDICTORS
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
  "heun": Heun,
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
  "DPMSolver",
  "DPMSolverSDE",
  "FewStep",
  "Heun",
  "PredictorCorrector",
  "Solver",
  "State",
  "TimeGrid",
  "UniPC",
  "grid_for",
  "make_grid",
  "papers_solver",
  "sample",
]
