"""Networks: (x, labels, keys, y) -> like x. They do not depend on an SDE."""

from score_sde.models.ddpm import DDPM
from score_sde.models.dit import DiT
from score_sde.models.mlp import MLP
from score_sde.models.ncsn import NCSN, NCSNv2_64, NCSNv2_128, NCSNv2_256, RefineNet
from score_sde.models.ncsnpp import NCSNpp
from score_sde.models.wideresnet import WideResnet

__all__ = [
  "DDPM",
  "MLP",
  "MODELS",
  "NCSN",
  "DiT",
  "NCSNpp",
  "NCSNv2_64",
  "NCSNv2_128",
  "NCSNv2_256",
  "RefineNet",
  "WideResnet",
]

MODELS = {
  "ncsnpp": NCSNpp,
  "ddpm": DDPM,
  "ncsn": NCSN,
  "ncsnv2_64": NCSNv2_64,
  "ncsnv2_128": NCSNv2_128,
  "ncsnv2_256": NCSNv2_256,
  "dit": DiT,
  "mlp": MLP,
  "wideresnet": WideResnet,  # a classifier
}
