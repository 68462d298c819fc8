"""The 2-D toy `eight_gaussians`, for any of the three SDEs: see configs/toy/base.py."""

from configs.toy import base


def get_config():
  config = base.get_config()
  config.data.dataset = "eight_gaussians"
  return config
