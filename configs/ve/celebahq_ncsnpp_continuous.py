"""NCSN++ cont. with the VE SDE on CelebA-HQ, 1024 px (Song et al. 2021, Figure 12).

Set --config.data.path to the TFRecords (the official file has a path of its authors), or to a folder of images.
The official file also lacks n_jitted_steps, the betas and the settings of the likelihood. They have default values.
"""

from configs.ve import celebahq_256_ncsnpp_continuous


def get_config():
  config = celebahq_256_ncsnpp_continuous.get_config()
  config.data.image_size = 1024
  config.model.nf = 16
  config.model.ch_mult = (1, 2, 4, 8, 16, 32, 32, 32)
  config.model.num_res_blocks = 1
  config.model.sigma_max = 1348.0
  config.model.ema_rate = 0.9999
  config.training.batch_size = 8
  config.sampling.snr = 0.15
  config.eval.batch_size = 1024
  config.eval.begin_ckpt = 1
  config.eval.enable_sampling = False
  return config
