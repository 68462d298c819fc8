"""Workdirs in a bucket: an emulator of Google Cloud's storage serves one on loopback."""

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import runs

import score_sde as ss
from score_sde.run import checkpoints, storage
from score_sde.run.config import BadInput
from score_sde.run.evaluate import compare
from score_sde.run.report import curves


@pytest.fixture(scope="module")
def bucket(tmp_path_factory):
  """Name of a folder in a bucket that lives as long as the module's tests."""
  port = runs.free_port()
  command = [sys.executable, "tests/bucket.py", str(port), str(tmp_path_factory.mktemp("bucket"))]
  server = subprocess.Popen(command, cwd=runs.ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
  assert server.stdout.readline() == "ready\n"
  url = f"http://localhost:{port}"
  with pytest.MonkeyPatch.context() as patch:
    patch.setenv("STORAGE_EMULATOR_HOST", url)
    patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
    yield "gs://runs/tests"
  server.kill()
  server.wait()


def test_files_of_a_bucket_are_whole_or_not_there(bucket):
  path = storage.path_of(bucket) / "folder" / "file.npz"
  storage.save_atomically(path, lambda file: np.savez(file, a=np.arange(5)))
  with storage.arrays_of(path) as arrays:
    np.testing.assert_array_equal(arrays["a"], np.arange(5))

  def fails(file):
    file.write(b"half of it")
    raise KeyboardInterrupt

  with pytest.raises(KeyboardInterrupt):
    storage.save_atomically(path, fails)
  with pytest.raises(KeyboardInterrupt):
    storage.save_atomically(path.parent / "other.npz", fails)
  assert [p.name for p in path.parent.iterdir()] == ["file.npz"]
  with storage.arrays_of(path) as arrays:
    assert len(arrays["a"]) == 5


def test_an_upload_that_fails_leaves_the_old_file(bucket, tmp_path):
  path = storage.path_of(bucket) / "kept.txt"
  storage.save_atomically(path, lambda file: file.write(b"old"))
  with pytest.raises(FileNotFoundError):
    storage._put(str(tmp_path / "missing"), path)
  assert path.read_text() == "old"


def test_files_that_grow_are_copied(bucket, monkeypatch):
  folder = storage.Folder(storage.path_of(bucket) / "grows")
  (folder.local / "log").write_text("one")
  monkeypatch.setattr(storage, "SYNC_SECONDS", 0.1)
  folder.keep_in_sync()
  until = time.monotonic() + 10
  while not (folder.path / "log").exists() and time.monotonic() < until:
    time.sleep(0.1)
  assert (folder.path / "log").read_text() == "one"
  (folder.local / "log").write_text("one, two")
  (folder.local / "deeper").mkdir()
  (folder.local / "deeper" / "file").write_text("x")
  folder.close()
  assert (folder.path / "log").read_text() == "one, two"
  assert (folder.path / "deeper" / "file").read_text() == "x"
  assert not folder.local.exists()


def test_a_folder_of_this_machine_needs_no_copies(tmp_path):
  folder = storage.Folder(storage.path_of(tmp_path / "run"))
  assert folder.local == tmp_path / "run"
  (folder.local / "log").write_text("one")
  folder.close()
  assert (tmp_path / "run" / "log").read_text() == "one"


def test_a_bucket_has_one_job(bucket, monkeypatch):
  """A job that lives keeps others away; the claim of one that died is free after the lease."""
  monkeypatch.setattr(storage, "LEASE_SECONDS", 2)
  path = storage.path_of(bucket) / "claims"
  with storage.claimed(path), pytest.raises(BadInput, match="is another job's"), storage.claimed(path):
    pass
  assert not (path / ".claimed").exists()
  (path / ".claimed").write_text("process 1 on another machine, abcd\n17")
  start = time.monotonic()
  with storage.claimed(path):
    assert 2 <= time.monotonic() - start < 10
  (path / ".claimed").write_text("process 1 on another machine, abcd\n17")
  ends = threading.Timer(0.5, (path / ".claimed").unlink)
  ends.start()
  start = time.monotonic()
  with storage.claimed(path):  # the other job has ended well
    assert time.monotonic() - start < 2


def test_buckets_that_cannot_be_read_are_one_error(monkeypatch):
  with pytest.raises(BadInput, match=r"s3:// is not supported; give a folder or a bucket of Google Cloud"):
    storage.path_of("s3://runs/a")
  monkeypatch.setitem(sys.modules, "gcsfs", None)
  with pytest.raises(BadInput, match=r"pip install -e '\.\[gcs\]'"):
    storage.path_of("gs://runs/a")


QUICK = "from score_sde.run import storage; storage.LEASE_SECONDS = 3"


@pytest.mark.slow
@pytest.mark.longest
def test_a_run_in_a_bucket_is_killed_and_resumed(bucket, tmp_path):
  """Its state is that of a run on a disk, to the last bit, and all commands read it."""
  flags = ("--config.training.n_iters=40", "--config.training.final_report=True")
  assert runs.finish(tmp_path / "disk", *flags)[0] == 0
  workdir = f"{bucket}/run"
  process = runs.start(workdir, *flags, blind=QUICK)
  reached = lambda: [int(p.name) for p in (storage.path_of(workdir) / "checkpoints").glob("*") if p.name.isdigit()]
  while max(reached(), default=0) < 20:
    assert process.poll() is None, process.stderr.read()
    time.sleep(0.2)
  process.send_signal(signal.SIGKILL)
  process.communicate()
  code, _, err = runs.finish(workdir, *flags, blind=QUICK)
  assert code == 0, err
  assert "Resuming" in err
  assert "Waiting up to" in err

  disk, cloud = curves.read(tmp_path / "disk"), curves.read(workdir)
  assert [{k: r[k] for k in ("step", "loss")} for r in cloud] == [{k: r[k] for k in ("step", "loss")} for r in disk]
  a, b = (ss.load(str(folder)).params for folder in (tmp_path / "disk", workdir))
  assert checkpoints.digest(a) == checkpoints.digest(b)
  names = {p.name for p in storage.path_of(workdir).iterdir()}
  written = {p.name for p in (tmp_path / "disk").iterdir() if not p.name.startswith(".")}
  assert names >= written
  assert [p.name for p in (storage.path_of(workdir) / "tensorboard").iterdir()]
  rows = [
    json.loads(storage.path_of(f"{f}/report.json").read_text())["checkpoints"] for f in (tmp_path / "disk", workdir)
  ]
  assert rows[0][0]["bits_per_dim"] == rows[1][0]["bits_per_dim"]
  assert "tests/run" in compare.compare(workdir) or "run/report" in compare.compare(workdir)

  more = ("--mode=eval", "--config.eval.num_samples=20", "--config.eval.enable_sampling=True",
          "--config.eval.save_samples=array_record", "--config.eval.report=report_again")  # fmt: skip
  code, _, err = runs.finish(workdir, *more, blind=QUICK)
  assert code == 0, err
  path = storage.path_of(workdir)
  assert (path / "report_again.json").exists()
  assert any(p.name.endswith(".array_record") for p in (path / "eval").iterdir())
  assert not [p for p in (path / "eval").iterdir() if "unfinished" in p.name]
  assert os.listdir(tmp_path) == ["disk"]


def test_a_folder_s_name_is_no_pattern(tmp_path):
  (tmp_path / "w[1,2]" / "checkpoints" / "5").mkdir(parents=True)
  (tmp_path / "w[1,2]" / "report.json").write_text('{"checkpoints": []}')
  assert checkpoints.exists(str(tmp_path / "w[1,2]"))
  assert compare.read(str(tmp_path / "w[1,2]")) == []
  assert not checkpoints.exists(str(tmp_path / "missing"))


def test_a_job_whose_claim_was_taken_stops_and_leaves_the_other_s(bucket, monkeypatch):
  monkeypatch.setattr(storage, "LEASE_SECONDS", 2)
  stopped = threading.Event()
  monkeypatch.setattr(storage.os, "kill", lambda pid, number: stopped.set())
  path = storage.path_of(bucket) / "taken"
  with storage.claimed(path):
    (path / ".claimed").write_text("process 1 on another machine, abcd\n1")
    assert stopped.wait(10)
  assert (path / ".claimed").read_text().startswith("process 1 on another machine")


def test_a_failed_copy_is_tried_again(bucket, monkeypatch, caplog):
  folder = storage.Folder(storage.path_of(bucket) / "again")
  (folder.local / "log").write_text("one")
  with monkeypatch.context() as patch:
    patch.setattr(storage, "_put", lambda *args: 1 / 0)
    folder.close()
  assert "could not be copied" in caplog.text
  assert (folder.local / "log").exists()  # all that is left of it
  folder.sync()
  assert (folder.path / "log").read_text() == "one"
  (folder.local / "log").write_text("one, two")
  with monkeypatch.context() as patch:
    patch.setattr(storage, "_put", lambda *args: 1 / 0)
    folder.close()
  assert (folder.local / "log").exists()  # its last line is nowhere else
  folder.close()
  assert (folder.path / "log").read_text() == "one, two"
  assert not folder.local.exists()
