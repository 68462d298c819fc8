"""Set before JAX is imported: threads, so that simulated devices cannot deadlock, and how programs are compiled."""

import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("PJRT_NPROC", "16")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

# Most of the suite's time is compiling programs that run for a moment: they are not optimized, and XLA's older code
# generator, which JAX 0.10 still has, is twice as fast at it. `XLA_FLAGS= pytest` compiles as users do.
_QUICK = "--xla_backend_optimization_level=0"
if importlib.metadata.version("jaxlib").startswith("0.10."):
  _QUICK += " --xla_cpu_use_fusion_emitters=false"
os.environ.setdefault("XLA_FLAGS", _QUICK)

# Many tests compile the same: workers and the runs they start share a cache.
_MADE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _MADE:
  os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="score_sde_tests_")
  os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.3"

import jax  # noqa: E402
import pytest  # noqa: E402


def pytest_sessionfinish():
  if _MADE:  # the process that all others inherited it from ends last
    shutil.rmtree(os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


@pytest.fixture
def x64():
  """Runs the test in float64."""
  jax.config.update("jax_enable_x64", True)
  yield
  jax.config.update("jax_enable_x64", False)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
  """(workdir, config): checkpoints of steps 20 (a snapshot), 30 and 40 of a small model of digits."""
  from runs import tiny

  from score_sde.run import training

  folder = tmp_path_factory.mktemp("trained")
  config = tiny(
    training__n_iters=40, training__batch_size=16, training__n_jitted_steps=2, training__snapshot_freq=20,
    training__snapshot_freq_for_preemption=10, training__log_freq=10, training__eval_freq=20,
    training__final_report=False, sampling__num_steps=4, sampling__num_samples=9, eval__batch_size=16,
    eval__num_examples=24,
  )  # fmt: skip
  training.train(config, str(folder))
  return folder, config


# Modules of minutes start first, so that the two workers of `pytest -n 2` end together.
LONGEST = (
  "test_papers", "test_training", "test_models", "test_notebooks", "test_sampling", "test_published",
  "test_conditional", "test_hosts", "test_guidance", "test_few_step", "test_matching", "test_cli", "test_shapes",
  "test_evaluation", "test_faults", "test_core", "test_likelihood", "test_sde_family", "test_api", "test_consistency",
  "test_energy", "test_page", "test_errata", "test_bounds",
)  # fmt: skip


def pytest_collection_modifyitems(items):
  """Each module runs on one worker (--dist loadscope), in this order: what its tests share is made once."""
  rank = {name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: rank.get(item.module.__name__.rpartition(".")[2], len(LONGEST)))
