"""Configs of runs: valid JSON, from which a run goes on without its config file."""

import json

import pytest
from ml_collections import ConfigDict
from runs import changed, tiny
from test_papers import ROOT, load

from score_sde.run import stored
from score_sde.run.cli import arguments
from score_sde.run.config import BadInput, as_dict, resolve
from score_sde.run.workdir import write_config, write_json

FILES = (
  "quickstart",
  "ve/cifar10_ncsnpp_continuous",
  "vp/ddpm/cifar10",
  "edm/cifar10_ncsnpp",
  "consistency/cifar10_ct",
)


def strict(text):
  def refuse(constant):
    pytest.fail(f"{constant} is no JSON")

  return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("name", FILES)
def test_a_stored_config_is_json_and_comes_back_as_it_was(tmp_path, name):
  config = resolve(load(ROOT / f"configs/{name}.py"))
  write_config(config, tmp_path)
  strict((tmp_path / "config.json").read_text())
  again = resolve(stored.get_config(str(tmp_path / "config.json")))
  assert as_dict(again) == as_dict(config)


def test_defaults_of_a_stored_config_follow_overrides_and_what_was_set_stays(tmp_path):
  write_config(resolve(tiny(sampling__num_steps=77)), tmp_path)
  config = stored.get_config(str(tmp_path / "config.json"))
  assert resolve(config).sampling.grid == "uniform"
  few = resolve(changed(config, sampling__method="unipc"))
  assert (few.sampling.grid, few.sampling.num_steps) == ("log_snr", 77)


def test_a_workdir_or_its_json_stands_for_the_config(tmp_path):
  write_config(resolve(tiny()), tmp_path)
  file = tmp_path / "config.json"
  expected = f"--config={arguments.STORED}:{file}"
  for given in ([f"--workdir={tmp_path}"], ["--workdir", str(tmp_path)], [f"--config={file}", f"--workdir={tmp_path}"],
                ["--config", str(file), "--workdir=elsewhere"]):  # fmt: skip
    argv = ["run.py", *given, "--config.sampling.num_steps=3"]
    arguments.take_stored_config(argv)
    assert argv[1] == expected
    assert arguments.config_file(argv) == expected.removeprefix("--config=")
    assert argv[-1] == "--config.sampling.num_steps=3"
    assert isinstance(arguments.read_config(arguments.config_file(argv)), ConfigDict)
  for given in (["--config=configs/quickstart.py", f"--workdir={tmp_path}"], [f"--workdir={tmp_path / 'new'}"]):
    argv = ["run.py", *given]
    arguments.take_stored_config(argv)
    assert argv == ["run.py", *given]


def test_code_that_a_stored_config_names_is_not_run(tmp_path):
  config = as_dict(resolve(tiny()))
  config["data"]["condition"] = "/somewhere/evil.py:f"
  write_json(tmp_path / "config.json", config)
  with pytest.raises(BadInput, match="names code that would be run"):
    stored.get_config(str(tmp_path / "config.json"))


def test_numbers_that_json_does_not_have(tmp_path):
  write_json(tmp_path / "a.json", {"a": float("inf"), "b": [float("nan"), 1.5], "c": (1, 2), "d": None, "e": True})
  assert strict((tmp_path / "a.json").read_text()) == {"a": "inf", "b": [None, 1.5], "c": [1, 2], "d": None, "e": True}
