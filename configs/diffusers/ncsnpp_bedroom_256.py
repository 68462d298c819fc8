"""The weights of google/ncsnpp-bedroom-256 on the Hugging Face hub, whose attention has heads of 8 channels."""

from configs.ve import bedroom_ncsnpp_continuous


def get_config():
  config = bedroom_ncsnpp_continuous.get_config()
  config.model.head_dim = 8
  return config
