"""A table, scikit-learn's 178 wines with 13 measurements, by cultivar, with an MLP; a minute on one core."""

from configs.array import base


def get_config():
  config = base.get_config()
  config.data.path = "configs/array/data.py:wine"

  config.model.name = "mlp"
  config.model.nf = 128
  config.model.num_res_blocks = 2
  config.model.dropout = 0.2  # there are few wines
  config.model.num_classes = 3

  config.training.batch_size = 160
  config.training.n_iters = 2000
  config.training.n_jitted_steps = 20
  config.training.log_freq = 100
  config.training.eval_freq = 200

  config.sampling.num_samples = 999
  return config
