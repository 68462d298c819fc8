"""EDM on CIFAR-10 with the architecture NCSN++, Karras et al. 2022's 'VE': FID 1.98 (Table 2), with augmentation."""

from configs.edm import cifar10_ddpmpp


def get_config():
  config = cifar10_ddpmpp.get_config()
  config.model.fir = True
  config.model.progressive_input = "residual"
  config.model.conditioning = "sigma"
  config.model.embedding_type = "fourier"
  config.model.fourier_scale = 4.0  # multiplies log sigma; EDM has scale 16 of log(sigma) / 4
  return config
