"""docs/extending.md as a user follows it: parts of one's own by FILE.py:FUNCTION, and what is wrong with them named."""

import json
import pathlib
import runpy

import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import score_sde as ss
from docs.extending import mine
from score_sde.run import training
from score_sde.run.config import BadInput
from score_sde.run.experiment import build

DOCS = pathlib.Path(__file__).parent.parent / "docs"


def config(**values) -> ConfigDict:
  found = runpy.run_path(str(DOCS / "extending/config.py"))["get_config"]()
  for key, value in values.items():
    section, name = key.split("__")
    found[section][name] = value
  return found


def test_the_page_shows_the_file():
  assert (DOCS / "extending/mine.py").read_text().rstrip() in (DOCS / "extending.md").read_text()


def test_one_file_adds_an_sde_a_network_data_a_solver_a_weighting_and_a_metric(tmp_path):
  """Trained for as long as it takes to see the ring: the metric in the report says so."""
  c = config(
    training__n_iters=1000, training__snapshot_freq=1000, training__snapshot_freq_for_preemption=1000,
    eval__num_samples=500, eval__batch_size=500, sampling__num_samples=100, eval__num_examples=16,
    training__batch_size=128, training__snapshot_sampling=False,
  )  # fmt: skip
  training.train(c, str(tmp_path))
  row = json.loads((tmp_path / "report.json").read_text())["checkpoints"][0]
  assert row["sampling_nfe"] == 100
  assert row["metrics"]["distance of test examples"] == pytest.approx(0.05 * (2 / np.pi) ** 0.5, rel=0.15)
  assert row["metrics"]["distance from the circle"] < 0.2  # 0.5 before training
  assert "distance from the circle" in (tmp_path / "report.md").read_text()
  with pytest.raises(ss.ScoreSDEError, match="allow_code=True"):
    ss.load(str(tmp_path))
  model = ss.load(str(tmp_path), allow_code=True)
  assert isinstance(model.sde, ss.LinearSDE)
  assert model.sample(jax.random.key(0), 5).shape == (5, 2)


def test_a_solver_of_ones_own_is_checked_and_takes_constraints():
  with pytest.raises(ss.InvalidArgument, match=r"share=2.0 must lie in \(0, 1\]"):
    mine.Midpoint(share=2.0)
  y = ss.guidance.inpaint(np.array([1.0, 0.0]), np.array([0.3, 0.0]))
  solver = ss.guidance.Projection()(y)(mine.Midpoint())
  x = ss.sample(jax.random.key(0), ss.VP(), lambda x, t: -x, (1, 2), solver=solver, steps=30)
  assert float(x[0, 0]) == pytest.approx(0.3, abs=0.05)


@pytest.mark.parametrize(
  ("key", "text", "message"),
  [
    ("model__name", "f = lambda model: 3", "gives a int, not a Flax module"),
    ("data__dataset", "f = lambda data, split: [[1, 2]]", r"gives int64\[1, 2\] for split 'train'"),
    (
      "data__dataset",
      "import numpy\nf = lambda d, s: (numpy.zeros((3, 2)), [1])",
      r"3 examples and labels of shape \(1,\)",
    ),
    ("sampling__method", "f = lambda sampling: 'heun'", "gives a str, not a score_sde.Solver"),
    ("training__weighting", "g = 3", "has no function 'f'"),
  ],
)
def test_what_a_users_file_gets_wrong_is_named(tmp_path, key, text, message):
  (tmp_path / "wrong.py").write_text(text)
  with pytest.raises(BadInput, match=message):
    build(config(**{key: f"{tmp_path}/wrong.py:f"}))
