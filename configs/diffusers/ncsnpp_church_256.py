"""The weights of google/ncsnpp-church-256 on the Hugging Face hub, whose attention has heads of 8 channels."""

from configs.ve import church_ncsnpp_continuous


def get_config():
  config = church_ncsnpp_continuous.get_config()
  config.model.head_dim = 8
  return config
