"""ScoreFlow on ImageNet, 32 px (VP; Song et al. 2021b, Table 2). tensorflow-datasets has the images."""

from configs.vp import cifar10_ddpmpp_deep_likelihood


def get_config():
  config = cifar10_ddpmpp_deep_likelihood.get_config()
  config.data.dataset = "downsampled_imagenet/32x32"
  config.model.num_res_blocks = 4
  config.training.n_iters = 1300001
  return config
