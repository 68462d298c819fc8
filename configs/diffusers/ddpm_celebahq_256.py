"""Ho et al.'s own weights, as google/ddpm-celebahq-256 on the Hugging Face hub."""

from configs.vp.ddpm import celebahq


def get_config():
  config = celebahq.get_config()
  config.model.attn_every_block = True
  return config
