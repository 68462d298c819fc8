"""The checkerboard under noise that is reflected at the edges of the board: samples never leave it.

Reflected Brownian motion has no closed-form kernel that training could use, so paths are simulated; without a drift it
tends to the uniform law, which sampling starts from.
"""

from configs.toy import base
from score_sde.sde import VE, Reflected


def board(model):
  """The SDE, as config.training.sde names it."""
  return Reflected(VE(model.sigma_min, model.sigma_max), low=-2.0, high=2.0, uniform_prior=True)


def get_config():
  config = base.get_config()
  config.data.dataset = "checkerboard"
  config.training.sde = "configs/toy/reflected.py:board"
  config.model.sigma_max = 4.0
  config.eval.enable_bpd = False  # the flow of a learned score may leave the board
  return config
