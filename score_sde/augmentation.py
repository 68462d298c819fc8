"""Augmentation that does not leak into samples: the network is told how each example was changed."""

import dataclasses
import math

import jax
import jax.numpy as jnp

from score_sde.batch import Array, Batch, Keys, fold
from score_sde.models.layers import downsample, upsample
from score_sde.options import Options, option

# Numbers that describe how an example was changed.
AUGMENTED = 9

_FILTER = (1, 3, 3, 1)

# Streams of an example's key: for each transformation one for its values and one for whether it is applied.
_FLIP_X, _FLIP_Y, _SCALE, _ROTATE, _STRETCH, _SHIFT = range(6)


@dataclasses.dataclass(frozen=True)
class Augmentation(Options):
  """Geometric augmentation of images: (keys (B,), x (B, H, W, C)) -> (x, labels (B, 9)).

  Images are mirrored left to right with probability 1/2. Each of the other changes is made with `augment`: mirrored top
  to bottom (1/2 of them), scaled by 2^(0.2 z), rotated by any angle, stretched by 2^(0.2 z) along one direction and
  shrunk across it, and moved by 0.125 z of the size, z ~ N(0, 1). Parts beyond the border are mirrored. The labels are
  zero where nothing is changed, so samples with labels of zero look like the data. Karras et al. 2022, Appendix F.2.
  As there, a stretch z at the angle a has the labels z cos a and z sin a, and so has the opposite one, -z at a + pi.

  Example:
    >>> import jax, jax.numpy as jnp, score_sde as ss
    >>> from score_sde.augmentation import Augmentation
    >>> x, labels = Augmentation(0.12)(jax.random.split(jax.random.key(0), 4), jnp.ones((4, 8, 8, 3)))
    >>> x.shape, labels.shape
    ((4, 8, 8, 3), (4, 9))
  """

  augment: float = option(0.0, "probability of each of EDM's augmentations, of which the network is told", "[0, 1]")

  def __call__(self, keys: Keys, x: Batch) -> tuple[Array, Array]:
    draw = lambda stream, sample, *shape: jax.vmap(lambda key: sample(key, shape))(fold(keys, 2 * stream))
    coin = lambda stream: jax.vmap(jax.random.uniform)(fold(keys, 2 * stream + 1)) < self.augment
    masked = lambda stream, w: jnp.where(coin(stream).reshape(-1, *(1,) * (w.ndim - 1)), w, 0)
    normal, uniform = jax.random.normal, jax.random.uniform

    flip_x = (draw(_FLIP_X, uniform) < 0.5).astype(x.dtype)
    flip_y = masked(_FLIP_Y, (draw(_FLIP_Y, uniform) < 0.5).astype(x.dtype))
    scale = masked(_SCALE, draw(_SCALE, normal))
    angle = masked(_ROTATE, (2 * draw(_ROTATE, uniform) - 1) * math.pi)
    stretched = draw(_STRETCH, uniform, 3)
    z = jax.scipy.special.ndtri(jnp.clip(stretched[:, 0], 1e-6, 1 - 1e-6))
    # Half of the stretches are along an axis.
    direction = jnp.where(stretched[:, 2] < 0.5, (2 * stretched[:, 1] - 1) * math.pi, 0)
    stretch, direction = masked(_STRETCH, jnp.stack([z, direction], axis=1)).T
    shift = masked(_SHIFT, draw(_SHIFT, normal, 2))

    labels = jnp.stack([
      flip_x, flip_y, scale, jnp.cos(angle) - 1, jnp.sin(angle), stretch * jnp.cos(direction),
      stretch * jnp.sin(direction), shift[:, 0], shift[:, 1],
    ], axis=1)  # fmt: skip
    x = jnp.where(flip_x[:, None, None, None] > 0, x[:, :, ::-1], x)
    x = jnp.where(flip_y[:, None, None, None] > 0, x[:, ::-1], x)
    height, width = x.shape[1:3]
    back = _scaled(2.0 ** (-0.2 * scale), 2.0 ** (-0.2 * scale)) @ _rotated(-angle)
    along = 2.0 ** (-0.2 * stretch)
    back = back @ _rotated(direction) @ _scaled(along, 1 / along) @ _rotated(-direction)
    offset = -0.125 * shift * jnp.array([width, height], x.dtype)
    offset = jnp.einsum("bij,bj->bi", back, offset)
    moved = jax.vmap(_resampled)(_doubled(x), back, 2 * offset)
    changed = jnp.any(labels[:, 2:] != 0, axis=1)
    return jnp.where(changed[:, None, None, None], _halved(moved), x), labels


# The filters pad by zeros: without pixels beyond the border, they would darken it.


def _doubled(x: Array) -> Array:
  return upsample(jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), "symmetric"), _FILTER)[:, 2:-2, 2:-2]


def _halved(x: Array) -> Array:
  return downsample(jnp.pad(x, ((0, 0), (2, 2), (2, 2), (0, 0)), "symmetric"), _FILTER)[:, 1:-1, 1:-1]


def _scaled(a: Array, b: Array) -> Array:
  zero = jnp.zeros_like(a)
  return jnp.stack([jnp.stack([a, zero], axis=-1), jnp.stack([zero, b], axis=-1)], axis=-2)


def _rotated(angle: Array) -> Array:
  c, s = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([c, -s], axis=-1), jnp.stack([s, c], axis=-1)], axis=-2)


def _resampled(image: Array, back: Array, offset: Array) -> Array:
  """Returns the image (H, W, C) whose place p, from the centre in (x, y), shows the place `back` p + `offset`."""
  height, width, _ = image.shape
  rows, columns = jnp.meshgrid(
    jnp.arange(height) - (height - 1) / 2, jnp.arange(width) - (width - 1) / 2, indexing="ij"
  )
  place = jnp.einsum("ij,jhw->ihw", back, jnp.stack([columns, rows])) + offset[:, None, None]
  at = [place[1] + (height - 1) / 2, place[0] + (width - 1) / 2]
  one = lambda channel: jax.scipy.ndimage.map_coordinates(channel, at, order=1, mode="reflect")
  return jax.vmap(one, in_axes=-1, out_axes=-1)(image)
