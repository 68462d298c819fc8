"""A classifier of clean garments, for metrics of samples (eval.features): ten minutes on two CPU cores."""

from configs.classifier import fashion_mnist


def get_config():
  config = fashion_mnist.get_config()
  config.training.time_sampling = "single"
  config.training.single_sigma = 0.01
  config.training.n_iters = 2000
  config.optim.decay = "cosine"
  config.eval.num_examples = 10000
  return config
