"""NCSN++ with discrete noise levels on CelebA, 64 px (VE; Song et al. 2021, Appendix H).

The official file also sets model.sigma_begin, which nothing reads; sigma_max has its value.
"""

from configs import papers
from configs.ve import cifar10_ncsnpp


def get_config():
  config = cifar10_ncsnpp.get_config()
  papers.celeba(config)
  config.model.sigma_max = 90.0
  config.sampling.snr = 0.17
  return config
