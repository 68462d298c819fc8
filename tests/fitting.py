"""A short training, for tests of what an objective learns."""

import jax
import jax.numpy as jnp
import optax

from score_sde.batch import example_keys


def fit(loss, params, draw, steps, batch=512):
  """Parameters after `steps` of Adam on the mean of `loss`, each on the fresh examples `draw(key, batch)`."""
  optimizer = optax.adam(optax.cosine_decay_schedule(2e-3, steps))

  @jax.jit
  def step(params, state, i):
    key = jax.random.fold_in(jax.random.key(1), i)
    x0, keys = draw(key, batch), example_keys(key, jnp.arange(batch))
    gradient = jax.grad(lambda p: loss(p, keys, x0, jnp.arange(batch), batch).mean())(params)
    updates, state = optimizer.update(gradient, state)
    return optax.apply_updates(params, updates), state

  state = optimizer.init(params)
  for i in range(steps):
    params, state = step(params, state, i)
  return params
