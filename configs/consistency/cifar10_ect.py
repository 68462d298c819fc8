"""Easy consistency tuning on CIFAR-10, Geng et al. 2024: FID 3.60 with one evaluation, 2.11 with two.

It starts from EDM's model: give the workdir of configs/edm/cifar10_ddpmpp.py as --config.training.teacher.
"""

from configs.consistency import base
from configs.edm import cifar10_ddpmpp


def get_config():
  config = base.from_edm(cifar10_ddpmpp)
  config.model.dropout = 0.2

  config.training.objective = "ect"
  config.training.teacher = "runs/edm"
  config.training.batch_size = 128
  config.training.n_iters = 400000

  config.sampling.num_steps = 2
  config.sampling.sigmas = (0.821,)
  return config
