"""Series of an autoregression, 64 x 1, with an NCSN++ in one dimension; five minutes on one core."""

from configs.array import base


def get_config():
  config = base.ncsnpp()
  config.data.path = "configs/array/data.py:ar2"

  config.model.nf = 32
  config.model.ch_mult = (1, 2, 2)

  config.training.batch_size = 64
  config.training.n_iters = 3000

  config.eval.batch_size = 250
  config.eval.num_examples = 250
  return config
