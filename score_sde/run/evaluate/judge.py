"""Judge: a cheap measurement of sample quality, for snapshots during training."""

import dataclasses
from collections.abc import Callable

from score_sde.run.config import BadInput
from score_sde.run.evaluate import quality
from score_sde.run.evaluate.measures import MEASURES
from score_sde.run.evaluate.samples import draw_samples, to_uint8
from score_sde.run.experiment import Experiment, Params, make_sampler
from score_sde.sampling import DPMSolver


def make_judge(experiment: Experiment) -> Callable[[Params], dict[str, float]] | None:
  """Returns params -> {"fid", "precision", "recall", ...} of training.fid_samples samples; None if that is 0.

  The samples take training.fid_steps steps of DPM-Solver++ (of the config's own sampler if the SDE is not linear;
  and the config's own sampler, with its own steps, for models that were made for few steps). All
  snapshots use the same noise, so that only the network changes between them.

  Raises:
    BadInput: if eval.features is unset; also see `quality.compared_with`.
  """
  config, total = experiment.config, experiment.config.training.fid_samples
  if not total:
    return None
  if config.training.task == "classifier":
    raise BadInput(f"training.fid_samples={total}: a classifier draws no samples. Leave it at 0.")
  if not config.eval.features:
    raise BadInput(
      f"training.fid_samples={total} needs eval.features: 'inception', or the workdir of a classifier "
      "(configs/classifier/)."
    )
  extractor, reference = quality.compared_with(config, total, "training.fid_samples")
  drawing = experiment
  if config.training.task == "score":
    solver = DPMSolver() if experiment.sde.is_linear else None
    grid = "log_snr" if solver else config.sampling.grid
    sampler = make_sampler(config, experiment.sde, solver, steps=config.training.fid_steps, grid=grid)
    drawing = dataclasses.replace(experiment, sampler=sampler)

  def judge(params: Params) -> dict[str, float]:
    drawn, *_ = draw_samples(drawing, params, total)
    images = to_uint8(drawn, config.eval.quantization)
    row = quality.measure(config, [extractor(images)], extractor, reference)
    return {m.key: float(row[m.key]) for m in MEASURES if m.curve and m.key in row}

  return judge
