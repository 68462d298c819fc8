"""A classifier of noisy images of your own, for guidance of a run: `--config=configs/classifier/folder.py:WORKDIR`.

Data, image size, SDE and batch size are those of the run in WORKDIR, and so is the number of classes.
"""

from configs.classifier import base
from score_sde.run import stored
from score_sde.run.config import BadInput
from score_sde.run.storage import path_of
from score_sde.run.workdir import all_class_names


def get_config(workdir=""):
  if not workdir:
    raise BadInput("give the workdir of the score model: --config=configs/classifier/folder.py:WORKDIR")
  folder = path_of(workdir)
  if not (folder / "config.json").is_file():
    raise BadInput(f"{workdir!r} is no run: it has no config.json")
  names = all_class_names(folder)
  if len(names) < 2:
    raise BadInput(f"the data of {workdir!r} have no classes: put the images of each class into a subfolder")
  config = base.of(stored.get_config(str(folder / "config.json")), num_classes=len(names))
  config.model.blocks_per_group = 1
  config.model.channel_multiplier = 2
  config.model.fourier_scale = 0.2

  config.training.n_iters = 3000
  config.training.n_jitted_steps = 1
  config.training.snapshot_freq = 1000
  config.training.snapshot_freq_for_preemption = 500
  return config
