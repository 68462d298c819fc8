"""NCSNv2 on CIFAR-10: FID 10.87, IS 8.40 (Song & Ermon 2020, Table 1)."""

from configs.ve.ncsn import cifar10_1245


def get_config():
  config = cifar10_1245.get_config()
  config.model.name = "ncsnv2_64"
  config.optim.lr = 1e-4
  return config
