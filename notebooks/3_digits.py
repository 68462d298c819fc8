# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 3. Digits: train, sample, encode, interpolate, score
#
# The 1,797 handwritten digits of scikit-learn under the VP SDE, from a config to bits per dimension. It is what
# `python run.py --config=configs/quickstart.py --workdir=runs/quickstart` does, with a quarter of the steps, and with
# the model in hand.

# %%
import contextlib
import io
import sys
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import logging

sys.path.insert(0, "..")  # where configs/ lies
import score_sde as ss
from configs import quickstart
from score_sde.run import data
from score_sde.run.report import curves
from score_sde.run.training import train

logging.set_verbosity(logging.ERROR)  # checkpoints narrate
plt.rcParams.update({"figure.dpi": 70, "axes.titlesize": 11})

config = quickstart.get_config()
config.training.n_iters = 700
config.training.snapshot_freq = 700
config.training.final_report = False
config.training.snapshot_sampling = False
workdir = tempfile.mkdtemp()
with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
  train(config, workdir)

# %%
rows = curves.read(workdir)
figure, axes = plt.subplots(figsize=(6, 3.2))
axes.plot([r["step"] for r in rows], [r["loss"] for r in rows])
axes.set(xlabel="step", title="training loss", ylim=(0, None))
plt.show()

# %% [markdown]
# `score_sde.load` returns the trained model: its methods take and return images in [0, 1], and `model.score` is the
# score that every function of the library takes.

# %%
model = ss.load(workdir)


def show(images, columns, title):
  """Draws a grid of digits (N, 8, 8, 1) in [0, 1]."""
  images = np.clip(np.asarray(images)[..., 0], 0, 1)
  rows = len(images) // columns
  images = np.pad(images, ((0, 0), (1, 1), (1, 1)), constant_values=0.3)
  picture = images.reshape(rows, columns, 10, 10).transpose(0, 2, 1, 3).reshape(10 * rows, 10 * columns)
  axes = plt.figure(figsize=(0.5 * columns, 0.5 * rows + 0.4)).add_subplot()
  axes.imshow(picture, cmap="gray", vmin=0, vmax=1)
  axes.set(xticks=[], yticks=[], title=title)
  plt.show()


# %% [markdown]
# ## Samples
#
# Twenty evaluations of the network each, by UniPC.

# %%
show(model.sample(jax.random.key(0), 64, solver=ss.UniPC(), steps=20), 16, "samples, 20 evaluations each")

# %% [markdown]
# ## Encode and decode
#
# The probability-flow ODE carries every digit to a latent that looks like noise, and back.

# %%
source = data.load(config, "test")
real = source.gather(np.arange(16))["image"] / 16.0  # 17 gray levels
latents = model.encode(real)
back = model.decode(latents)
show(jnp.concatenate([real, 0.5 + latents / 6, back]), 16, "test digits, their latents, and decoded again")
print(f"largest difference: {float(jnp.abs(back - real).max()):.1e}, latents' standard deviation {latents.std():.2f}")

# %% [markdown]
# ## Interpolate
#
# On the great circle between two latents, everything decodes to digits; straight in between the pixels it would
# not.

# %%
weights = jnp.linspace(0, 1, 12)
labels = source.gather(np.arange(16))["label"]
kinds, first = np.unique(labels, return_index=True)
print("from", labels[first[:4]], "to", labels[first[-4:]])
between = ss.interpolate(latents[first[:4]], latents[first[-4:]], weights)  # (12, 4, ...)
decoded = model.decode(between.reshape(-1, *model.shape))
rows = decoded.reshape(12, 4, *model.shape).swapaxes(0, 1)
show(rows.reshape(48, *model.shape), 12, "from latent to latent")

# %% [markdown]
# ## Score them
#
# Exact log-likelihoods in bits per dimension of test digits; and of digits upside down, which the model has never
# seen.

# %%
count = 80
indices = np.arange(count)
raw = source.gather(indices)["image"]
figure, axes = plt.subplots(figsize=(6, 3.2))
for name, images in (("test digits", raw), ("upside down", raw[:, ::-1])):
  bits = model.bits_per_dim(jax.random.key(2), images / 16.0)
  axes.hist(np.asarray(bits), bins=25, alpha=0.6, label=f"{name}: {bits.mean():.2f} ± {bits.std() / count**0.5:.2f}")
axes.set(xlabel="bits/dim", title=f"{count} digits")
axes.legend()
plt.show()
