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
# # 4. Conditional generation
#
# By Bayes' rule the score of a posterior is the score of the prior plus that of the likelihood,
#
# $$\nabla \log p_t(x \mid y) = \nabla \log p_t(x) + \nabla \log p_t(y \mid x),$$
#
# and what comes out is a score again: every sampler takes it. So one model of images, trained once, fills in what is
# missing, raises resolutions and follows classes. What has to be found is $p_t(y \mid x)$, the likelihood of clean
# data's properties given a noisy $x$.

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
from score_sde import analytic
from score_sde.batch import example_keys, expand, normal
from score_sde.guidance import (
  DDRM,
  DPS,
  TMPD,
  Analytic,
  ByClassifier,
  ClassifierFree,
  Measurement,
  PiGDM,
  Projection,
  condition_on,
  measure,
  operators,
  put_in,
)
from score_sde.run import data

logging.set_verbosity(logging.ERROR)  # checkpoints narrate
plt.rcParams.update({"figure.dpi": 60, "axes.titlesize": 10})

# %% [markdown]
# ## A posterior in closed form
#
# Three Gaussians in the plane, and a noisy measurement of one direction, $y = a \cdot x_0 + \text{noise}$. The
# posterior is a mixture again, so the methods can be compared with the truth. They differ in what they take for the
# uncertainty of $x_0$ given $x_t$: the mixture's own (analytic), its covariance (TMPD), a number (ΠGDM), a number for
# all of $A x_0$ (DPS); replacement and DDRM have no likelihood, and put a noisy copy of what was measured into the
# state.

# %%
sde, n = ss.VP(), 2000
prior = analytic.GaussianMixture(
  means=[[-1.5, 0.5], [1.2, 0.9], [0.3, -1.2]],
  covariances=[[[0.10, 0.05], [0.05, 0.10]], [[0.20, -0.1], [-0.1, 0.15]], [[0.05, 0.0], [0.0, 0.05]]],
  weights=[0.3, 0.4, 0.3],
)
a, y, noise = np.array([[0.6, 0.8]]), np.array([0.3]), 0.3
posterior = prior.posterior(a, y, noise)
measurement = Measurement(
  operators.matrix(np.tile(a, (n, 1, 1))), jnp.full((n, 1), y[0], jnp.float32), jnp.full(n, noise)
)

by_sde = ss.DPMSolverSDE()
score = prior.score(sde)


def draw(key, score, shape, condition=None, solver=by_sde, **options):
  """Draws samples in 50 evaluations, compiled."""
  run = lambda key, condition: ss.sample(
    key, sde, score, shape, solver=solver, steps=50, condition=condition, **options
  )
  return jax.jit(run)(key, condition)


panels = {"prior": prior.sample(jax.random.key(0), n), "posterior": posterior.sample(jax.random.key(0), n)}
tmpd = TMPD(sde, covariance="full", iterations=1)
methods = {"analytic": Analytic(sde, prior), "TMPD": tmpd, "ΠGDM": PiGDM(sde), "DPS": DPS(sde)}
for name, method in methods.items():
  panels[name] = draw(jax.random.key(1), condition_on(score, method), (n, 2), measurement)
panels["replacement"] = draw(jax.random.key(1), score, (n, 2), solver=Projection()(measurement)(by_sde))
panels["DDRM"] = draw(jax.random.key(1), score, (n, 2), solver=DDRM().given(measurement))

figure, axes = plt.subplots(2, 4, figsize=(12, 6.4), sharex=True, sharey=True)
line = np.linspace(-3, 3, 2)
for axis, (name, x) in zip(axes.flat, panels.items(), strict=True):
  axis.plot(*np.asarray(x).T, ".", markersize=1.5, alpha=0.4)
  axis.plot(line, (y[0] - a[0, 0] * line) / a[0, 1], color="gray", linewidth=0.8)
  parts = np.bincount(np.argmin(np.sum((np.asarray(x)[:, None] - prior.means) ** 2, -1), 1), minlength=3) / n
  axis.set(
    xlim=(-2.8, 2.8), ylim=(-2.4, 2.4), aspect="equal", title=f"{name}: {parts[0]:.2f}, {parts[1]:.2f}, {parts[2]:.2f}"
  )
plt.show()

# %% [markdown]
# The numbers are the shares of the three modes. The analytic likelihood is exact, and the others bring every sample
# to where y may have come from; but they share the modes out as the prior does, more than as the posterior. Where
# $p(x_0 \mid x_t)$ has several modes, one covariance cannot tell which of them the measurement favours.
#
# ## Classes
#
# With a classifier of noisy data, $p_t(y \mid x)$ is what it says. Here it is exact: which Gaussian a noisy point
# came from. Scale 1 is Bayes' rule; a larger one gives what is surer of its class, and less of it.

# %%
parts = [analytic.gaussian(m, c) for m, c in zip(prior.means, prior.covariances, strict=True)]


def logits(params, x, t):
  """Which of the three, up to a constant."""
  return jnp.stack([p.log_density(sde, x, t) for p in parts], axis=1) + jnp.log(jnp.asarray(prior.weights, x.dtype))


