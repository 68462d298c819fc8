"""Texts of --help."""

import os
import sys
from collections.abc import Iterable, Mapping
from typing import Any

from absl import flags

from score_sde.models import MODELS
from score_sde.run import shipped
from score_sde.run.cli.arguments import (
  CONFIG,
  COORDINATOR,
  DISTRIBUTED,
  HOST_INDEX,
  HOST_TIMEOUT,
  MODE,
  NUM_HOSTS,
  TARGET,
  WORKDIR,
)  # fmt: skip
from score_sde.run.config import SDES, describe, keys
from score_sde.sampling import METHODS


def show(text: str) -> None:
  """Prints a text, which a reader such as `head` may close early."""
  try:
    print(text, flush=True)
  except BrokenPipeError:
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains again at its end


def of_program(commands: Mapping[str, tuple[str, str, Any]]) -> str:
  """Returns the help: commands {name: (arguments, help, function)}, configs, SDEs, samplers, networks, one per line."""
  first = lambda thing: (thing.__doc__ or "").split("\n")[0]
  return (
    "usage: python -m score_sde COMMAND [--config=FILE] [--workdir=FOLDER] [--config.SECTION.KEY=VALUE ...]\n\n"
    "commands (python -m score_sde COMMAND --help has the keys)\n"
    f"{_rows((name, meaning) for name, (_, meaning, _) in commands.items())}\n\n"
    f"configs\n{_rows(shipped.described())}\n\n"
    f"training.sde\n{_rows((name, first(sde)) for name, sde in SDES.items())}\n\n"
    f"sampling.method\n{_rows((name, first(solver)) for name, solver in METHODS.items())}\n\n"
    f"model.name\n{_rows((name, first(network)) for name, network in MODELS.items())}"
  )


def of_command(name: str, usage: str, meaning: str) -> str:
  """Returns the help of one command."""
  takes_config = "--config" in usage
  end = " [--config.SECTION.KEY=VALUE ...]" if takes_config else ""
  more = f"\n\n{of_flags()}" if takes_config else ""
  return f"usage: python -m score_sde {name} {usage}{end}\n\n{meaning}{more}"


def of_flags() -> str:
  """Returns the descriptions of the flags and of all config keys, one per line."""
  holders = (CONFIG, WORKDIR, MODE, TARGET, DISTRIBUTED, COORDINATOR, NUM_HOSTS, HOST_INDEX, HOST_TIMEOUT)
  described = "\n".join(f"  --{h.name:<16}{flags.FLAGS[h.name].help}" for h in holders)
  return f"flags\n{described}\n\nkeys (--config.KEY=VALUE)\n" + "\n".join(f"  {describe(key)}" for key in keys())


def _rows(pairs: Iterable[tuple[str, str]]) -> str:
  return "\n".join(f"  {name:<18}{meaning}" for name, meaning in pairs)
