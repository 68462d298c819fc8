"""Command lines `python -m score_sde COMMAND` and run.py: they read and check the flags, then call one function.

Wrong input ends the program with one line on stderr and exit code 2. A failure during the run (a run that diverges, a
lost host, a full disk) ends it with one line on stderr and exit code 1.
"""

from score_sde.run.cli.commands import COMMANDS, main, run

__all__ = ["COMMANDS", "main", "run"]
