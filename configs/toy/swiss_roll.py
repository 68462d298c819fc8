"""The 2-D toy `swiss_roll`, for any of the three SDEs: see configs/toy/base.py."""

from configs.toy import base


def get_config():
  config = base.get_config()
  config.data.dataset = "swiss_roll"
  return config
