"""python -m score_sde.run.evaluate compare RUN...: evaluations side by side. RUN is a workdir, or a report in it."""

from score_sde.run import cli
from score_sde.run.evaluate.compare import compare

if __name__ == "__main__":
  cli.run_on({"compare": lambda *runs: print(compare(*runs))}, "RUN")
