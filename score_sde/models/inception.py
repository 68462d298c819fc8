"""InceptionV3 as released for TensorFlow in 2015, the network that papers use to compute FID.

It differs from later InceptionV3 networks: images are resized without aligned pixel centres, average pooling ignores
padding, the last block uses max pooling, and there are 1,008 classes. Szegedy et al. 2016; Heusel et al. 2017. Layers
have the names of the weights used in PyTorch (pt_inception-2015-12-05).
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from score_sde.batch import Array
from score_sde.errors import InvalidArgument

SIZE = 299  # pixels per side of the input images

# Names of the outputs: pooled features, and logits without and with bias.
FEATURES = ("64", "192", "768", "2048", "logits_unbiased", "logits")


def resize(images: Array) -> Array:
  """Resizes images to 299 x 299 as TensorFlow 1: bilinear, row i is read at i * height / 299, without a half pixel."""

  def weights(n: int) -> np.ndarray:
    place = np.arange(SIZE) * np.float32(n / SIZE)
    low = np.floor(place).astype(int)
    out = np.zeros((SIZE, n), np.float32)
    np.add.at(out, (np.arange(SIZE), np.minimum(low, n - 1)), 1 - (place - low))
    np.add.at(out, (np.arange(SIZE), np.minimum(low + 1, n - 1)), place - low)
    return out

  rows, columns = weights(images.shape[1]), weights(images.shape[2])
  return jnp.einsum("ih,bhwc,jw->bijc", rows, images, columns, precision="highest")


def _average(x: Array) -> Array:
  """Returns 3 x 3 means without the padded pixels."""
  return nn.avg_pool(x, (3, 3), (1, 1), "SAME", count_include_pad=False)


def _largest(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (1, 1), "SAME")


def _halved(x: Array) -> Array:
  return nn.max_pool(x, (3, 3), (2, 2))


class Conv(nn.Module):
  """Convolution, normalization by stored statistics, ReLU."""

  features: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  same: bool = True

  @nn.compact
  def __call__(self, x: Array) -> Array:
    padding = "SAME" if self.same else "VALID"
    x = nn.Conv(self.features, self.kernel, (self.stride,) * 2, padding, use_bias=False, name="conv")(x)
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


class Mixed(nn.Module):
  """Inception block: parallel branches, whose outputs are concatenated.

  A branch is a chain of convolutions (name, features, kernel[, stride]). A pair of convolutions in a chain is applied
  in parallel to the same input. The last branch is `pool`, followed by a convolution if `pooled`.
  """

  branches: tuple[tuple, ...]
  pool: Callable[[Array], Array]
  pooled: int = 0

  @nn.compact
  def __call__(self, x: Array) -> Array:
    conv = lambda name, features, kernel, stride=1: Conv(features, kernel, stride, same=stride == 1, name=name)
    out = []
    for chain in self.branches:
      h = x
      for layer in chain:
        if isinstance(layer[0], tuple):
          h = jnp.concatenate([conv(*part)(h) for part in layer], axis=-1)
        else:
          h = conv(*layer)(h)
      out.append(h)
    h = self.pool(x)
    out.append(conv("branch_pool", self.pooled, (1, 1))(h) if self.pooled else h)
    return jnp.concatenate(out, axis=-1)


ONE, THREE, FIVE, ROW, COLUMN = (1, 1), (3, 3), (5, 5), (1, 7), (7, 1)


def _a(pooled: int, name: str) -> Mixed:
  return Mixed((
    (("branch1x1", 64, ONE),),
    (("branch5x5_1", 48, ONE), ("branch5x5_2", 64, FIVE)),
    (("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE)),
  ), _average, pooled, name=name)  # fmt: skip


def _b(name: str) -> Mixed:
  return Mixed((
    (("branch3x3", 384, THREE, 2),),
    (("branch3x3dbl_1", 64, ONE), ("branch3x3dbl_2", 96, THREE), ("branch3x3dbl_3", 96, THREE, 2)),
  ), _halved, name=name)  # fmt: skip


def _c(width: int, name: str) -> Mixed:
  return Mixed((
    (("branch1x1", 192, ONE),),
    (("branch7x7_1", width, ONE), ("branch7x7_2", width, ROW), ("branch7x7_3", 192, COLUMN)),
    (("branch7x7dbl_1", width, ONE), ("branch7x7dbl_2", width, COLUMN), ("branch7x7dbl_3", width, ROW),
     ("branch7x7dbl_4", width, COLUMN), ("branch7x7dbl_5", 192, ROW)),
  ), _average, 192, name=name)  # fmt: skip


def _d(name: str) -> Mixed:
  return Mixed((
    (("branch3x3_1", 192, ONE), ("branch3x3_2", 320, THREE, 2)),
    (("branch7x7x3_1", 192, ONE), ("branch7x7x3_2", 192, ROW), ("branch7x7x3_3", 192, COLUMN),
     ("branch7x7x3_4", 192, THREE, 2)),
  ), _halved, name=name)  # fmt: skip


def _e(pool: Callable[[Array], Array], name: str) -> Mixed:
  across = lambda branch: ((f"{branch}a", 384, (1, 3)), (f"{branch}b", 384, (3, 1)))
  return Mixed((
    (("branch1x1", 320, ONE),),
    (("branch3x3_1", 384, ONE), across("branch3x3_2")),
    (("branch3x3dbl_1", 448, ONE), ("branch3x3dbl_2", 384, THREE), across("branch3x3dbl_3")),
  ), pool, 192, name=name)  # fmt: skip


class Inception(nn.Module):
  """InceptionV3: uint8 images (B, H, W, 3) -> {name: (B, D)} for each name in FEATURES."""

  @nn.compact
  def __call__(self, images: Array) -> dict[str, Array]:
    x = (resize(images.astype(jnp.float32)) - 128) / 128
    mean = lambda x: jnp.mean(x, axis=(1, 2))
    x = Conv(32, THREE, 2, same=False, name="Conv2d_1a_3x3")(x)
    x = Conv(32, THREE, same=False, name="Conv2d_2a_3x3")(x)
    x = _halved(Conv(64, THREE, name="Conv2d_2b_3x3")(x))
    out = {"64": mean(x)}
    x = Conv(80, name="Conv2d_3b_1x1")(x)
    x = _halved(Conv(192, THREE, same=False, name="Conv2d_4a_3x3")(x))
    out["192"] = mean(x)
    for pooled, name in ((32, "Mixed_5b"), (64, "Mixed_5c"), (64, "Mixed_5d")):
      x = _a(pooled, name)(x)
    x = _b("Mixed_6a")(x)
    for width, name in ((128, "Mixed_6b"), (160, "Mixed_6c"), (160, "Mixed_6d"), (192, "Mixed_6e")):
      x = _c(width, name)(x)
    out["768"] = mean(x)
    x = _d("Mixed_7a")(x)
    x = _e(_largest, "Mixed_7c")(_e(_average, "Mixed_7b")(x))
    out["2048"] = mean(x)
    kernel = self.param("fc_kernel", nn.initializers.lecun_normal(), (2048, 1008))
    bias = self.param("fc_bias", nn.initializers.zeros_init(), (1008,))
    out["logits_unbiased"] = out["2048"] @ kernel
    out["logits"] = out["logits_unbiased"] + bias
    return out


# PyTorch's names of the arrays of a layer: (Flax collection, Flax name).
_LEAVES = {
  "conv.weight": ("params", "conv/kernel"),
  "bn.weight": ("params", "bn/scale"),
  "bn.bias": ("params", "bn/bias"),
  "bn.running_mean": ("batch_stats", "bn/mean"),
  "bn.running_var": ("batch_stats", "bn/var"),
}


def from_pytorch(state: dict[str, np.ndarray]) -> dict[str, Any]:
  """Returns the variables of `Inception` from a PyTorch state dict.

  Raises:
    InvalidArgument: for names or shapes that do not match this network. The message has the first ones that differ.
  """
  flat = {}
  for name, value in state.items():
    layer, _, leaf = name.rpartition(".")
    if name == "fc.weight":
      flat["params", "fc_kernel"] = np.asarray(value).T
    elif name == "fc.bias":
      flat["params", "fc_bias"] = np.asarray(value)
    elif leaf != "num_batches_tracked":
      layer, _, kind = layer.rpartition(".")
      if f"{kind}.{leaf}" not in _LEAVES:
        raise InvalidArgument(f"{name!r} is no weight of InceptionV3 (pt_inception-2015-12-05).")
      collection, ours = _LEAVES[f"{kind}.{leaf}"]
      value = np.asarray(value)
      flat[collection, *layer.split("."), *ours.split("/")] = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value
  target = jax.eval_shape(Inception().init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), jnp.uint8))
  expected = {tuple(k.key for k in path): leaf.shape for path, leaf in jax.tree_util.tree_leaves_with_path(target)}
  found = {key: value.shape for key, value in flat.items()}
  differ = [".".join(k) for k in sorted(expected | found) if expected.get(k) != found.get(k)]
  if differ:
    raise InvalidArgument(
      f"These are not the weights of InceptionV3 (pt_inception-2015-12-05): {len(differ)} of {len(expected)} arrays "
      f"are missing, unknown or of another shape: {', '.join(differ[:5])}."
    )
  variables: dict[str, Any] = {}
  for (*path, last), value in flat.items():
    node = variables
    for part in path:
      node = node.setdefault(part, {})
    node[last] = jnp.asarray(value, jnp.float32)
  return variables
