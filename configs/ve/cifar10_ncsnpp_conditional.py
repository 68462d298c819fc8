"""Class-conditional NCSN++ cont. with the VE SDE on CIFAR-10, ready for classifier-free guidance."""

from configs.ve import cifar10_ncsnpp_continuous


def get_config():
  config = cifar10_ncsnpp_continuous.get_config()
  config.model.num_classes = 10
  return config
