"""Base of the small configs: options that suit all three SDEs without a change.

The network's input and output are scaled to unit variance at every noise level (EDM preconditioning), and it gets the
noise-to-signal ratio. So it does not matter which SDE made the noise.
"""

from score_sde.run.config import default_config


def get_config():
  config = default_config()
  config.data.random_flip = False

  config.model.parameterization = "edm"
  config.model.conditioning = "sigma"
  config.model.embedding_type = "fourier"
  config.model.fourier_scale = 0.2
  config.model.dropout = 0.0
  config.model.ema_warmup = True

  config.optim.lr = 1e-3
  config.optim.warmup = 200
  config.optim.decay = "cosine"

  config.training.sde = "vpsde"
  config.training.stratified = True
  config.training.weighting = "edm"
  config.training.time_sampling = "lognormal"
  config.training.final_report = True

  # Langevin steps double the evaluations of VE's samplers.
  config.sampling.corrector = "none"

  config.eval.enable_bpd = True
  return config
