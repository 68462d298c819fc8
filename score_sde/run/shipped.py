"""Shipped files: the configs that come with the package, in a clone or inside an installed wheel.

A path such as configs/quickstart.py is looked up in the current folder first. `quickstart` is short for it.
"""

import ast
import pathlib
import sys

_PACKAGE = pathlib.Path(__file__).resolve().parent.parent


def root() -> pathlib.Path:
  """Returns the folder that holds `configs`: that of the wheel, or the clone."""
  installed = _PACKAGE / "shipped"
  return installed if installed.is_dir() else _PACKAGE.parent


def find(path: str) -> str:
  """Returns the file that `path` means: itself if it exists, else the file of that name that comes with the package.

  A `path` for which there is no file is returned as it is.
  """
  if pathlib.Path(path).is_file() or pathlib.Path(path).is_absolute() or not path:
    return path
  for name in (path, f"configs/{path}", f"configs/{path}.py"):
    file = root() / name
    if file.is_file():
      return str(file)
  return path


def find_plugin(name: str) -> str:
  """Returns FILE.py:FUNCTION with the file that it means, see `find`."""
  path, colon, function = name.rpartition(":")
  return find(path) + colon + function


def make_importable() -> None:
  """Lets config files import each other, as in `from configs import small`, and files of the current folder."""
  for folder in (str(root()), str(pathlib.Path.cwd())):
    if folder not in sys.path:
      sys.path.append(folder)


def configs() -> list[pathlib.Path]:
  """Returns all config files below the folder `configs`."""
  return sorted((root() / "configs").rglob("*.py"))


def described() -> list[tuple[str, str]]:
  """Returns (path, first line of the docstring) of each config file below the folder `configs`."""
  found = []
  for file in configs():
    text = file.read_text()
    if "def get_config" in text:
      found.append((f"{file.relative_to(root())} ", ast.get_docstring(ast.parse(text)) or ""))
  return [(name, doc.split("\n")[0]) for name, doc in found]
