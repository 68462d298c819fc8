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
# %% [markdown]
# # 5. Critically damped Langevin diffusion
#
# Dockhorn et al. 2022 give the data a velocity, and put noise into the velocity alone:
#
#     dx = beta M⁻¹ v dt,    dv = -beta x dt - Γ beta M⁻¹ v dt + √(2 Γ beta) dw,    Γ² = 4 M
#
# Here it is as an SDE of a user's own: position and velocity are stacked in the state, and the diffusion is a
# *matrix* that acts on the velocity. Nothing but drift, diffusion and prior is written; forward paths are simulated
# while training, the score of the velocity is learned by sliced score matching, and samplers of the library take
# the rest as it is.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

from score_sde import data as datasets
from score_sde.batch import example_keys, normal
from score_sde.losses import ScoreMatching
from score_sde.models import MLP
from score_sde.parameterization import ScoreModel
from score_sde.sampling import make_grid, ode_sampler, predictor_corrector
from score_sde.sde import SDE, VP, simulate

plt.rcParams.update({"figure.dpi": 70, "axes.titlesize": 11})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OnVelocity:
  """The matrix [[0, 0], [0, size]] on states (B, 2, D) of position and velocity; it is its own transpose."""

  size: jax.Array

  def matvec(self, z):
    return jnp.stack([jnp.zeros_like(z[:, 0]), self.size[:, None] * z[:, 1]], axis=1)

  rmatvec = matvec


@dataclasses.dataclass(frozen=True)
class CriticallyDamped(SDE):
  """Critically damped Langevin diffusion on states (B, 2, D).

  Attributes:
    beta: rate, per unit of time.
    mass: M; Γ = 2 √M is critical damping.
    start: variance of the velocity at t = 0, in units of M.
  """

  beta: float = 4.0
  mass: float = 0.25
  start: float = 0.04

  @property
  def friction(self):
    return 2 * self.mass**0.5

  def drift(self, u, t):
    x, v = u[:, 0], u[:, 1]
    return self.beta * jnp.stack([v / self.mass, -x - self.friction / self.mass * v], axis=1)

  def diffusion(self, u, t):
    return OnVelocity(jnp.full(t.shape, (2 * self.friction * self.beta) ** 0.5))

  def scale(self, u, t):
    """The standard deviation of the velocity, about: that which the score is divided by."""
    return jnp.sqrt(self.mass * (1 - (1 - self.start) * jnp.exp(-2 * self.friction * self.beta / self.mass * t)))

  def interior(self, u):
    """Only the velocity's score enters the reverse SDE, so only that is matched."""
    return jnp.stack([jnp.zeros_like(u[:, 0]), jnp.ones_like(u[:, 1])], axis=1)

  def prior_sample(self, keys, shape, dtype=jnp.float32):
    z = normal(keys, jax.ShapeDtypeStruct(shape, dtype))
    return z * jnp.array([1.0, self.mass**0.5], dtype)[:, None]


sde = CriticallyDamped()
moons = (datasets.two_moons(np.random.default_rng(0), 100_000) / 1.2).astype(np.float32)


def states(key, n):
  """Data with velocities drawn at random, (n, 2, 2)."""
  pick, draw = jax.random.split(key)
  x = jnp.asarray(moons)[jax.random.choice(pick, len(moons), (n,))]
  return jnp.stack([x, (sde.start * sde.mass) ** 0.5 * jax.random.normal(draw, x.shape)], axis=1)


# %% [markdown]
# ## Paths are smooth
#
# Noise reaches the position through the velocity, integrated once. Beside it the VP SDE, whose paths are rough.

# %%
n, times = 6, np.linspace(0, 1, 201)
keys = example_keys(jax.random.key(0), jnp.arange(n))
u, x = states(jax.random.key(1), n), states(jax.random.key(1), n)[:, 0]
damped, rough = [u[:, 0]], [x]
onward = jax.jit(lambda keys, u: simulate(sde, keys, u, jnp.full(n, times[1]), 1))  # the same at all times
for i in range(200):
  step = example_keys(jax.random.fold_in(jax.random.key(2), i), jnp.arange(n))
  u = onward(step, u)
  ratio, std = VP().transition(jnp.full(n, times[i]), jnp.full(n, times[i + 1]))
  x = ratio[:, None] * x + std[:, None] * normal(step, x)
  damped.append(u[:, 0])
  rough.append(x)
figure, panels = plt.subplots(1, 2, figsize=(12, 3.4), sharey=True)
for axes, paths, name in ((panels[0], damped, "critically damped: positions"), (panels[1], rough, "VP")):
  axes.plot(times, np.stack(paths)[:, :, 0], linewidth=0.9)
  axes.set(xlabel="t", title=name)
plt.show()

# %% [markdown]
# ## Training
#
# `ScoreMatching` simulates each path to its own time inside the compiled step. The network adds to the score of a Gaussian
# velocity, -v / scale², as in the paper's mixed score.

# %%
network = MLP(nf=128, num_res_blocks=2, fourier_scale=1.0)
params = network.init(jax.random.key(0), jnp.zeros((1, 2, 2)), jnp.ones(1))["params"]


def noise(params, u, labels, keys):
  """Minus the score times the scale; `labels` are 999 t."""
  scale = sde.scale(u, labels / 999)[:, None, None]
  return u / scale + network.apply({"params": params}, u, labels)


model = ScoreModel(sde, noise, "noise", "time")
loss = ScoreMatching(model, objective="ssm_vr", eps=1e-3, path_steps=48, stratified=True)
steps, batch = 1500, 512
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, steps)))


def step(carry, i):
  params, average, state = carry
  key = jax.random.fold_in(jax.random.key(3), i)
  u0, keys = states(key, batch), example_keys(key, jnp.arange(batch))
  value, gradient = jax.value_and_grad(lambda p: loss(p, keys, u0, jnp.arange(batch), batch).mean())(params)
  updates, state = optimizer.update(gradient, state)
  params = optax.apply_updates(params, updates)
  return (params, optax.incremental_update(params, average, 0.005), state), value


run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))
(_, average, _), losses = run((params, params, optimizer.init(params)))
smooth = np.convolve(losses, np.ones(50) / 50, mode="valid")
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(smooth)
axes.set(xlabel="step", title="sliced score matching of the velocity")
plt.show()

# %% [markdown]
# ## Sampling
#
# The reverse-time SDE by Euler-Maruyama, and the probability-flow ODE: neither knows that this is not a VP SDE.

# %%
score = jax.tree_util.Partial(model.score, average)
sample = predictor_corrector(sde, make_grid("uniform", sde, 500, 1e-3), predictor="euler_maruyama", corrector="none")
by_sde, info = sample(score, jax.random.key(4), (2000, 2, 2))
by_ode, ode_info = ode_sampler(sde, eps=1e-3, rtol=1e-4, atol=1e-4)(score, jax.random.key(4), (2000, 2, 2))
figure, panels = plt.subplots(1, 3, figsize=(14, 4.4))
for axes, points, name in (
  (panels[0], moons[:2000], "data"),
  (panels[1], by_sde[:, 0], f"reverse SDE, {info['nfe']} evaluations"),
  (panels[2], by_ode[:, 0], f"probability-flow ODE, {float(ode_info['nfe'].mean()):.0f} evaluations"),
):
  axes.plot(*np.asarray(points).T, ".", markersize=2, alpha=0.5)
  axes.set(xlim=(-2.4, 2.4), ylim=(-1.8, 1.8), aspect="equal", xticks=[], yticks=[], title=name)
plt.show()
