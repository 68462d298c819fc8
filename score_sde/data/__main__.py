"""`python -m score_sde.data suggest-sigmas --config=FILE`."""

from score_sde import cli
from score_sde.noise_scales import suggest_sigmas

cli.run_tool({"suggest-sigmas": suggest_sigmas}, needs_workdir=False)
