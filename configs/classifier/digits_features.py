"""A classifier of clean digits, for metrics of samples (eval.features): one minute on two CPU cores."""

from configs.classifier import digits


def get_config():
  config = digits.get_config()
  config.training.time_sampling = "single"
  config.training.single_sigma = 0.01
  config.training.n_iters = 600
  config.training.snapshot_freq = 200
  config.optim.decay = "cosine"
  return config
