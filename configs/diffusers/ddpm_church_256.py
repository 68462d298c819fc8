"""Ho et al.'s own weights, as google/ddpm-church-256 on the Hugging Face hub."""

from configs.vp.ddpm import church


def get_config():
  config = church.get_config()
  config.model.attn_every_block = True
  return config
