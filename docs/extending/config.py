"""A run of nothing but one's own parts: see docs/extending.md."""

import pathlib

from configs.toy import base

MINE = pathlib.Path(__file__).parent / "mine.py"


def get_config():
  config = base.get_config()
  config.training.sde = f"{MINE}:quadratic"
  config.model.name = f"{MINE}:sines"
  config.model.conditioning = "log_sigma"
  config.data.dataset = f"{MINE}:ring"
  config.sampling.method = f"{MINE}:midpoint"
  config.sampling.num_steps = 50
  config.training.weighting = f"{MINE}:little_noise_first"
  config.eval.metrics = f"{MINE}:radius"

  config.training.n_iters = 3000
  config.eval.enable_sampling = True
  config.eval.num_samples = 2000
  config.eval.num_examples = 100
  return config
