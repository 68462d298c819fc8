"""Hooks of the site: pages made from other files of the repository, and formulas as MathML.

README.md, CHANGELOG.md and CONTRIBUTING.md become pages, the notebooks are rendered, and the reference of the config is
written from the fields that it consists of.
"""

import functools
import html
import pathlib
import re

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

ROOT = pathlib.Path(__file__).resolve().parent.parent
COPIED = {"index.md": "README.md", "changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}
# Files outside of docs/ to which pages may link, and the pages that show them.
SHOWN = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config) -> Files:
  """Adds the pages that are not files of docs/."""
  for page, source in COPIED.items():
    files.append(File.generated(config, page, content=_as_page((ROOT / source).read_text())))
  for file in sorted((ROOT / "notebooks").glob("*.ipynb")):
    text, pictures = _rendered(file)
    files.append(File.generated(config, f"notebooks/{file.stem}.md", content=text))
    for name, content in pictures.items():
      files.append(File.generated(config, f"notebooks/{name}", content=content))
  files.append(File.generated(config, "reference/config.md", content=_keys()))
  return files


def on_page_markdown(markdown: str, page, config, files) -> str:
  """Lets links to notebooks lead to their rendered pages."""
  return re.sub(r"\(\.\./notebooks/(\w+)\.ipynb\)", r"(notebooks/\1.md)", markdown)


def on_page_content(content: str, page, config, files) -> str:
  """Turns formulas into MathML."""
  pattern = r'<(span|div) class="arithmatex">\s*\\[(\[](.*?)\\[)\]]\s*</\1>'
  return re.sub(pattern, lambda m: _mathml(html.unescape(m[2]), m[1] == "div"), content, flags=re.S)


@functools.cache
def _mathml(formula: str, display: bool) -> str:
  return convert(formula.strip(), display="block" if display else "inline")


def _as_page(text: str) -> str:
  """Returns a file of the repository's root as a page of docs/: its links are relative to that folder."""
  text = re.sub(r"\]\(docs/", "](", text)
  text = re.sub(r"\]\(notebooks/(\w+)\.ipynb\)", r"](notebooks/\1.md)", text)
  for name, page in SHOWN.items():
    text = text.replace(f"]({name})", f"]({page})")
  return re.sub(r"\[([^\]]*)\]\((?:LICENSE|NOTICE|CITATION\.cff)\)", r"`\1`", text)


def _rendered(file: pathlib.Path) -> tuple[str, dict[str, bytes]]:
  """Returns a notebook as Markdown, and its pictures by file name."""
  from nbconvert import MarkdownExporter

  text, resources = MarkdownExporter().from_filename(str(file))
  pictures = {}
  for name, content in resources.get("outputs", {}).items():
    pictures[f"{file.stem}_{name}"] = content
    text = text.replace(f"![png]({name})", f"![output of the cell above]({file.stem}_{name})")
  return re.sub(r"\(\.\./docs/([\w/]+\.md)", r"(../\1", text), pictures


def _keys() -> str:
  """Returns the page of all keys of a config, from the fields of the objects that read them."""
  from score_sde.run.config import keys

  lines = [
    "# Keys of a config",
    "",
    "Each key is set by `--config.SECTION.KEY=VALUE`, or in a config file. An empty default follows other keys, and is "
    "printed to `config.json` when a run starts. `seed` (42) is the only key without a section.",
  ]
  section = None
  for key, readers in sorted(keys().items()):
    its, name = key.split(".")
    if its != section:
      section = its
      lines += ["", f"## {section}", "", "| key | default | meaning | values |", "|---|---|---|---|"]
    _, field, known = readers[0]
    choices = dict.fromkeys(choice for *_, other in readers for choice in other.choices)
    accepted = (
      ", ".join(f"`{choice}`" for choice in choices) if known.choices else f"`{known.span}`" if known.span else ""
    )
    cells = [f"`{name}`", "" if field.default is None else f"`{field.default!r}`", known.doc, accepted]
    lines.append("| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |")
  return "\n".join(lines) + "\n"
