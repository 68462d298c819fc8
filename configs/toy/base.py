"""Base of the 2-D toys: a small MLP that learns any of them in about a minute on two CPU cores."""

from configs import small


def get_config():
  config = small.get_config()
  config.data.dataset = "swiss_roll"

  config.model.name = "mlp"
  config.model.nf = 128
  config.model.num_res_blocks = 3
  config.model.sigma_data = 1.0

  config.training.batch_size = 512
  config.training.n_iters = 4000
  config.training.n_jitted_steps = 20
  config.training.log_freq = 100
  config.training.eval_freq = 200
  config.training.snapshot_freq = 2000
  config.training.snapshot_freq_for_preemption = 1000

  config.sampling.num_steps = 500
  config.sampling.num_samples = 2000

  config.eval.batch_size = 2000
  config.eval.probe = "exact"
  config.eval.num_examples = 1000
  return config