labels = jnp.arange(n) % 3
figure, axes = plt.subplots(1, 2, figsize=(8, 3.6), sharex=True, sharey=True)
for axis, scale in zip(axes, (1.0, 10.0), strict=True):
  guided = condition_on(score, ByClassifier(logits, scale), ())
  x = draw(jax.random.key(2), guided, (n, 2), labels)
  axis.scatter(*np.asarray(x).T, c=np.asarray(labels), s=2, cmap="brg")
  axis.set(xlim=(-2.8, 2.8), ylim=(-2.4, 2.4), aspect="equal", title=f"scale {scale:g}")
plt.show()

# %% [markdown]
# ## Digits
#
# A network that saw the class of most training images, and none for a fifth of them, is two scores in one: of a class,
# and of all digits. Half a minute of training.

# %%
config = quickstart.get_config()
config.model.num_classes = 10
config.model.label_dropout = 0.2
config.training.n_iters = 700
config.training.snapshot_freq = 700
config.training.final_report = False
config.training.snapshot_sampling = False
workdir = tempfile.mkdtemp()
from score_sde.run.training import train

with contextlib.redirect_stderr(io.StringIO()):  # its progress bar
  train(config, workdir)

model = ss.load(workdir)
sde, score, shape = model.sde, model.score, model.shape


def show(rows, titles, width=0.75):
  """Digits (N, 8, 8, 1) on the scale of the data, in named columns."""
  columns = [np.clip(np.asarray(model.scaling.inverse(c))[..., 0], 0, 1) for c in rows]
  figure, axes = plt.subplots(
    len(columns[0]), len(columns), figsize=(width * len(columns), width * len(columns[0]) + 0.2)
  )
  for i in range(len(columns[0])):
    for j, column in enumerate(columns):
      axes[i, j].imshow(column[i], cmap="gray", vmin=0, vmax=1)
      axes[i, j].set_axis_off()
      if i == 0:
        axes[i, j].set_title(titles[j], fontsize=8)
  plt.show()


# %% [markdown]
# **Classifier-free guidance**: score + scale (score of the class - score). One column a class.

# %%
labels = jnp.arange(60) % 10
for scale in (1.0, 3.0):
  guided = condition_on(score, ClassifierFree(sde, scale))
  x = draw(jax.random.key(3), guided, (60, *shape), labels)
  show(list(np.asarray(x).reshape(6, 10, 8, 8, 1).swapaxes(0, 1)), [f"{k}" for k in range(10)])

# %% [markdown]
# **Inverse problems** with the score of all digits: half an image missing, and an image at half its resolution, with
# noise. Six test images, three samples of each posterior by ΠGDM, and their mean.

# %%
images = data.load(config, "test").gather(np.arange(6))["image"]
plain = model.scaling.forward(jnp.asarray(images / 16.0, jnp.float32))
known = np.ones((6, 8, 8, 1), np.float32)
known[:, :, 4:] = 0
tasks = {
  "half": (operators.mask(known), 0.0),
  "at half size": (operators.average_pool(6, 8, 2), 0.02),
}
all_digits = jax.tree_util.Partial(lambda score, x, t: score(x, t, -jnp.ones(len(x), jnp.int32)), score)
restore = condition_on(all_digits, PiGDM(sde))
for name, (operator, noise) in tasks.items():
  measurement = measure(example_keys(jax.random.key(5), jnp.arange(6)), operator, plain, noise)
  three = jax.tree.map(lambda v: jnp.repeat(v, 3, axis=0), measurement)
  x = draw(jax.random.key(6), restore, (18, *shape), three)
  x = put_in(three, x).reshape(6, 3, *shape)
  seen = operator.pinv(measurement.y)
  show([plain, seen, x[:, 0], x[:, 1], x[:, 2], x.mean(axis=1)], ["digit", name, "sample", "sample", "sample", "mean"])

# %% [markdown]
# **Editing** (SDEdit): noise up to a time $t_0$ and back. A drawing becomes a digit that looks like it; the more noise,
# the more digit and the less of the drawing.

# %%
drawing = np.zeros((8, 8, 1), np.float32)
drawing[1, 2:6] = drawing[1:7, 4] = 1  # two strokes, a seven perhaps
x0 = jnp.asarray(np.tile(2 * drawing - 1, (4, 1, 1, 1)))
columns, titles = [x0], ["drawing"]
for t0 in (0.3, 0.6):
  keys = example_keys(jax.random.key(7), jnp.arange(4))
  mean, std = sde.marginal(x0, jnp.full(4, t0))
  noisy = mean + expand(std, mean) * normal(keys, mean)
  x = draw(jax.random.key(8), all_digits, x0.shape, t_start=t0, x_T=noisy)
  columns.append(x)
  titles.append(f"$t_0$ = {t0}")
show(columns, titles, width=0.9)

# %% [markdown]
# `python run.py --mode=sample --config.guidance.task=...` does all of this for a trained model and a folder of images;
# `docs/guidance.md` has every method's error against the number of evaluations.
