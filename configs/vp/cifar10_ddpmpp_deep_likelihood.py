"""ScoreFlow on CIFAR-10 (deep, VP): likelihood weighting, importance sampling of t (Song et al. 2021b, Table 2)."""

from configs.vp import cifar10_ddpmpp_deep_continuous


def get_config():
  config = cifar10_ddpmpp_deep_continuous.get_config()
  config.data.uniform_dequantization = True
  config.training.likelihood_weighting = True
  config.training.importance_sampling = True
  config.eval.enable_bpd = True
  config.eval.num_repeats = 5
  return config
