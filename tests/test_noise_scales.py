"""NCSNv2's techniques against the values that the paper took from them."""

import subprocess
import sys

import numpy as np
import pytest
import runs
from test_config import ROOT, load

from score_sde.run import noise_scales
from score_sde.run.config import resolve
from score_sde.run.experiment import build


@pytest.mark.parametrize(
  ("dims", "sigma_max", "levels", "steps", "snr"),
  [(3 * 32**2, 50, 232, 5, 0.176), (3 * 64**2, 90, 500, 5, 0.128), (3 * 128**2, 190, 1086, 3, 0.095)],
  ids=["CIFAR-10", "CelebA", "LSUN"],
)
def test_levels_and_steps_are_near_those_of_the_paper(dims, sigma_max, levels, steps, snr):
  """Song & Ermon 2020, Table 4 (and the official configs' snr); they rounded by hand, to some percent."""
  gamma = noise_scales.ratio(dims)
  assert np.log(sigma_max / 0.01) / np.log(gamma) + 1 == pytest.approx(levels, rel=0.06)
  assert np.sqrt(noise_scales.langevin_step(gamma, steps) / 2) == pytest.approx(snr, rel=0.05)


def test_neighbouring_levels_overlap_as_asked():
  """By simulation: norms of noise at gamma, within three deviations of those at 1, half of the time."""
  dims = 200
  gamma = noise_scales.ratio(dims)
  norms = gamma * np.linalg.norm(np.random.default_rng(0).standard_normal((20_000, dims)), axis=1)
  inside = np.abs(norms - np.sqrt(dims)) < 3 * gamma / np.sqrt(2)
  assert inside.mean() == pytest.approx(0.5, abs=0.03)


def test_the_largest_distance_is_that_of_all_pairs():
  x = np.random.default_rng(0).standard_normal((700, 3)).astype(np.float32)
  expected = max(np.linalg.norm(x - row, axis=1).max() for row in x)
  assert noise_scales.largest_distance(x) == pytest.approx(expected, rel=1e-5)


@pytest.mark.thorough
def test_the_command_prints_overrides_that_a_config_takes():
  command = [sys.executable, "-m", "score_sde", "suggest-sigmas", "--config=configs/quickstart.py"]
  done = subprocess.run(
    [*command, "--config.training.sde=vesde"],
    cwd=ROOT,
    env=runs.environment(),
    capture_output=True,
    text=True,
    check=True,
  )
  line = done.stdout.splitlines()[-1]
  values = dict(flag.removeprefix("--config.").split("=") for flag in line.split())
  assert 3 < float(values["model.sigma_max"]) < 8
  config = load(ROOT / "configs/quickstart.py")
  config.training.sde = "vesde"
  for key, value in values.items():
    section, name = key.split(".")
    config[section][name] = type(config[section][name])(value) if config[section][name] is not None else float(value)
  found = resolve(config)
  assert found.model.num_scales == int(values["model.num_scales"])
  assert build(found).sde.sigma_max == float(values["model.sigma_max"])
