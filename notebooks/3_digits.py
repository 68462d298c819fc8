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
from configs import quickstart
from score_sde.run import checkpoints, data
from score_sde.run.report import curves
from score_sde.batch import example_keys
from score_sde.run.config import signature
from score_sde.run.experiment import build
from score_sde.likelihood import bits_per_dim, encoder, interpolate, log_likelihood
from score_sde.sampling import few_step, make_grid
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
# The experiment has every part as a plain object: the SDE, the network as a model of the score, the data.

# %%
experiment = build(config)
config = experiment.config
with checkpoints.manager(workdir) as opened:
  _, items = checkpoints.restore(opened, {"ema_params": experiment.abstract_params()}, signature(config), workdir)
sde, score = experiment.sde, experiment.score(items["ema_params"])


def show(images, columns, title):
  """A grid of digits (N, 8, 8, 1) on the scale of the data."""
  images = np.clip(np.asarray(data.inverse(config, images))[..., 0], 0, 1)
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
sample = few_step(sde, make_grid("log_snr", sde, 19, 1e-3), "unipc")
x, info = sample(score, jax.random.key(0), (64, *experiment.shape))
show(x, 16, f"samples, {info['nfe']} evaluations each")

# %% [markdown]
# ## Encode and decode
#
# The probability-flow ODE carries every digit to a latent that looks like noise, and back.

# %%
source = data.load(config, "test")
real = data.prepare(
  config, example_keys(jax.random.key(1), jnp.arange(16)), source.gather(np.arange(16))["image"], train=False
)
encode, decode = encoder(sde, eps=1e-3)
latents, _ = encode(score, real)
back, _ = decode(score, latents)
show(jnp.concatenate([real, latents / 3, back]), 16, "test digits, their latents (a third), and decoded again")
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
between = interpolate(latents[first[:4]], latents[first[-4:]], weights)  # (12, 4, ...)
decoded, _ = decode(score, between.reshape(-1, *experiment.shape))
rows = decoded.reshape(12, 4, *experiment.shape).swapaxes(0, 1)
show(rows.reshape(48, *experiment.shape), 12, "from latent to latent")

# %% [markdown]
# ## Score them
#
# Exact log-likelihoods in bits per dimension of test digits; and of digits upside down, which the model has never
# seen.

# %%
log_p = log_likelihood(sde, eps=1e-5)
count = 80
indices = np.arange(count)
raw = source.gather(indices)["image"]
keys = example_keys(jax.random.key(2), jnp.arange(count))
figure, axes = plt.subplots(figsize=(6, 3.2))
for name, images in (("test digits", raw), ("upside down", raw[:, ::-1])):
  prepared = data.prepare(config, keys, images, train=False)
  value, _, nfe, _ = log_p(score, keys, prepared)
  bits = bits_per_dim(value, 64, config.data.levels, 0.5)
  axes.hist(np.asarray(bits), bins=25, alpha=0.6, label=f"{name}: {bits.mean():.2f} ± {bits.std() / count**0.5:.2f}")
axes.set(xlabel="bits/dim", title=f"{count} digits, {float(nfe.mean()):.0f} evaluations each")
axes.legend()
plt.show()
