"""Schedulers of diffusers pipelines, as settings of our config: the SDE, the parameterization and the noise levels."""

import json
import math
import pathlib
from typing import Any

from score_sde.run.config import BadInput
from score_sde.run.config.errors import foreign

# Classes whose models have the noise levels of DDPM. All have the same keys for them.
_OF_DDPM = (
  "DDPM", "DDIM", "PNDM", "IPNDM", "DPMSolver", "DPMSolverSinglestep", "DPMSolverMultistep", "DPMSolverSDE",
  "UniPCMultistep", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "LMSDiscrete", "DEISMultistep",
  "KDPM2Discrete", "KDPM2AncestralDiscrete", "SASolver",
)  # fmt: skip

_PREDICTIONS = {"epsilon": "noise", "v_prediction": "velocity", "sample": "data"}

# Keys that change the noise levels of a model, with the only values that our SDEs have.
_SAME = {
  "trained_betas": (None, []),
  "predict_epsilon": (None, True),  # the older name of prediction_type
  "rescale_betas_zero_snr": (None, False),
  "use_flow_sigmas": (None, False),
}


def file_of(source: pathlib.Path) -> pathlib.Path | None:
  """Returns the scheduler_config.json of a pipeline's folder; None if there is none."""
  for folder in (source / "scheduler", source):
    if (folder / "scheduler_config.json").is_file():
      return folder / "scheduler_config.json"
  return None


def settings_of(source: pathlib.Path) -> dict[str, Any]:
  """Returns {dotted key: value} of our config that the scheduler of a pipeline's folder requires; {} without one.

  All schedulers of DDPM's kind describe the same model (DDPM, DDIM, PNDM, DPM-Solver, UniPC and others), and only
  sample it differently. Samplers are chosen here as for any other model.

  Raises:
    BadInput: for noise levels that none of our SDEs has.
  """
  file = file_of(source) if source.is_dir() else None
  if file is None:
    return {}
  with foreign(repr(str(file)), "Is it whole?"):
    given = dict(json.loads(file.read_text()))
    kind = str(given.get("_class_name", ""))
    if kind.startswith("ScoreSdeVe"):
      return _of_ve(given)
    if kind and kind.removesuffix("Scheduler") not in _OF_DDPM:
      raise BadInput(
        f"{str(file)!r} is a {kind}, whose noise levels are not known here. Give the model's config, --config=FILE, "
        "and remove the scheduler from the folder."
      )
    return _of_ddpm(given, kind, file)


def _of_ve(given: dict[str, Any]) -> dict[str, Any]:
  """Returns the settings of ScoreSdeVeScheduler, with the defaults of diffusers."""
  return {
    "training.sde": "vesde",
    "training.continuous": True,
    "model.sigma_min": float(given.get("sigma_min", 0.01)),
    "model.sigma_max": float(given.get("sigma_max", 1348.0)),
  }


def _of_ddpm(given: dict[str, Any], kind: str, file: pathlib.Path) -> dict[str, Any]:
  """Returns the settings of a scheduler of DDPM's kind, with the defaults of diffusers."""
  name = repr(str(file))
  for key, values in _SAME.items():
    if given.get(key) not in values:
      raise BadInput(f"{name} has {key}={given[key]!r}, and none of our SDEs has such noise levels. Not imported.")
  schedule, steps = given.get("beta_schedule", "linear"), int(given.get("num_train_timesteps", 1000))
  prediction = given.get("prediction_type", "epsilon")
  if prediction not in _PREDICTIONS:
    raise BadInput(f"{name} has prediction_type={prediction!r}; ours are {', '.join(_PREDICTIONS)}. Not imported.")
  settings: dict[str, Any] = {
    "training.continuous": False,
    "model.num_scales": steps,
    "model.parameterization": _PREDICTIONS[prediction],
  }
  if schedule == "squaredcos_cap_v2":
    return settings | {"training.sde": "cosine"}
  if schedule == "linear":
    return settings | {
      "training.sde": "vpsde",
      "model.beta_min": _rounded(float(given.get("beta_start", 1e-4)) * steps),
      "model.beta_max": _rounded(float(given.get("beta_end", 0.02)) * steps),
    }
  raise BadInput(
    f"{name} ({kind or 'a scheduler'}) has beta_schedule={schedule!r}; ours are linear (VP) and squaredcos_cap_v2 "
    "(cosine). Not imported: sampled with other noise levels, the model would draw wrong images."
  )


def _rounded(value: float) -> float:
  """Returns a number without the error of its product: 0.1 and not 0.09999999999999999."""
  return value if value == 0 else round(value, 12 - math.ceil(math.log10(abs(value))))
