"""The noise-conditional WideResNet-28-10 of Song et al. 2021, Appendix I, on CIFAR-10 under the VE SDE."""

from configs.classifier import base
from configs.ve import cifar10_ncsnpp_continuous


def get_config():
  config = base.of(cifar10_ncsnpp_continuous.get_config(), num_classes=10)
  config.training.n_iters = 200001
  return config
