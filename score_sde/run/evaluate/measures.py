"""Measures: a table of the numbers of an evaluation, with their names and their format in reports and comparisons."""

import dataclasses
from typing import Any

# Prefixes of printed likelihoods. Bounds are upper bounds.
BOUND = {"ode": "", "elbo": "at most ", "chain": "at most "}


@dataclasses.dataclass(frozen=True)
class Measure:
  """Measure: a number that is measured of a checkpoint.

  Attributes:
    key: its name in report.json.
    title: its name in the tables of a report.
    digits: its number format.
    error: the key of its standard error or deviation; "" for none.
    short: its name in the table that compares runs; "" to leave it out there.
    line: its text in the terminal, with {} for the number; "" to leave it out there.
    curve: whether it is also measured for snapshots during training.
    bound: whether it is a likelihood, which may be a bound.
    zero: whether a zero is shown.
  """

  key: str
  title: str
  digits: str = ".3f"
  error: str = ""
  short: str = ""
  line: str = ""
  curve: bool = False
  bound: bool = False
  zero: bool = True

  def show(self, row: dict[str, Any]) -> str:
    """Returns the number of a row as text; "" if the row has none."""
    value = number(row, self.key, self.error, self.digits) if self.zero or row.get(self.key) else ""
    return BOUND[row["likelihood"]] + value if value and self.bound else value

  def brief(self, row: dict[str, Any]) -> str:
    """Returns the number of a row as text for a table of several runs. Only likelihoods keep their error."""
    return self.show(row) if self.bound else number(row, self.key, "", self.digits)


def number(row: dict[str, Any], key: str, error: str = "", digits: str = ".3f") -> str:
  """Returns the entry `key` of a row as text, with its `error` if the row has one; "" if the entry is missing."""
  if row.get(key) is None or row[key] == "":
    return ""
  spread = f" ± {float(row[error]):{digits}}" if row.get(error) is not None else ""
  value = float(row[key]) if isinstance(row[key], str) else row[key]  # JSON has infinity as a text
  return f"{value:{digits}}{spread}"


MEASURES = (
  Measure("loss", "loss", ".4f", "loss_error", line="loss {}"),
  Measure("accuracy", "accuracy without noise", ".1%"),
  Measure("bits_per_dim", "bits/dim", error="bits_per_dim_error", short="bits/dim", bound=True),
  Measure("nats", "nats", error="nats_error", short="nats", bound=True),
  Measure("examples", "examples of the likelihood", ","),
  Measure("likelihood_failed", "likelihoods that failed", ",", line="{} likelihoods failed", zero=False),
  Measure("likelihood_nfe", "evaluations of the likelihood", ".0f"),
  Measure("samples", "samples", ",", short="samples"),
  Measure("samples_failed", "samples that failed", ",", zero=False),
  Measure("sampling_nfe", "evaluations per sample (NFE)", ".0f", short="NFE"),
  Measure("seconds_per_image", "seconds per image", ".3g", short="s / image"),
  Measure("fid", "FID", ".4g", short="FID", line="fid {}", curve=True),
  Measure("kid", "KID", ".5f", "kid_std", short="KID", line="kid {}", curve=True),
  Measure("inception_score", "inception score", ".3f", "inception_score_std", "IS", "inception score {}", curve=True),
  Measure("precision", "precision", short="precision", line="precision {}", curve=True),
  Measure("recall", "recall", short="recall", line="recall {}", curve=True),
  Measure("reference_images", "reference images", ","),
  Measure("seconds", "wall time, s", ".1f"),
)
