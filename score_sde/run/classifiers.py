"""Loading of trained classifiers, for guidance and for feature extraction."""

from ml_collections import ConfigDict

from score_sde.run import checkpoints, devices
from score_sde.run.config import BadInput, signature
from score_sde.run.config.plugins import is_plugin
from score_sde.run.experiment import Experiment, Params, build
from score_sde.run.loading import read_config


def load_classifier(workdir: str, user: ConfigDict | None = None) -> tuple[Experiment, Params]:
  """Returns the classifier trained in `workdir`, and its EMA parameters.

  The classifier's config may name code to run (FILE.py:FUNCTION). It is run only if the config `user` names it, too.

  Raises:
    BadInput: if `workdir` holds no trained classifier.
  """
  sections = [s for s in user.values() if isinstance(s, ConfigDict)] if user is not None else []
  allowed = [v for s in sections for v in s.values() if is_plugin(v)]
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
