"""Easy consistency tuning on CIFAR-10, Geng et al. 2024: FID 2.73 with two evaluations after an hour on one A100.

It starts from EDM's model: give the workdir of configs/edm/cifar10_ddpmpp.py as --config.training.teacher.
"""

from configs.edm import cifar10_ddpmpp


def get_config():
  config = cifar10_ddpmpp.get_config()
  config.model.dropout = 0.2
  config.model.ema_rate = 0.9999

  config.optim.optimizer = "RAdam"
  config.optim.lr = 1e-4
  config.optim.warmup = 0

  config.training.task = "consistency"
  config.training.objective = "ect"
  config.training.teacher = "runs/edm"
  config.training.batch_size = 128
  config.training.n_iters = 400000
  config.training.snapshot_freq = 10000

  config.sampling.method = "consistency"
  config.sampling.num_steps = 2
  config.sampling.sigmas = (0.821,)
  return config
