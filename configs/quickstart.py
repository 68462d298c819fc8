"""Handwritten digits, 8 x 8, in five minutes on two CPU cores: `--config.training.sde=vpsde|vesde|subvpsde`.

A residual MLP sees 64 gray levels at once. Its input and output are scaled to unit variance at every noise level (EDM
preconditioning), so that one network suits all three SDEs.
"""

from score_sde.config import default_config


def get_config():
  config = default_config()
  config.data.dataset = "digits"
  config.data.image_size = 8
  config.data.num_channels = 1
  config.data.random_flip = False  # a mirrored digit is no digit
  config.data.uniform_dequantization = True  # for bits/dim

  config.model.name = "mlp"
  config.model.ema_warmup = True
  config.model.nf = 512
  config.model.num_res_blocks = 3
  config.model.dropout = 0.0
  config.model.parameterization = "edm"
  config.model.conditioning = "sigma"
  config.model.embedding_type = "fourier"
  config.model.fourier_scale = 0.2

  config.optim.lr = 1e-3
  config.optim.warmup = 200
  config.optim.decay = "cosine"

  config.training.sde = "vpsde"
  config.training.batch_size = 128
  config.training.n_iters = 4000
  config.training.n_jitted_steps = 10
  config.training.log_freq = 50
  config.training.eval_freq = 100
  config.training.snapshot_freq = 2000
  config.training.snapshot_freq_for_preemption = 500
  config.training.stratified = True
  config.training.final_report = True

  config.sampling.num_steps = 500
  config.sampling.num_samples = 64

  config.eval.batch_size = 360
  config.eval.enable_bpd = True
  return config
