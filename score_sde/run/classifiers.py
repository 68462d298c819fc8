"""Trained classifiers, for guidance and as feature extractors."""

from ml_collections import ConfigDict

from score_sde.run import checkpoints, devices
from score_sde.run.config import BadInput, signature
from score_sde.run.config.plugins import is_plugin
from score_sde.run.experiment import Experiment, Params, build
from score_sde.run.loading import read_config


def load_classifier(workdir: str, user: ConfigDict | None = None) -> tuple[Experiment, Params]:
  """Returns the classifier that was trained in `workdir`, and its parameters.

  Code that its config names is run only where the `user`'s own config names it, too.

  Raises:
    BadInput: where there is none.
  """
  allowed = [v for v in (user.training.sde, user.data.dataset) if is_plugin(v)] if user is not None else []
  try:
    config = read_config(workdir, allowed=allowed)
  except BadInput as error:
    if "holds no trained model" not in str(error):
      raise
    raise BadInput(
      f"{workdir!r} holds no trained classifier. Train one: python run.py --config=configs/classifier/digits.py "
      "--workdir=FOLDER (or fashion_mnist.py, cifar10.py)."
    ) from error
  if config.training.task != "classifier":
    raise BadInput(f"{workdir!r} was trained as a model of scores, not as a classifier.")
  classifier = build(config)
  with checkpoints.manager(workdir) as manager:
    targets = {"ema_params": classifier.abstract_params()}
    found = checkpoints.restore(manager, targets, signature(classifier.config), workdir)
  assert found is not None
  return classifier, devices.local(found[1]["ema_params"])
