"""NCSN on CelebA, 64 px (Song & Ermon 2019).

The official file sets training.loss instead of training.sde.
"""

from configs import papers
from configs.ve.ncsn import cifar10


def get_config():
  config = cifar10.get_config()
  papers.celeba(config)
  return config
