"""Trains, samples or evaluates: `python run.py --config=configs/quickstart.py --workdir=runs/quickstart`."""

from score_sde.run import cli

if __name__ == "__main__":
  cli.run()
