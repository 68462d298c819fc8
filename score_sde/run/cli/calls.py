"""Runs the action of a command: with its hosts, and with known errors as one line on stderr."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from absl import app

from score_sde.errors import ScoreSDEError
from score_sde.run import devices, heap
from score_sde.run.checkpoints import finds_no_room
from score_sde.run.cli.arguments import CONFIG, WORKDIR, connect, parse
from score_sde.run.cli.endings import fail, leave
from score_sde.run.config import BadInput
from score_sde.run.data import Stalled
from score_sde.run.devices import programs
from score_sde.run.report.progress import Interrupted, stops_on_signal, tell
from score_sde.run.workdir import recalled


def call(action: Callable[[], Any]) -> None:
  """Runs `action`. Known errors end the program with one line on stderr and an exit code, see cli."""
  # orbax logs every save to this logger, and every error that it raises anyway. absl's verbosity does not stop this.
  logging.getLogger("absl").setLevel(logging.CRITICAL)
  logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # it logs the errors that it raises
  logging.basicConfig(level=logging.WARNING, format="%(message)s", stream=sys.stderr, force=True)
  logging.getLogger("score_sde").setLevel(logging.INFO)
  heap.limit()
  with stops_on_signal(), programs.announces_compilations(tell):
    try:
      connect()
      with devices.hosts_lost():
        action()
    except BadInput as error:
      fail(str(error))
    except Interrupted as error:
      print(str(error) or "Stopped by a signal. Repeat the command to resume.", file=sys.stderr)
    except Stalled as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr, flush=True)
      os._exit(1)  # the thread that hangs would keep the process alive
    except ScoreSDEError as error:
      print(f"{sys.argv[0]}: {error}", file=sys.stderr)
      leave(1)
    except OSError as error:
      if not finds_no_room(error):
        raise
      print(f"{sys.argv[0]}: {error}. Free some space and repeat the command: it resumes.", file=sys.stderr)
      leave(1)


def run_tool(action: Callable[..., Any], positional: Sequence[str] = (), *, needs_workdir: bool = True) -> None:
  """Runs a command that takes --config, --workdir if `needs_workdir`, and `positional` arguments.

  Calls action(config, workdir if needed, *positional).
  """

  def main(arguments: Sequence[str]) -> None:
    paths = ([str(WORKDIR.value)] if needs_workdir else []) + list(arguments[1:])
    known = lambda: recalled(CONFIG.value, os.path.expanduser(WORKDIR.value or ""))
    call(lambda: action(known(), *(os.path.expanduser(path) for path in paths)))

  app.run(main, flags_parser=lambda argv: parse(argv, positional, needs_workdir))
