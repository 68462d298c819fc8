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
# # 6. Your own arrays
#
# From a file of numbers to samples, scores, likelihoods and a conditional posterior, in Python alone. The same works
# for series (N, L, C), images (N, H, W, C) and volumes (N, D, H, W, C): see docs/data.md.

# %%
import contextlib
import io
import os
import sys
import tempfile

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from absl import logging

sys.path.insert(0, "..")  # where configs/ lies
import score_sde as ss
from configs import small
from score_sde.run import training

logging.set_verbosity(logging.ERROR)  # checkpoints narrate
plt.rcParams.update({"figure.dpi": 60, "axes.titlesize": 10})

# %% [markdown]
# ## The file
#
# Points on two rings, in units of their own, and for each a `condition`: a measurement of the horizontal place with an
# error of 8.

# %%
rng = np.random.default_rng(0)
n = 20_000
radius = np.where(rng.uniform(size=n) < 0.5, 40.0, 80.0) + 2 * rng.standard_normal(n)
angle = rng.uniform(0, 2 * np.pi, n)
x = np.stack([300 + radius * np.cos(angle), -100 + radius * np.sin(angle)], axis=1)
measured = x[:, :1] + 8 * rng.standard_normal((n, 1))

folder = tempfile.mkdtemp()
np.savez(os.path.join(folder, "rings.npz"), x=x, condition=measured)

# %% [markdown]
# ## Training
#
# `data.dataset=array` reads the file and scales each column to mean 0 and standard deviation 1. A tenth is held out. A
# share of the examples is trained without the condition (`model.condition_dropout`), so one network knows the points
# with and without a measurement.

# %%
config = small.get_config()
config.data.dataset = "array"
config.data.path = os.path.join(folder, "rings.npz")
config.model.name = "mlp"
config.model.nf = 96
config.model.num_res_blocks = 2
config.model.condition_dropout = 0.2
config.training.batch_size = 256
config.training.n_iters = 3000
config.training.n_jitted_steps = 50
config.training.log_freq = config.training.eval_freq = config.training.snapshot_freq_for_preemption = 1000
config.training.snapshot_freq = 3000
config.training.snapshot_sampling = config.training.final_report = False

workdir = os.path.join(folder, "run")
with contextlib.redirect_stderr(io.StringIO()):  # the progress bar
  training.train(config, workdir)

# %% [markdown]
# ## Samples, in the units of the file
#
# Without a condition they follow the whole data.

# %%
model = ss.load(workdir)
samples = model.sample(jax.random.key(0), 3000)
figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
for axis, points, title in zip(axes, (x[:3000], samples), ("data", "samples"), strict=True):
  axis.plot(*np.asarray(points).T, ".", ms=1.5)
  axis.set(title=title, aspect="equal")
plt.show()
print("mean", np.mean(samples, axis=0).round(1), "of the data", x.mean(axis=0).round(1))

# %% [markdown]
# ## The score
#
# It points to where the density of the noisy data rises. `model.score(x, t)` takes points on the scale of the network.

# %%
side = np.linspace(-2, 2, 17)
grid = np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2).astype(np.float32)
figure, axes = plt.subplots(1, 3, figsize=(12, 4))
for axis, t in zip(axes, (0.02, 0.1, 0.4), strict=True):
  arrows = np.asarray(model.score(grid, jnp.full(len(grid), t)))
  axis.quiver(*grid.T, *(arrows / np.linalg.norm(arrows, axis=1, keepdims=True) ** 0.6).T, width=0.004)
  axis.set(title=f"score at t = {t}", aspect="equal")
plt.show()

# %% [markdown]
# ## Likelihoods
#
# Log-densities are those of the file's units: the Jacobian of the scaling is in them. So the density integrates to 1.

# %%
horizontal, vertical = np.linspace(200, 400, 41), np.linspace(-200, 0, 41)
places = np.stack(np.meshgrid(horizontal, vertical), axis=-1)
log_p = np.asarray(model.log_likelihood(jax.random.key(1), places.reshape(-1, 2).astype(np.float32), probe="exact"))
density = np.exp(log_p).reshape(places.shape[:2])
mass = density.sum() * (horizontal[1] - horizontal[0]) * (vertical[1] - vertical[0])
plt.figure(figsize=(4.5, 4))
plt.pcolormesh(horizontal, vertical, density)
plt.colorbar(label="density")
plt.title(f"mass on the picture: {mass:.3f}")
plt.gca().set_aspect("equal")
plt.show()

# %% [markdown]
# ## A posterior
#
# Where can a point be whose horizontal place was measured as 340? On the inner ring near its right end, or on two arcs
# of the outer one. The data with such measurements show the same.

# %%
value = 340.0
posterior = np.asarray(model.sample(jax.random.key(2), 3000, condition=[value]))
near = x[np.abs(measured[:, 0] - value) < 1.5]
figure, axes = plt.subplots(1, 2, figsize=(8, 4), sharex=True, sharey=True)
for axis, points, title in zip(axes, (near, posterior), ("data measured near 340", "samples given 340"), strict=True):
  axis.plot(*points.T, ".", ms=2)
  axis.set(title=title, aspect="equal", xlim=(200, 400), ylim=(-200, 0))
plt.show()
outer = lambda points: np.mean(np.hypot(points[:, 0] - 300, points[:, 1] + 100) > 60)
print(f"share on the outer ring: {outer(posterior):.2f}, of the data {outer(near):.2f}")
