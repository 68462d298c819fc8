"""Evaluation of trained models: losses, bits/dim, samples and their quality; pictures and reports."""

from score_sde.run.evaluate.chosen import chosen_step, open_workdir, restore, warn_of_short_run
from score_sde.run.evaluate.earlier import keep_arrays
from score_sde.run.evaluate.quality import compared_with, measure
from score_sde.run.evaluate.runs import SolvesFailed, evaluate, is_reported, sample
from score_sde.run.evaluate.samples import draw, draw_samples, sampler_name, to_uint8

__all__ = [
  "SolvesFailed",
  "chosen_step",
  "compared_with",
  "draw",
  "draw_samples",
  "evaluate",
  "is_reported",
  "keep_arrays",
  "measure",
  "open_workdir",
  "restore",
  "sample",
  "sampler_name",
  "to_uint8",
  "warn_of_short_run",
]
