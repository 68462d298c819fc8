"""Augmentation of which the network is told: each change is what its label says, and none is no change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import tiny

import score_sde as ss
from score_sde.augmentation import AUGMENTED, Augmentation, _doubled, _halved, _resampled, _rotated, _scaled
from score_sde.models import NCSNpp
from score_sde.run import training
from score_sde.run.config import BadInput, resolve
from score_sde.run.experiment import build

KEYS = jax.random.split(jax.random.key(0), 500)
RNG = np.random.default_rng(0)


def smooth(size=16):
  """An image without fine detail, so that resampling changes little of it."""
  row, column = np.meshgrid(*[np.arange(size)] * 2, indexing="ij")
  return jnp.asarray(np.stack([np.sin(row / 3) + 0.2 * column / size, np.cos(column / 4)], axis=-1), jnp.float32)


@pytest.mark.thorough
def test_without_probability_images_are_only_mirrored():
  x = jnp.broadcast_to(smooth(), (500, 16, 16, 2))
  changed, labels = Augmentation(0.0)(KEYS, x)
  assert labels.shape == (500, AUGMENTED)
  assert not labels[:, 1:].any()
  assert labels[:, 0].mean() == pytest.approx(0.5, abs=0.07)
  flipped = labels[:, 0] > 0
  np.testing.assert_array_equal(changed[flipped], x[flipped][:, :, ::-1])
  np.testing.assert_array_equal(changed[~flipped], x[~flipped])


def test_each_change_has_its_probability_and_its_law():
  _, labels = Augmentation(0.2)(KEYS, jnp.zeros((500, 4, 4, 1)))
  shares = (np.asarray(labels) != 0).mean(axis=0)
  np.testing.assert_allclose(shares, [0.5, 0.1, 0.2, 0.2, 0.2, 0.2, 0.1, 0.2, 0.2], atol=0.06)
  moved = np.asarray(labels[:, 7:])[labels[:, 7] != 0]
  assert moved.std() == pytest.approx(1, abs=0.15)
  x, y = labels[:, 3] + 1, labels[:, 4]
  np.testing.assert_allclose(x**2 + y**2, 1, atol=1e-5)  # the cosine and sine of one angle


@pytest.mark.thorough
def test_an_example_without_changes_stays_bit_for_bit_and_each_has_its_own_key():
  x = jnp.asarray(RNG.normal(size=(500, 8, 8, 3)), jnp.float32)
  changed, labels = Augmentation(0.12)(KEYS, x)
  same = ~np.any(np.asarray(labels) != 0, axis=1)
  assert same.mean() > 0.15
  np.testing.assert_array_equal(changed[same], x[same])
  alone, _ = Augmentation(0.12)(KEYS[3:5], x[3:5])
  np.testing.assert_allclose(alone, changed[3:5], atol=1e-6)


def test_resampling_turns_scales_and_moves_as_asked():
  image = smooth()
  still = jnp.zeros(2)
  turned = _resampled(image, _rotated(jnp.float32(np.pi / 2)), still)
  assert np.allclose(turned, np.rot90(image, 1), atol=1e-4) or np.allclose(turned, np.rot90(image, -1), atol=1e-4)
  one = jnp.float32(1)
  np.testing.assert_allclose(
    _resampled(image, _scaled(one, one), jnp.array([2.0, 1.0]))[:-1, :-2], image[1:, 2:], atol=1e-5
  )
  larger = _resampled(image, _scaled(one / 2, one / 2), still)  # twice as large: the centre fills the image
  at = 7.5 + (np.arange(16) - 7.5) / 2
  expected = np.stack([np.sin(at / 3) + 0.2 * at / 16, np.cos(at / 4)], axis=-1)
  np.testing.assert_allclose(larger[np.arange(16), np.arange(16)], expected, atol=0.03)


def test_borders_are_mirrored_and_not_darkened():
  """An image of one colour stays one, however it is changed; and resampling without a change keeps smooth borders."""
  changed, labels = Augmentation(1.0)(KEYS[:64], jnp.ones((64, 16, 16, 2)))
  assert (labels[:, 2] != 0).all()  # all are scaled
  np.testing.assert_allclose(changed, 1, atol=1e-5)
  np.testing.assert_allclose(_halved(_doubled(smooth()[None]))[0], smooth(), atol=0.1)


def test_a_moved_image_is_moved_by_its_label():
  """Along the width, label 7 moves by an eighth of the size each: where only that is set, the image is shifted."""
  image = smooth(32)
  x = jnp.broadcast_to(image, (500, 32, 32, 2))
  changed, labels = Augmentation(0.2)(KEYS, x)
  only = np.flatnonzero(
    (np.abs(labels[:, :7]).max(axis=1) == 0) & (labels[:, 7] != 0) & (np.abs(labels[:, 7:]).max(1) < 1.5)
  )
  assert len(only) > 5
  row, column = np.meshgrid(np.arange(32.0), np.arange(32.0), indexing="ij")
  for i in only[:6]:
    dx, dy = 0.125 * 32 * np.asarray(labels[i, 7:])
    expected = np.stack([np.sin((row - dy) / 3) + 0.2 * (column - dx) / 32, np.cos((column - dx) / 4)], axis=-1)
    np.testing.assert_allclose(changed[i, 10:22, 10:22], expected[10:22, 10:22], atol=0.06)


@pytest.mark.parametrize("kind", ["scaled", "rotated", "stretched"])
def test_an_image_is_changed_as_its_labels_say(kind):
  """Against the image as a function of the place, where only this change was made: seen at the place before it."""
  image, mine = smooth(32), {"scaled": [2], "rotated": [3, 4], "stretched": [5, 6]}[kind]
  changed, labels = Augmentation(0.2)(KEYS, jnp.broadcast_to(image, (500, 32, 32, 2)))
  labels = np.asarray(labels, np.float64)
  others = [i for i in range(AUGMENTED) if i not in mine]
  only = np.flatnonzero((np.abs(labels[:, others]).max(axis=1) == 0) & (np.abs(labels[:, mine]).max(axis=1) > 0.2))
  assert len(only) > 4
  y, x = np.meshgrid(*[np.arange(32) - 15.5] * 2, indexing="ij")
  inner = np.hypot(x, y) < 6
  for i in only[:8]:
    turned, scale = labels[i], 2.0 ** (0.2 * labels[i, 2])
    # The angle a with cosine 1 + label 3 and sine label 4, from the x axis (right) to the y axis (down).
    c, s = 1 + turned[3], turned[4]
    px, py = (c * x + s * y) / scale, (-s * x + c * y) / scale
    length = np.hypot(turned[5], turned[6])
    errors = []
    # Along the direction (label 5, label 6) and shrunk across it, or the other way round: EDM's labels do not say.
    for factor in (2.0 ** (0.2 * length), 2.0 ** (-0.2 * length)) if length else (1.0,):
      ux, uy = (turned[5] / length, turned[6] / length) if length else (1.0, 0.0)
      along, across = (ux * px + uy * py) / factor, (-uy * px + ux * py) * factor
      row, column = uy * along + ux * across + 15.5, ux * along - uy * across + 15.5
      expected = np.stack([np.sin(row / 3) + 0.2 * column / 32, np.cos(column / 4)], axis=-1)
      errors.append(np.abs(changed[i] - expected)[inner].max())
    assert min(errors) < 0.06


@pytest.mark.thorough
def test_the_network_is_told_and_samples_are_told_nothing():
  network = NCSNpp(nf=8, ch_mult=(1,), num_res_blocks=1, attn_resolutions=(), augmented=AUGMENTED, init_scale=1.0)
  x, t = jnp.ones((2, 8, 8, 1)), jnp.ones(2)
  params = network.init(jax.random.key(0), x, t)["params"]
  run = lambda y: network.apply({"params": params}, x, t, None, y)
  changes = jnp.asarray(RNG.normal(size=(2, AUGMENTED)), jnp.float32)
  np.testing.assert_array_equal(run(None), run({"augment": 0 * changes}))
  assert not np.allclose(run(None), run({"augment": changes}), atol=1e-5)


def test_what_cannot_be_told_is_refused():
  for values, message in (
    ({}, "model.name='mlp' is not told of it"),
    ({"model__name": "ncsnpp", "model__ch_mult": (1, 2), "model__nf": 8}, r"data.random_flip=False"),
  ):
    config = tiny(training__augment=0.1, data__random_flip=True, **values)
    with pytest.raises(BadInput, match=message):
      build(resolve(config))


@pytest.mark.slow
def test_a_run_with_augmentation_trains_and_samples(tmp_path):
  config = tiny(
    training__augment=0.3, model__name="ncsnpp", model__nf=8, model__ch_mult=(1,), model__attn_resolutions=(),
    training__n_iters=4, training__n_jitted_steps=1, training__batch_size=8, training__log_freq=2,
    training__eval_freq=2, training__snapshot_freq=4, training__snapshot_freq_for_preemption=2,
    training__final_report=False, training__snapshot_sampling=False,
  )  # fmt: skip
  training.train(config, str(tmp_path))
  x = ss.load(str(tmp_path)).sample(jax.random.key(0), 4, steps=3)
  assert x.shape == (4, 8, 8, 1)
  assert np.isfinite(x).all()
