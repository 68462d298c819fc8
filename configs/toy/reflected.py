"""The checkerboard under noise that is reflected at the edges of the board: samples never leave it.

Reflected Brownian motion has no closed-form kernel for training, so paths are simulated. Without a drift it tends to
the uniform distribution, from which sampling starts.
"""

from configs.toy import base
from score_sde.sde import VE, Reflected


def board(model):
  """Returns the SDE. config.training.sde names this function."""
  return Reflected(VE(model.sigma_min, model.sigma_max), low=-2.0, high=2.0, uniform_prior=True)


def get_config():
  config = base.get_config()
  config.data.dataset = "checkerboard"
  config.training.sde = "configs/toy/reflected.py:board"
  config.model.sigma_max = 4.0
  config.eval.enable_bpd = False  # a learned score may lead the flow out of the board
  return config
