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


def pytest_collection_modifyitems(items):
  """Tests that share the run of `trained` go to one worker, which then trains it once."""
  for item in items:
    if "trained" in item.fixturenames:
      item.add_marker(pytest.mark.xdist_group("trained"))
