"""Base of the consistency models on CIFAR-10: EDM's networks and data, with the optimizer of the papers."""


def from_edm(edm):
  """Returns the config of the module `edm`, changed from a score model to a consistency model."""
  config = edm.get_config()
  config.data.random_flip = True
  config.training.augment = 0.0
  config.training.weighting = None
  config.training.time_sampling = None
  config.training.task = "consistency"
  config.training.snapshot_freq = 10000

  config.model.ema_rate = 0.9999

  config.optim.optimizer = "RAdam"
  config.optim.lr = 1e-4
  config.optim.warmup = 0

  config.sampling.method = "consistency"
  config.sampling.grid = "log_snr"
  return config
