"""Base of the configs for arrays: floats and integers of any shape, see docs/data.md."""

from configs import small


def get_config():
  config = small.get_config()
  config.data.dataset = "array"

  config.training.snapshot_freq = 1000
  config.training.snapshot_freq_for_preemption = 500

  config.sampling.method = "unipc"
  config.sampling.num_steps = 30
  return config


def ncsnpp():
  """Returns the base with a small NCSN++, for series and fields."""
  config = get_config()
  config.model.nf = 16
  config.model.ch_mult = (1, 2)
  config.model.num_res_blocks = 1
  config.model.attn_resolutions = ()
  config.model.resblock_type = "biggan"
  config.model.progressive_input = "none"

  config.training.n_jitted_steps = 1
  return config
