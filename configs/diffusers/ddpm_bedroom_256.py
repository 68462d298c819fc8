"""Ho et al.'s own weights, as google/ddpm-bedroom-256 on the Hugging Face hub."""

from configs.vp.ddpm import bedroom


def get_config():
  config = bedroom.get_config()
  config.model.attn_every_block = True
  return config
