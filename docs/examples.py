"""Extension of the docstrings' reader: examples are shown as code."""

import re
import textwrap

import griffe


def _fenced(text: str) -> str:
  """Returns a docstring whose part "Example:" is a fenced block of code."""
  pattern = r"(?m)^Example:\n((?:(?:[ ]{2,}.*)?\n?)+?)(?=^\S|\Z)"
  return re.sub(pattern, lambda m: f"**Example**\n\n```python\n{textwrap.dedent(m[1]).strip()}\n```\n\n", text)


class Examples(griffe.Extension):
  """Fences the examples of every docstring."""

  def on_object(self, *, obj: griffe.Object, **kwargs) -> None:
    if obj.docstring:
      obj.docstring.value = _fenced(obj.docstring.value)
