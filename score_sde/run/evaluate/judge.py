"""A cheap measure of sample quality, for snapshots while training."""

import dataclasses
from collections.abc import Callable

from score_sde.run.config import BadInput
from score_sde.run.evaluate import quality
from score_sde.run.evaluate.measures import MEASURES
from score_sde.run.evaluate.samples import draw_samples, to_uint8
from score_sde.run.experiment import Experiment, Params, make_sampler
from score_sde.sampling import DPMSolver


def make_judge(experiment: Experiment) -> Callable[[Params], dict[str, float]] | None:
  """params -> {"fid", "precision", "recall", ...} of training.fid_samples samples; None where that is 0.

  They are drawn in training.fid_steps evaluations of DPM-Solver++ (of the config's own sampler, where the SDE is not
  linear), from the same noise at every snapshot, so that what changes from one to the next is the network.

  Raises:
    BadInput: without eval.features, or as `quality.compared_with`.
  """
  config, total = experiment.config, experiment.config.training.fid_samples
  if not total:
    return None
  if config.training.task != "score":
    raise BadInput(f"training.fid_samples={total}: a classifier draws no samples. Leave it at 0.")
  if not config.eval.features:
    raise BadInput(
      f"training.fid_samples={total} needs eval.features: 'inception', or the workdir of a classifier "
      "(configs/classifier/)."
    )
  extractor, reference = quality.compared_with(config, total)
  solver = DPMSolver() if experiment.sde.is_linear else None
  grid = "log_snr" if solver else config.sampling.grid
  sampler = make_sampler(config, experiment.sde, solver, steps=config.training.fid_steps, grid=grid)
  drawing = dataclasses.replace(experiment, sampler=sampler)

  def judge(params: Params) -> dict[str, float]:
    drawn, _, _ = draw_samples(drawing, params, total)
    images = to_uint8(drawn, config.eval.quantization)
    row = quality.measure(config, [extractor(images)], extractor, reference)
    return {m.key: float(row[m.key]) for m in MEASURES if m.curve and m.key in row}

  return judge
