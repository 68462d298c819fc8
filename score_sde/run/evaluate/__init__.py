"""Evaluation of trained models: losses, bits/dim, samples and how good they are; pictures and reports of them."""

from score_sde.run.evaluate.quality import compared_with, measure
from score_sde.run.evaluate.runs import evaluate, open_workdir, restore, sample
from score_sde.run.evaluate.samples import draw, draw_samples, to_uint8

__all__ = [
  "compared_with",
  "draw",
  "draw_samples",
  "evaluate",
  "measure",
  "open_workdir",
  "restore",
  "sample",
  "to_uint8",
]
