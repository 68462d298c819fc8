"""Image files of your own, 32 x 32 in colour: `--config=configs/folder.py:FOLDER`; subfolders are classes.

A small NCSN++ under VP: an hour on one CPU core, minutes on a GPU, which also has room for a larger network
(`--config.model.nf=128 --config.training.batch_size=128 --config.training.n_iters=100000`).
"""

import os

from configs import small
from score_sde.run.data.folders import layout, open_folder


def get_config(path=""):
  path = os.path.expanduser(path)
  config = small.get_config()
  config.data.dataset = "folder"
  config.data.path = path
  config.data.image_size = 32
  config.data.num_channels = 3
  config.data.uniform_dequantization = True  # for bits/dim
  config.data.random_flip = True

  config.model.nf = 32
  config.model.ch_mult = (1, 2, 2)
  config.model.num_res_blocks = 1
  config.model.attn_resolutions = (8,)
  config.model.resblock_type = "biggan"
  config.model.progressive_input = "residual"
  config.model.fir = True
  config.model.dropout = 0.05
  classes = len(layout(open_folder(path)).classes) if path else 1
  config.model.num_classes = classes if classes > 1 else 0

  config.training.batch_size = 32
  config.training.n_iters = 4000
  config.training.n_jitted_steps = 1  # a step takes 0.6 s on a CPU, so more would only cost compile time
  config.training.snapshot_freq = 500
  config.training.snapshot_freq_for_preemption = 200

  config.sampling.method = "dpm_solver_sde"
  config.sampling.num_steps = 50
  config.sampling.num_samples = 64

  config.eval.batch_size = 64
  config.eval.num_examples = 128
  return config
