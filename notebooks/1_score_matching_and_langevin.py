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
# # 1. Score matching and Langevin dynamics
#
# The score of a density is the gradient of its logarithm. Two things make it useful: it can be *learned* from
# samples without knowing the density's normalizer (score matching), and it can be *followed* to draw new samples
# (Langevin dynamics).
#
# In two dimensions all of it can be seen, including why neither works well on data as it is, and how many noise
# levels repair both (Song & Ermon 2019).

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import score_sde as ss
from score_sde import analytic
from score_sde.batch import example_keys
from score_sde.losses import ScoreMatching, denoising, explicit, implicit, sliced, sliced_variance_reduced
from score_sde.models import MLP
from score_sde.parameterization import ScoreModel
from score_sde.sde import VE

plt.rcParams.update({"figure.dpi": 70, "axes.titlesize": 11})

# %% [markdown]
# The data: two Gaussians far apart, one with 20% of the mass and one with 80%. Its density and score are known.

# %%
data = analytic.GaussianMixture(
  means=[[-4.0, -4.0], [4.0, 4.0]], covariances=np.tile(0.8 * np.eye(2), (2, 1, 1)), weights=[0.2, 0.8]
)
sde = VE(sigma_min=0.1, sigma_max=12.0)
x = data.sample(jax.random.key(0), 4000)

small = jnp.asarray(1e-9)  # just after t = 0, where sigma is sigma_min
exact = lambda x: data.score(sde)(x, jnp.full(len(x), small))


def grid(n, limit=8.0):
  axis = jnp.linspace(-limit, limit, n)
  return axis, jnp.stack(jnp.meshgrid(axis, axis), axis=-1).reshape(-1, 2)


axis, points = grid(161)
density = jnp.exp(data.log_density(sde, points, jnp.full(len(points), small))).reshape(161, 161)

# %% [markdown]
# ## The same objective, six times
#
# Fisher's divergence ½ E‖s(x) - grad log p(x)‖² needs the score that is to be learned. Integration by parts removes
# it (implicit score matching), random projections make that cheap (sliced), and adding noise makes it a regression
# (denoising). For any field s, all agree up to a constant that does not depend on s. Take s(x) = -x / 20:

# %%
field = lambda x: -x / 20
n, sigma = len(x), sde.sigma_min
z = jax.random.normal(jax.random.key(1), x.shape)
noisy = x + sigma * z
v = jax.random.rademacher(jax.random.key(2), (1, *x.shape), x.dtype)
constant = 0.5 * jnp.sum(exact(noisy) ** 2, axis=1)  # of ISM and SSM against ESM
noise = 0.5 * jnp.sum(z**2, axis=1) / sigma**2  # of DSM
rows = {
  "explicit": explicit(field, exact, noisy),
  "implicit + ½ E|score|²": implicit(field, noisy) + constant,
  "sliced + ½ E|score|²": sliced(field, noisy, v) + constant,
  "sliced, variance-reduced + ½ E|score|²": sliced_variance_reduced(field, noisy, v) + constant,
  "denoising - (½ D / sigma² - ½ E|score|²)": denoising(field, x, z, sigma) - noise + constant,
}
for name, value in rows.items():
  print(f"{name:42} {value.mean():.3f} ± {value.std() / np.sqrt(n):.3f}")

# %% [markdown]
# ## Learned at one noise level
#
# A small network, trained by denoising score matching at the smallest noise level alone. Where there is data, it
# learns the score. Where there is none, nothing tells it what the score is.


# %%
def train(loss, model, steps=1200, batch=512):
  """Parameters after `steps` of Adam on fresh data."""
  network = MLP(nf=64, num_res_blocks=2, fourier_scale=0.2)
  params = network.init(jax.random.key(0), jnp.zeros((1, 2)), jnp.ones(1))["params"]
  optimizer = optax.adam(optax.cosine_decay_schedule(3e-3, steps))

  def step(carry, i):
    params, state = carry
    key = jax.random.fold_in(jax.random.key(1), i)
    x0, keys = data.sample(key, batch), example_keys(key, jnp.arange(batch))
    gradient = jax.grad(lambda p: loss(p, keys, x0, jnp.arange(batch), batch).mean())(params)
    updates, state = optimizer.update(gradient, state)
    return (optax.apply_updates(params, updates), state), None

  run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps))[0])
  return run((params, optimizer.init(params)))[0]


