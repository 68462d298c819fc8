"""Class-conditional DDPM++ cont. with the VP SDE on CIFAR-10, ready for classifier-free guidance."""

from configs.vp import cifar10_ddpmpp_continuous


def get_config():
  config = cifar10_ddpmpp_continuous.get_config()
  config.model.num_classes = 10
  return config
