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
# # 2. From NCSN and DDPM to one SDE
#
# NCSN adds noise of growing variance, DDPM shrinks the data as it adds noise. With more and smaller steps both
# become stochastic differential equations (Song et al. 2021), and everything else follows from the SDE and the
# score: the reverse-time SDE, and an ordinary differential equation with the same densities at every time. In one
# dimension, all of it fits into a picture.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from score_sde import analytic
from score_sde.batch import example_keys
from score_sde.run.sampler import stepping
from score_sde.sampling import AdaptiveODE, PredictorCorrector
from score_sde.sde import VE, VP, RectifiedFlow, SubVP, simulate

plt.rcParams.update({"figure.dpi": 55, "axes.titlesize": 11})

data = analytic.GaussianMixture(means=[[-1.0], [0.9]], covariances=[[[0.02]], [[0.04]]], weights=[0.4, 0.6])
family = {"VE": VE(0.01, 6.0), "VP": VP(), "sub-VP": SubVP(), "rectified flow": RectifiedFlow()}

# %% [markdown]
# ## Chains tend to SDEs
#
# NCSN: (sigma_i² - sigma_{i-1}²) / dt against g², and DDPM: the product alpha-bar against exp(-∫ beta). Both errors
# fall as 1 / N.

# %%
counts = np.array([25, 50, 100, 200, 400, 800, 1600])
ncsn_error, ddpm_error = [], []
for n in counts:
  sigma = VE().levels(n)[1][::-1]
  g = np.asarray(VE().diffusion(None, jnp.arange(1, n) / (n - 1)))
  ncsn_error.append(np.abs((sigma[1:] ** 2 - sigma[:-1] ** 2) * (n - 1) / g**2 - 1).max())
  t = (np.arange(n) + 1) / n
  exact = np.exp(-np.asarray(VP().integral(jnp.asarray(t))))
  ddpm_error.append(np.abs(VP().levels(n)[0] ** 2 - exact).max())
figure, axes = plt.subplots(figsize=(5.5, 4))
axes.loglog(counts, ncsn_error, "o-", label="NCSN: |Δsigma² / (g² dt) - 1|")
axes.loglog(counts, ddpm_error, "s-", label="DDPM: |alpha-bar - exp(-∫ beta)|")
axes.loglog(counts, 10 / counts, "k:", label="1 / N")
axes.set(xlabel="number of noise levels N", title="largest difference from the SDE")
axes.legend()
plt.show()

# %% [markdown]
# ## Forward, back, and without noise
#
# The shade is the exact density p_t(x) at each time, each column on its own scale. From left to right: paths of the
# forward SDE from data to noise; the reverse-time SDE from noise to data; and the probability-flow ODE, whose paths
# never cross.

# %%
times = np.linspace(0, 1, 101)
paths = 12
keys = example_keys(jax.random.key(1), jnp.arange(paths))


def forward_paths(sde, x0):
  """x at all `times`: each from the one before by the exact transition."""
  x, kept = x0, [x0]
  for i, (s, t) in enumerate(zip(times[:-1] * sde.T, times[1:] * sde.T, strict=True)):
    ratio, std = sde.transition(jnp.full(paths, s), jnp.full(paths, t))
    z = jax.random.normal(jax.random.fold_in(jax.random.key(2), i), x.shape)
    x = ratio[:, None] * x + std[:, None] * z
    kept.append(x)
  return np.stack(kept)[..., 0]


