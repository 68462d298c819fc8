"""run.py as a user calls it: one line and exit code 2 for whatever cannot work, before anything is compiled."""

import os

import pytest
import runs

# Each starts a process, which takes seconds; one of a kind is enough of them for the fast suite.
SLOW = pytest.mark.slow


@pytest.mark.parametrize(
  ("flags", "parts"),
  [
    (["--config.model.sigma_mex=3"], ["'model.sigma_mex'", "Did you mean model.sigma_max?", "Keys of model:"]),
    pytest.param(["--config.training.sde=vp"], ["training.sde='vp'", "vesde, vpsde, subvpsde"], marks=SLOW),
    pytest.param(["--config.training.batch_size=abc"], ["abc"], marks=SLOW),
    pytest.param(["--mode=trian"], ["--mode=trian", "train, sample, eval"], marks=SLOW),
    pytest.param(["--modus=train"], ["modus"], marks=SLOW),
    (["leftover"], ["'leftover'", "--name=value"]),
    (
      ["--config.sampling.snr=0.2"],
      [
        "--config.sampling.snr has no effect here",
        "only sampling.method='pc' with sampling.corrector='langevin' or 'ald'",
      ],
    ),
    (["--mode=sample"], ["holds no checkpoints", "--mode=train"]),
    pytest.param(["--config.data.dataset=digit"], ["data.dataset='digit'", "digits"], marks=SLOW),
    (["--config.data.dataset=folder", "--config.data.path=/nowhere"], ["'/nowhere'", "existing folder"]),
    pytest.param(
      ["--config.model.embedding_type=positional"], ["positional", "--config.model.embedding_type=fourier"], marks=SLOW
    ),
    pytest.param(["--config.training.log_freq=3"], ["training.log_freq=3", "n_jitted_steps=2"], marks=SLOW),
    pytest.param(["--workdir=/proc/nowhere"], ["--workdir='/proc/nowhere'", "Give another"], marks=SLOW),
  ],
  ids=lambda value: value[0] if value[0].startswith("-") or value[0] == "leftover" else "",
)
def test_mistakes_get_one_line_and_exit_code_two(tmp_path, flags, parts):
  code, out, err = runs.finish(tmp_path / "run", *flags)
  assert code == 2, err
  assert len(err.strip().splitlines()) == 1, err
  assert all(part in err for part in parts), err
  assert out == ""


def test_a_batch_that_devices_do_not_divide_is_refused(tmp_path):
  code, _, err = runs.finish(tmp_path / "run", "--config.training.batch_size=12", devices=8)
  assert code == 2
  assert len(err.strip().splitlines()) == 1, err
  for part in ("training.batch_size=12", "8 cpu devices", "--config.training.batch_size=16"):
    assert part in err


@pytest.mark.parametrize(
  ("config", "parts"),
  [
    ("configs/nowhere.py", ["configs/nowhere.py does not exist"]),
    ("typo.py", ["typo.py", "sigma_mex"]),
    ("syntax.py", ["syntax.py", "SyntaxError"]),
  ],
)
def test_bad_config_files_are_named(tmp_path, config, parts):
  first = "from score_sde.run.config import default_config\ndef get_config():\n"
  typo = first + "  default_config().model.sigma_mex = 3.0\n"
  (tmp_path / "typo.py").write_text(typo)
  (tmp_path / "syntax.py").write_text("def get_config(:\n")
  path = config if config.startswith("configs") else str(tmp_path / config)
  code, _, err = runs.finish(tmp_path / "run", config=path)
  assert code == 2, err
  assert len(err.strip().splitlines()) == 1, err
  assert all(part in err for part in parts), err


@pytest.mark.slow
def test_one_command_trains_samples_and_scores_on_several_devices(tmp_path):
  """The quickstart in small, on two simulated devices, by run.py alone."""
  flags = ("--config.training.n_iters=20", "--config.training.final_report=True")
  code, out, err = runs.finish(tmp_path, *flags, devices=2)
  assert code == 0, err
  assert "bits/dim on 16 test examples" in out
  assert "2 cpu devices" in err
  for name in ("config.json", "samples.png", "denoising.png", "curves.png", "report.json", "metrics.csv"):
    assert (tmp_path / name).stat().st_size > 100, name
  code, out, err = runs.finish(tmp_path, *flags, devices=2)
  assert code == 0, err
  assert "report.json has step 20 with these settings already" in err
  assert "bits/dim" not in out
  code, out, err = runs.finish(tmp_path, *flags, "--config.eval.num_repeats=2", devices=2)
  assert code == 0, err
  assert "bits/dim on 16 test examples" in out


def test_a_reader_may_close_the_help(monkeypatch, tmp_path):
  """As `--help | head` does: the program neither fails, nor writes into the pipe at its end."""
  from score_sde.run.cli import helps

  reading, writing = os.pipe()
  os.close(reading)
  with os.fdopen(writing, "w") as pipe:
    monkeypatch.setattr("sys.stdout", pipe)
    helps.show("a text " * 100_000)
    assert os.path.samestat(os.fstat(pipe.fileno()), os.stat(os.devnull))
