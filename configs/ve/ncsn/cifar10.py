"""NCSN on CIFAR-10: 10 noise levels, 100 Langevin steps each (Song & Ermon 2019).

The official file cannot run: it lacks the number of classes of the conditional norms. Here it is model.num_scales.
"""

from configs import papers


def get_config():
  config = papers.get_config()
  config.model.name = "ncsn"
  config.model.nonlinearity = "elu"
  config.model.num_scales = 10
  config.model.sigma_max = 1.0
  config.model.ema_rate = 0.0
  config.optim.lr = 1e-3
  config.optim.warmup = 0
  config.optim.grad_clip = -1.0
  config.training.continuous = False
  config.sampling.predictor = "none"
  config.sampling.corrector = "ald"
  config.sampling.n_steps_each = 100
  config.sampling.snr = 0.316
  return config