figure, panels = plt.subplots(len(family), 3, figsize=(14, 3 * len(family)), sharex=True)
for row, (name, sde) in zip(panels, family.items(), strict=True):
  score, eps = data.score(sde), 1e-3
  limit = 2.2 if name != "VE" else 12.0
  heights = jnp.linspace(-limit, limit, 201)
  shade = np.stack(
    [jnp.exp(data.log_density(sde, heights[:, None], jnp.full(201, max(t * sde.T, eps)))) for t in times], axis=1
  )
  x0 = data.sample(jax.random.key(3), paths)
  sample = stepping(PredictorCorrector("euler_maruyama", "none"), sde, 400)
  _, info = sample(score, jax.random.key(4), (paths, 1), frames=100)
  reverse = [(t, x[:, 0]) for t, x, _ in info["trajectory"]]
  noise = sde.prior_sample(keys, (paths, 1))
  path_times = np.linspace(sde.T, eps, 101).tolist()
  move = lambda x, sde=sde, score=score, ts=path_times: AdaptiveODE().move(sde, score, x, sde.T, eps, times=ts)
  ode, nfe, _ = jax.jit(move)(noise)
  curves = (
    (times * sde.T, forward_paths(sde, x0)),
    (np.array([t for t, _ in reverse]), np.stack([x for _, x in reverse])),
    (np.linspace(sde.T, eps, 101), np.asarray(ode)[..., 0].T),
  )
  for axes, (t, x), title in zip(row, curves, ("forward SDE", "reverse-time SDE", "probability-flow ODE"), strict=True):
    axes.pcolormesh(times * sde.T, heights, shade / shade.max(axis=0), cmap="Blues", shading="nearest", rasterized=True)
    axes.plot(t, x, linewidth=0.8)
    axes.set(ylim=(-limit, limit), title=f"{name}: {title}")
  row[0].set_ylabel("x")
for axes in panels[-1]:
  axes.set_xlabel("t")
figure.tight_layout()
plt.show()

# %% [markdown]
# ## One score, many samplers
#
# All of them sample the same law. Here 20,000 samples of the VP SDE by each, against the data's density:

# %%
sde = family["VP"]
score = data.score(sde)
draws = {}
for name, options in {
  "Euler-Maruyama": {"predictor": "euler_maruyama"},
  "ancestral (DDPM)": {"predictor": "ancestral_sampling"},
  "probability flow": {"predictor": "euler_maruyama", "probability_flow": True},
}.items():
  sample = stepping(PredictorCorrector(corrector="none", **options), sde, 100, "log_snr")
  draws[name] = np.asarray(sample(score, jax.random.key(5), (20_000, 1))[0])[:, 0]
line = jnp.linspace(-2, 2, 400)
figure, axes = plt.subplots(figsize=(7, 4))
axes.fill_between(
  line, jnp.exp(data.log_density(sde, line[:, None], jnp.full(400, 1e-4))), alpha=0.25, label="density of the data"
)
for name, values in draws.items():
  axes.hist(values, bins=100, range=(-2, 2), density=True, histtype="step", label=name)
axes.legend()
axes.set(xlabel="x", title="100 evaluations of the score")
plt.show()

# %% [markdown]
# ## A drift that nobody integrated
#
# The SDE need not be one of the four. With a drift and a diffusion alone, paths are simulated, and the score is
# learned from them by sliced score matching (`configs/toy/double_well.py`). Here only the forward paths: data in
# one well of two.

# %%
import dataclasses

from score_sde.sde import SDE


@dataclasses.dataclass(frozen=True)
class DoubleWell(SDE):
  """dx = -4 (x³ - x) dt + dw."""

  def drift(self, x, t):
    return -4 * (x**3 - x)

  def diffusion(self, x, t):
    return jnp.full(t.shape, 1.6)


n = 20_000
x0 = 0.9 + 0.1 * jax.random.normal(jax.random.key(0), (n, 1))
many = example_keys(jax.random.key(1), jnp.arange(n))
figure, axes = plt.subplots(figsize=(7, 4))
for t in (0.05, 0.2, 1.0):
  x = simulate(DoubleWell(), many, x0, jnp.full(n, t), 200)
  axes.hist(np.asarray(x)[:, 0], bins=100, range=(-2.2, 2.2), density=True, histtype="step", label=f"t = {t}")
axes.legend()
axes.set(xlabel="x", title="an Itô process in a double well, simulated")
plt.show()
