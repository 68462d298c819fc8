"""python -m score_sde.evaluation compare RUN...: evaluations side by side. RUN is a workdir, or a report in it."""

from score_sde import cli
from score_sde.evaluation.compare import compare

if __name__ == "__main__":
  cli.run_on({"compare": lambda *runs: print(compare(*runs))}, "RUN")
