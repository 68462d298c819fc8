"""Ho et al.'s own weights, as google/ddpm-cifar10-32 on the Hugging Face hub."""

from configs.vp.ddpm import cifar10


def get_config():
  config = cifar10.get_config()
  config.model.attn_every_block = True
  return config
