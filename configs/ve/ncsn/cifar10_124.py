"""NCSN on CIFAR-10 with NCSNv2's techniques 1, 2 and 4: noise levels and Langevin steps (Song & Ermon 2020)."""

from configs.ve.ncsn import cifar10


def get_config():
  config = cifar10.get_config()
  config.model.num_scales = 232
  config.model.sigma_max = 50.0
  config.sampling.n_steps_each = 5
  config.sampling.snr = 0.176
  return config
