"""How the house is kept: which module may import which, what is typed, and who knows of devices."""

import doctest
import importlib
import pathlib
import pkgutil
import re
import subprocess
import sys

import pytest

import score_sde
from score_sde import errors, options, scaling

ROOT = pathlib.Path(__file__).parent.parent
CORE = [
  m.name for m in pkgutil.walk_packages(score_sde.__path__, "score_sde.")
  if not m.name.startswith("score_sde.run") and not m.name.endswith("__main__")
]  # fmt: skip


def test_imports_keep_their_contracts():
  command = [str(pathlib.Path(sys.executable).parent / "lint-imports")]
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stdout


def test_one_module_knows_of_devices_and_hosts():
  names = r"\b(pmap|shard_map|process_index|process_count|local_device_count|Mesh\(|NamedSharding)\b"
  code = lambda path: re.sub(r'""".*?"""|#.*', "", path.read_text(), flags=re.S)
  files = [p for p in (ROOT / "score_sde").rglob("*.py") if p.name != "devices.py" and re.search(names, code(p))]
  assert files == []


def test_one_place_says_what_only_a_linear_sde_can_do():
  """`linear` and `is_linear` instead of isinstance; the message stands once."""
  files = {p.name: p.read_text() for p in (ROOT / "score_sde").rglob("*.py")}
  assert [name for name, text in files.items() if re.search(r"isinstance\([^)]*LinearSDE\)", text)] == ["linear.py"]
  assert sum(text.count("needs a linear SDE") for text in files.values()) == 1


@pytest.mark.parametrize("name", CORE)
def test_the_examples_in_the_docstrings_run(name):
  found = doctest.testmod(importlib.import_module(name))
  assert found.failed == 0


def test_there_are_examples():
  assert doctest.testmod(errors).attempted
  assert doctest.testmod(options).failed == doctest.testmod(scaling).failed == 0
