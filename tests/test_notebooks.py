"""Every notebook runs from top to bottom, is what its paired script says, and shows what it was committed with."""

import os
import pathlib

import jupytext
import nbformat
import pytest
from runs import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def cells(notebook):
  return [(cell.cell_type, cell.source) for cell in notebook.cells]


def test_there_are_notebooks():
  assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_", "6_"]
  assert {path.stem for path in NOTEBOOKS} == {path.stem for path in (ROOT / "notebooks").glob("*.py")}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_its_script_and_has_its_figures(path):
  notebook = nbformat.read(path, as_version=4)
  assert cells(notebook) == cells(jupytext.read(path.with_suffix(".py")))
  outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
  assert not [output for output in outputs if output.output_type == "error"]
  assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
  assert path.stat().st_size < 1_000_000


@pytest.mark.slow
@pytest.mark.parametrize(
  "path",
  [pytest.param(p, marks=pytest.mark.longest) if p.name[0] in "12345" else p for p in NOTEBOOKS],
  ids=lambda path: path.stem,
)
def test_a_notebook_runs_from_top_to_bottom(path):
  from nbclient import NotebookClient

  notebook = jupytext.read(path.with_suffix(".py"))
  client = NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(pathlib.Path(path).parent)}})
  client.execute(env=os.environ | {"XLA_FLAGS": ""})  # they train for minutes: programs are worth optimizing
