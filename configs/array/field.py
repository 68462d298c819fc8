"""Gaussian random fields, 64 x 32, with an NCSN++; twenty minutes on one core."""

from configs.array import base


def get_config():
  config = base.ncsnpp()
  config.data.path = "configs/array/data.py:field"

  config.model.ch_mult = (1, 2, 2, 2)

  config.training.batch_size = 16
  config.training.n_iters = 4000
  # Along their principal axes, the standardized data have standard deviations from 0.3 to 9. The noise covers them all.
  config.training.p_mean = 0.4
  config.training.p_std = 1.5

  config.sampling.num_samples = 16
  config.eval.batch_size = 32
  config.eval.num_examples = 64
  config.eval.num_probes = 8  # one probe of 2,048 dimensions has an error of 28 nats
  return config
