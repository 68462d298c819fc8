"""The weights of google/ncsnpp-ffhq-1024 on the Hugging Face hub, whose attention has heads of 8 channels."""

from configs.ve import ffhq_ncsnpp_continuous


def get_config():
  config = ffhq_ncsnpp_continuous.get_config()
  config.model.head_dim = 8
  return config
