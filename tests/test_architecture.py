"""How the house is kept: which module may import which, what is typed, and who knows of devices."""

import pathlib
import re
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent


def test_imports_keep_their_contracts():
  command = [str(pathlib.Path(sys.executable).parent / "lint-imports")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


def test_one_module_knows_of_devices_and_hosts():
  names = r"\b(pmap|shard_map|process_index|process_count|local_device_count|Mesh\(|NamedSharding)\b"
  code = lambda path: re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.S)
  files = [p for p in (ROOT / "score_sde").rglob("*.py") if p.parent.name != "devices" and re.search(names, code(p))]
  assert files == []


def test_one_place_says_what_only_a_linear_sde_can_do():
  """`linear` and `is_linear` instead of isinstance; the message stands once."""
  files = {p.name: p.read_text() for p in (ROOT / "score_sde").rglob("*.py")}
  assert [name for name, text in files.items() if re.search(r"isinstance\([^)]*LinearSDE\)", text)] == ["linear.py"]
  assert sum(text.count("needs a linear SDE") for text in files.values()) == 1


@pytest.mark.slow
def test_shapes_are_as_annotated_and_examples_run():
  """beartype checks every annotation of a shape in the core, in a process whose imports it instruments."""
  done = subprocess.run([sys.executable, "tests/shapes.py"], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout + done.stderr
  examples, solvers, losses = map(int, re.findall(r"\d+", done.stdout))
  assert examples > 60
  assert solvers > 50
  assert losses == 5
