"""Digits in one evaluation: consistency distillation of the quickstart's model, six minutes on two CPU cores.

Train `configs/quickstart.py` first, with the same SDE, and give its workdir as --config.training.teacher.
--config.training.objective=ect|scm|progressive|ict|ct chooses another method.
"""

from configs import quickstart


def get_config():
  config = quickstart.get_config()
  config.training.task = "consistency"
  config.training.teacher = "runs/quickstart"
  config.training.objective = "cd"
  config.training.n_iters = 6000
  config.optim.lr = 3e-4

  config.sampling.method = "consistency"
  config.sampling.num_steps = 1
  config.eval.enable_bpd = False
  return config
