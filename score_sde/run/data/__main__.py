"""`python -m score_sde.run.data suggest-sigmas --config=FILE`."""

from score_sde.run import cli
from score_sde.run.noise_scales import suggest_sigmas

cli.run_tool({"suggest-sigmas": suggest_sigmas}, needs_workdir=False)
