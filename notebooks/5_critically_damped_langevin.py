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
# # 5. Critically damped Langevin diffusion
#
# Dockhorn et al. 2022 give the data a velocity, and put noise into the velocity alone:
#
#     dx = beta M⁻¹ v dt,    dv = -beta x dt - Γ beta M⁻¹ v dt + √(2 Γ beta) dw,    Γ² = 4 M
#
# Here it is as an SDE of a user's own: position and velocity are stacked in the state, and the diffusion is a
# *matrix* that acts on the velocity. Drift, diffusion and prior are written; the samplers of the library take it as
# it is.

# %%
import dataclasses

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
from scipy.linalg import expm

from score_sde.run import toys
from score_sde.batch import example_keys, normal
from score_sde.models import MLP
from score_sde.parameterization import ScoreModel
from score_sde.run.sampler import Sampler, stepping
from score_sde.sampling import AdaptiveODE, PredictorCorrector
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

  def kernel(self, t):
    """x_t, v_t | x_0 ~ N((mx, mv) x_0, L Lᵀ): (mx, mv, Lxx, Lvx, Lvv), each (B,)."""
    return [jnp.interp(t, TIMES, column) for column in KERNEL.T]

  def scale(self, u, t):
    """Lvv, the standard deviation of the velocity given the position: what its score is divided by."""
    return self.kernel(t)[-1]

  def prior_sample(self, keys, shape, dtype=jnp.float32):
    z = normal(keys, jax.ShapeDtypeStruct(shape, dtype))
    return z * jnp.array([1.0, self.mass**0.5], dtype)[:, None]


sde = CriticallyDamped()

# The drift is linear, so the kernel is Gaussian; its moments, given x_0, follow step by step from matrix exponentials.
TIMES = np.linspace(0, 1, 4001) ** 2
A = sde.beta * np.array([[0, 1 / sde.mass], [-1, -sde.friction / sde.mass]])
Q = np.diag([0, 2 * sde.friction * sde.beta])
mean, covariance, KERNEL = np.array([1.0, 0.0]), np.diag([0, sde.start * sde.mass]), []
for h in np.diff(TIMES):
  block = expm(np.block([[-A, Q], [np.zeros((2, 2)), A.T]]) * h)  # Van Loan 1978
  step = block[2:, 2:].T
  mean, covariance = step @ mean, step @ covariance @ step.T + step @ block[:2, 2:]
  factor = np.linalg.cholesky(covariance)
  KERNEL.append([*mean, factor[0, 0], factor[1, 0], factor[1, 1]])
KERNEL, TIMES = np.array(KERNEL), TIMES[1:]
moons = (toys.two_moons(np.random.default_rng(0), 100_000) / 1.2).astype(np.float32)


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
# Only the velocity's score enters the reverse SDE. Given x_0 it is -e_v / Lvv with e_v the velocity's share of the
# noise, so the network predicts e_v: denoising score matching, the velocity at the start averaged out (the paper's
# hybrid score matching). To the network is added the score of a Gaussian velocity (their mixed score).

# %%
network = MLP(nf=128, num_res_blocks=3, fourier_scale=0.5)
params = network.init(jax.random.key(0), jnp.zeros((1, 2, 2)), jnp.ones(1))["params"]


def noise(params, u, labels, keys=None):
  """Minus the score times the scale; `labels` are 999 t."""
  _, _, _, across, along = sde.kernel(labels / 999)
  share = along / (across**2 + along**2)
  return share[:, None, None] * u + network.apply({"params": params}, u, labels)


def loss(params, key, batch):
  """Squared error of the noise in the velocity."""
  draw, times, noises = jax.random.split(key, 3)
  x0 = states(draw, batch)[:, 0]
  t = 1e-3 + (1 - 1e-3) * jax.random.uniform(times, (batch,)) ** 2  # more of the small times, where the moons are
  mx, mv, xx, vx, vv = (c[:, None] for c in sde.kernel(t))
  ex, ev = jax.random.normal(noises, (2, batch, 2))
  u = jnp.stack([mx * x0 + xx * ex, mv * x0 + vx * ex + vv * ev], axis=1)
  return jnp.mean((noise(params, u, 999 * t)[:, 1] - ev) ** 2)


model = ScoreModel(sde, noise, "noise", "time")
steps, batch = 3500, 512
optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(optax.cosine_decay_schedule(2e-3, steps)))


def step(carry, i):
  params, average, state = carry
  value, gradient = jax.value_and_grad(loss)(params, jax.random.fold_in(jax.random.key(3), i), batch)
  updates, state = optimizer.update(gradient, state)
  params = optax.apply_updates(params, updates)
  return (params, optax.incremental_update(params, average, 0.005), state), value


run = jax.jit(lambda carry: jax.lax.scan(step, carry, jnp.arange(steps)))
(_, average, _), losses = run((params, params, optimizer.init(params)))
smooth = np.convolve(losses, np.ones(50) / 50, mode="valid")
figure, axes = plt.subplots(figsize=(6, 3))
axes.plot(smooth)
axes.set(xlabel="step", title="denoising score matching of the velocity")
plt.show()

# %% [markdown]
# ## Sampling
#
# The reverse-time SDE by Euler-Maruyama, and the probability-flow ODE: neither knows that this is not a VP SDE.

# %%
score = jax.tree_util.Partial(model.score, average)
sample = stepping(PredictorCorrector("euler_maruyama", "none"), sde, 500)
by_sde, info = sample(score, jax.random.key(4), (2000, 2, 2))
by_ode, ode_info = Sampler(sde, AdaptiveODE(rtol=1e-4, atol=1e-4))(score, jax.random.key(4), (2000, 2, 2))
figure, panels = plt.subplots(1, 3, figsize=(14, 4.4))
for axes, points, name in (
  (panels[0], moons[:2000], "data"),
  (panels[1], by_sde[:, 0], f"reverse SDE, {info['nfe']} evaluations"),
  (panels[2], by_ode[:, 0], f"probability-flow ODE, {float(ode_info['nfe'].mean()):.0f} evaluations"),
):
  axes.plot(*np.asarray(points).T, ".", markersize=2, alpha=0.5)
  axes.set(xlim=(-2.4, 2.4), ylim=(-1.8, 1.8), aspect="equal", xticks=[], yticks=[], title=name)
plt.show()
