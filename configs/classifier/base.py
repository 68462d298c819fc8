"""Base of configs of classifiers: data, SDE and training of a config of a score model, and a WideResNet."""

from ml_collections import ConfigDict

from score_sde.run.config import default_config

_KEPT = ("sigma_min", "sigma_max", "beta_min", "beta_max", "cosine_s", "delta", "num_scales", "ema_rate", "ema_warmup")


def of(config: ConfigDict, num_classes: int) -> ConfigDict:
  """Turns the `config` of a score model into that of a classifier of the same noisy data, and returns it."""
  model = default_config().model
  for name in _KEPT:
    model[name] = config.model[name]
  model.name = "wideresnet"
  model.num_classes = num_classes
  config.model = model
  config.training.task = "classifier"
  config.training.stratified = True
  config.training.time_sampling = "uniform"
  config.eval.enable_bpd = False
  return config