network = MLP(nf=64, num_res_blocks=2, fourier_scale=0.2)
model = ScoreModel(
  sde, lambda params, x, labels, keys: network.apply({"params": params}, x, labels), "edm", "sigma", sigma_data=4.0
)
one_level = train(ScoreMatching(model, time_sampling="single", single_sigma=0.101), model)

# %%
learned = lambda x: model.score(one_level, x, jnp.full(len(x), small))
coarse_axis, coarse = grid(17)
error = jnp.linalg.norm(learned(points) - exact(points), axis=1).reshape(161, 161)
figure, panels = plt.subplots(1, 3, figsize=(15, 4.6))
for axes, score, name in ((panels[0], exact, "exact score"), (panels[1], learned, "learned at one noise level")):
  axes.contourf(axis, axis, density, levels=12, cmap="Blues")
  arrows = np.asarray(score(coarse))
  axes.quiver(*np.asarray(coarse).T, *(arrows / (1 + np.linalg.norm(arrows, axis=1, keepdims=True) / 3)).T)
  axes.set_title(name)
shown = panels[2].pcolormesh(axis, axis, error, cmap="magma", vmax=10, rasterized=True)
panels[2].contour(axis, axis, density, levels=4, colors="w", linewidths=0.7)
panels[2].set_title("error of the learned score")
figure.colorbar(shown, ax=panels[2], shrink=0.8)
for axes in panels:
  axes.set(aspect="equal", xticks=[], yticks=[])
plt.show()

# %% [markdown]
# ## Followed by Langevin dynamics
#
# x ← x + e/2 grad log p(x) + √e z. Even with the *exact* score this fails here: between the modes there is no
# density, so chains never cross, and the two modes get the mass of where the chains began, not 20% and 80%.


# %%
def langevin(score, x, step=0.1, steps=1000):
  """Unadjusted Langevin dynamics along `score`."""

  def body(i, x):
    z = jax.random.normal(jax.random.fold_in(jax.random.key(5), i), x.shape)
    return x + step / 2 * score(x) + jnp.sqrt(step) * z

  return jax.jit(lambda x: jax.lax.fori_loop(0, steps, body, x))(x)


start = jax.random.uniform(jax.random.key(4), (2000, 2), minval=-8, maxval=8)
chains = langevin(exact, start)

# %% [markdown]
# ## Many noise levels
#
# Noise fills the space between the modes. A network that sees the noise level learns all of them at once, and
# *annealed* Langevin dynamics walks from the largest, where the density is one blob, to the smallest. The same
# network, the same number of training steps:

# %%
all_levels = train(ScoreMatching(model, stratified=True, eps=1e-5), model)
solver = ss.NCSN(num_scales=20, snr=0.25, n_steps_each=50, ald_step="paper")
draw = lambda key, score: ss.sample(key, sde, score, (2000, 2), solver=solver, eps=1e-5, return_info=True)
annealed, info = jax.jit(draw)(jax.random.key(6), jax.tree_util.Partial(model.score, all_levels))

figure, panels = plt.subplots(1, 3, figsize=(15, 4.6))
for axes, values, name in (
  (panels[0], data.sample(jax.random.key(7), 2000), "data"),
  (panels[1], chains, "Langevin, exact score"),
  (panels[2], annealed, "annealed, learned"),
):
  share = float(jnp.mean(values.sum(axis=1) < 0))
  axes.plot(*np.asarray(values).T, ".", markersize=2, alpha=0.5)
  axes.set_title(f"{name}: {100 * share:.0f}% in the lower mode", fontsize=10)
  axes.set(xlim=(-8, 8), ylim=(-8, 8), aspect="equal", xticks=[], yticks=[])
plt.show()
print(f"{info['nfe']} evaluations of the score a sample")

# %% [markdown]
# The step of annealed Langevin dynamics shrinks with the noise level, and the weights of the modes are decided
# early, where they still overlap. With ever more levels the chain becomes a stochastic differential equation: the
# next notebook.
