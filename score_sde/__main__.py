"""The command line: `python -m score_sde COMMAND`, see `--help`."""

from score_sde.run import cli

if __name__ == "__main__":
  cli.main()
