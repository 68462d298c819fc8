"""NCSN on CelebA with NCSNv2's techniques 1, 2 and 4: noise levels and Langevin steps (Song & Ermon 2020)."""

from configs.ve.ncsn import celeba


def get_config():
  config = celeba.get_config()
  config.model.num_scales = 500
  config.model.sigma_max = 90.0
  config.sampling.n_steps_each = 5
  config.sampling.snr = 0.128
  return config
