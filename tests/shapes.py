"""Run by test_shapes in a process of its own: every annotation of a shape in the core is checked by beartype."""

import doctest
import importlib
import itertools
import pkgutil
import sys

import jaxtyping

# The runner and the networks call these; a network's own layers are Flax's.
CHECKED = (
  "batch",
  "bounds",
  "guidance",
  "likelihood",
  "losses",
  "model",
  "parameterization",
  "sampling",
  "sde",
  "trace",
)

with jaxtyping.install_import_hook([f"score_sde.{name}" for name in CHECKED], "beartype.beartype"):
  import score_sde as ss

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import pytest  # noqa: E402

from score_sde.losses import OBJECTIVES  # noqa: E402
from score_sde.sampling import CORRECTORS, METHODS, PREDICTORS  # noqa: E402

KEY = jax.random.key(0)


def refusals():
  """The hook is at work: sizes that disagree, an integer where floats are needed, a key too many."""
  x = jnp.zeros((4, 2))
  with pytest.raises(jaxtyping.TypeCheckError, match="B=4"):
    ss.VP().drift(x, jnp.zeros(3))
  with pytest.raises(jaxtyping.TypeCheckError):
    ss.VP().alpha(jnp.arange(3))
  with pytest.raises(jaxtyping.TypeCheckError):
    ss.DDIM().step(ss.VP(), lambda x, t: -x, jax.random.split(KEY, 5), ss.State(x, x), *[jnp.ones(4)] * 3)


def examples():
  """The example in every docstring of the core, with its shapes checked."""
  names = [m.name for m in pkgutil.walk_packages(ss.__path__, "score_sde.")]
  core = [name for name in names if not name.startswith("score_sde.run") and not name.endswith("__main__")]
  results = [doctest.testmod(importlib.import_module(name)) for name in core]
  assert sum(r.failed for r in results) == 0
  return sum(r.attempted for r in results)


def solvers():
  """Every solver, predictor, corrector and grid under every SDE, traced but not compiled."""
  ways = [(name, make()) for name, make in METHODS.items() if name != "pc"]
  pairs = itertools.product(PREDICTORS, CORRECTORS)
  ways += [
    (f"{p}, {c}", ss.PredictorCorrector(predictor=p, corrector=c)) for p, c in pairs if (p, c) != ("none", "none")
  ]
  count = 0
  for sde, (_, solver) in itertools.product((ss.VE(), ss.VP(), ss.SubVP(), ss.CosineVP(), ss.RectifiedFlow()), ways):
    try:
      out = jax.eval_shape(lambda key: ss.sample(key, sde, lambda x, t: -x, (3, 4, 4, 1), solver=solver, steps=5), KEY)
    except ss.InvalidArgument:  # the solver of another SDE
      continue
    assert out.shape == (3, 4, 4, 1)
    count += 1
  return count


def losses():
  """Every objective of training, traced but not compiled."""
  network = lambda params, x, labels, keys, y=None: params * x
  keys, x = jax.random.split(KEY, 3), jnp.zeros((3, 2))
  for sde, objective in itertools.product((ss.VE(), ss.VP()), OBJECTIVES):
    if objective == "esm":  # of data with a known score
      continue
    matching = ss.ScoreMatching(ss.ScoreModel(sde, network), objective=objective)
    out = jax.eval_shape(lambda params: matching(params, keys, x, jnp.arange(3), 3), jnp.ones(()))
    assert out.shape == (3,)
  return len(OBJECTIVES) - 1


if __name__ == "__main__":
  refusals()
  print(f"{examples()} examples, {solvers()} solvers, {losses()} losses")
  sys.exit(0)
