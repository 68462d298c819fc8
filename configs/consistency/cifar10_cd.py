"""Consistency distillation on CIFAR-10, Song et al. 2023: FID 3.55 with one evaluation, 2.93 with two (Table 1).

There with the distance LPIPS, which needs weights of its own; here with pseudo-Huber. The teacher is EDM's model: give
the workdir of configs/edm/cifar10_ncsnpp.py as --config.training.teacher. The network is that of the official code
(openai/consistency_models_cifar10), whose checkpoints `python -m score_sde import` reads.
"""

from configs.consistency import base
from configs.edm import cifar10_ncsnpp


def get_config():
  config = base.from_edm(cifar10_ncsnpp)
  config.model.dropout = 0.0

  config.optim.lr = 4e-4

  config.training.objective = "cd"
  config.training.teacher = "runs/edm"
  config.training.distance = "pseudo_huber"
  config.training.n_iters = 800000

  config.sampling.num_steps = 1
  return config
