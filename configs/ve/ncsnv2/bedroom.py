"""NCSNv2 on LSUN bedrooms, 128 px (Song & Ermon 2020).

The official file misspells training.continuous, which should be False, and sets a dropout, which NCSNv2 does not have.
"""

from configs import papers
from configs.ve.ncsnv2 import cifar10


def get_config():
  config = cifar10.get_config()
  papers.large_images(config)
  config.data.dataset = "LSUN"
  config.data.category = "bedroom"
  config.data.image_size = 128
  config.model.name = "ncsnv2_128"
  config.model.dropout = 0.1  # the default: the network has none
  config.model.num_scales = 1086
  config.model.sigma_max = 190.0
  config.model.ema_rate = 0.9999
  config.training.batch_size = 128
  config.sampling.n_steps_each = 3
  config.sampling.snr = 0.095
  return config
