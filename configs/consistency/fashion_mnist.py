"""Garments in one evaluation: easy consistency tuning of the published VP model, an hour or two on two CPU cores.

The teacher is a file of this repository. For another one, give its workdir as --config.training.teacher.
"""

from configs.fashion_mnist import ddpmpp


def get_config():
  config = ddpmpp.get_config()
  config.training.task = "consistency"
  config.training.teacher = "configs/fashion_mnist/ddpmpp_vpsde.safetensors"
  config.training.objective = "ect"
  config.training.n_iters = 3600
  config.training.snapshot_freq = 1200
  config.optim.lr = 5e-4

  config.sampling.method = "consistency"
  config.sampling.num_steps = 1
  config.sampling.start_sigma = 40.0  # the teacher is badly trained at the noise of T, 152
  config.eval.enable_bpd = False
  return config
