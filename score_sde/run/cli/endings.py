"""How a program ends early: one line on stderr and an exit code."""

import os
import sys
from typing import NoReturn

from score_sde.run import devices


def fail(message: str) -> NoReturn:
  program = "python -m score_sde" if sys.argv[0].endswith("__main__.py") else sys.argv[0]
  print(f"{program}: {' '.join(message.split())}", file=sys.stderr)
  leave(2)


def leave(code: int) -> NoReturn:
  """Ends the program. With several hosts it does not wait for the others, because they may be waiting for this one."""
  sys.stdout.flush()
  sys.stderr.flush()
  if devices.is_connected():
    os._exit(code)
  sys.exit(code)
