"""Set before JAX is imported: enough threads that simulated devices cannot deadlock on two cores."""

import os

os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax
import pytest


@pytest.fixture
def x64():
  """Runs the test in float64."""
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)


# Modules of minutes start first, so that the two workers of `pytest -n 2` end together.
LONGEST = (
  "test_training", "test_models", "test_sampling", "test_published", "test_likelihood", "test_bounds", "test_few_step",
  "test_cli",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Each module runs on one worker (--dist loadscope), in this order: what its tests share is made once."""
  rank = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.module.__name__.rpartition(".")[2], len(LONGEST)))
