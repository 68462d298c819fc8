"""Data sets, their batches as a function of the step, and what happens to bad ones."""

import gzip
import re
import struct

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from score_sde.batch import example_keys
from score_sde.run import data
from score_sde.run.config import BadInput, default_config, resolve
from score_sde.run.data import records


def config_of(dataset, **values):
  config = default_config()
  config.data.dataset = dataset
  for key, value in values.items():
    section, name = key.split("__")
    config[section][name] = value
  return resolve(config)


def digits(**values):
  return config_of("digits", data__image_size=8, data__num_channels=1, **values)


def test_digits_are_all_there_and_split():
  train, test = (data.load(digits(), split) for split in ("train", "test"))
  assert (len(train), len(test)) == (1437, 360)
  assert train.image.shape[1:] == (8, 8, 1)
  assert train.image.max() == 16
  both = np.concatenate([train.image, test.image]).reshape(1797, -1)
  from sklearn.datasets import load_digits

  original = load_digits().images.reshape(1797, -1)
  assert np.array_equal(np.unique(both, axis=0), np.unique(original, axis=0))


@pytest.mark.parametrize("name", data.TOYS)
def test_toys_are_standardized_points(name):
  config = config_of(name, model__name="mlp")
  points = data.load(config, "train").image
  assert points.shape == (100_000, 2)
  assert np.all(np.abs(points.mean(axis=0)) < 0.3)
  assert np.all((points.std(axis=0) > 0.5) & (points.std(axis=0) < 1.5))
  assert not np.array_equal(points[:2000], data.load(config, "test").image)


def test_checkerboard_covers_every_other_square():
  points = data.load(config_of("checkerboard", model__name="mlp"), "train").image
  squares = np.floor(points + 2).astype(int)
  assert set(squares.sum(axis=1) % 2) == {0}
  assert len(np.unique(squares, axis=0)) == 8


def test_batches_are_a_function_of_the_step():
  """Starting at step 7 continues the stream; an epoch shows every example once; another seed, another order."""
  config = digits(training__batch_size=100)
  source = data.load(config, "train")
  stream = data.batches(config, source, 0)
  first = [next(stream) for _ in range(10)]
  later = data.batches(config, source, 7)
  for batch in first[7:]:
    for key, value in next(later).items():
      np.testing.assert_array_equal(value, batch[key])
  np.testing.assert_array_equal(first[0]["index"], np.arange(100))

  n = len(source)
  whole = digits(training__batch_size=n)
  one, two = (b["image"].reshape(n, -1) for b, _ in zip(data.batches(whole, source, 0), range(2), strict=False))
  for epoch in (one, two):
    np.testing.assert_array_equal(np.unique(epoch, axis=0), np.unique(source.image.reshape(n, -1), axis=0))
  assert not np.array_equal(one, two)
  again = digits(training__batch_size=100)
  np.testing.assert_array_equal(next(data.batches(again, source, 0))["image"], first[0]["image"])
  again.seed = 1
  assert not np.array_equal(next(data.batches(again, source, 0))["image"], first[0]["image"])


def test_hosts_share_a_batch_without_overlap(monkeypatch):
  config = digits(training__batch_size=64)
  source = data.load(config, "train")
  whole = next(data.batches(config, source, 33))
  monkeypatch.setattr(data.stream.devices, "host_count", lambda: 4)
  parts = []
  for host in range(4):
    monkeypatch.setattr(data.stream.devices, "host_index", lambda host=host: host)
    parts.append(next(data.batches(config, source, 33)))
  for key, value in whole.items():
    np.testing.assert_array_equal(np.concatenate([p[key] for p in parts]), value)


@pytest.mark.parametrize("sde", ["vesde", "vpsde"])
def test_scaling_has_an_inverse_and_dequantization_fills_each_level(sde):
  image = jnp.broadcast_to(jnp.arange(17, dtype=jnp.uint8)[:, None, None, None], (17, 8, 8, 1))
  keys = example_keys(jax.random.key(0), jnp.arange(17))
  config = digits(training__sde=sde)
  scaling = data.scaling_of(config)
  x = scaling.prepare(keys, image, train=True)
  low = -1.0 if sde == "vpsde" else 0.0
  assert (float(x.min()), float(x.max())) == (low, 1.0)
  np.testing.assert_allclose(scaling.inverse(x) * 16, image, atol=1e-5)

  config = digits(training__sde=sde, data__uniform_dequantization=True)
  scaling = data.scaling_of(config)
  x = scaling.inverse(scaling.prepare(keys, image))
  np.testing.assert_array_equal(np.floor(np.asarray(x) * 17 + 1e-6), image)
  assert 0.4 < float(jnp.mean(x * 17 - image)) < 0.6


def test_flips_are_by_example_and_only_in_training():
  scaling = data.scaling_of(digits())
  image = jnp.broadcast_to(jnp.arange(8, dtype=jnp.uint8)[None, None, :, None], (64, 8, 8, 1))
  keys = example_keys(jax.random.key(0), jnp.arange(64))
  flipped = np.asarray(scaling.prepare(keys, image, train=True))[:, 0, 0, 0] > 0.1
  assert 15 < flipped.sum() < 49
  part = np.asarray(scaling.prepare(keys[10:20], image[10:20], train=True))[:, 0, 0, 0] > 0.1
  np.testing.assert_array_equal(part, flipped[10:20])
  assert not (np.asarray(scaling.prepare(keys, image))[:, 0, 0, 0] > 0.1).any()


# --- IDX files ----------------------------------------------------------------------------------------------------


def write_idx(folder, images, labels, prefix, compress=True):
  write = gzip.open if compress else open
  suffix = ".gz" if compress else ""
  with write(folder / f"{prefix}-images-idx3-ubyte{suffix}", "wb") as file:
    file.write(b"\0\0\x08\x03" + struct.pack(">3I", *images.shape) + images.tobytes())
  with write(folder / f"{prefix}-labels-idx1-ubyte{suffix}", "wb") as file:
    file.write(b"\0\0\x08\x01" + struct.pack(">I", len(labels)) + labels.tobytes())


@pytest.mark.parametrize("compress", [True, False])
def test_idx_files_are_read(tmp_path, compress):
  rng = np.random.default_rng(0)
  images, labels = rng.integers(256, size=(30, 28, 28), dtype=np.uint8), rng.integers(10, size=30, dtype=np.uint8)
  write_idx(tmp_path, images, labels, "train", compress)
  config = config_of("idx", data__path=str(tmp_path), data__image_size=28, data__num_channels=1)
  source = data.load(config, "train")
  np.testing.assert_array_equal(source.image[..., 0], images)
  np.testing.assert_array_equal(source.label, labels)


def test_missing_and_broken_idx_files_are_named(tmp_path):
  config = config_of("idx", data__path=str(tmp_path), data__image_size=28, data__num_channels=1)
  with pytest.raises(BadInput, match=r"no train-images-idx3-ubyte.gz under .*dataset-fashion-mnist"):
    data.load(config, "train")
  (tmp_path / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + struct.pack(">I", 5) + bytes(5))
  (tmp_path / "train-images-idx3-ubyte").write_bytes(b"not an IDX file")
  with pytest.raises(BadInput, match="no IDX file"):
    data.load(config, "train")
  (tmp_path / "train-images-idx3-ubyte").write_bytes(b"\0\0\x08\x03" + struct.pack(">3I", 5, 28, 28) + b"short")
  with pytest.raises(BadInput, match="Download it again"):
    data.load(config, "train")


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
  """30 images in two classes, of several sizes, modes and formats."""
  rng = np.random.default_rng(0)
  for i in range(30):
    path = tmp_path / ("cats" if i % 2 else "dogs") / f"deep{i % 3}"
    path.mkdir(parents=True, exist_ok=True)
    shape = (10 + i, 20) if i % 5 == 0 else (16, 12 + i, 3)
    suffix = (".png", ".jpg", ".webp", ".JPEG")[i % 4]
    Image.fromarray(rng.integers(256, size=shape, dtype=np.uint8)).save(path / f"{i}{suffix}")
  (tmp_path / "notes.txt").write_text("no image")
  return tmp_path


@pytest.mark.parametrize("gib", [4.0, 0.0])
def test_a_folder_is_read_resized_and_labelled(folder, gib):
  """In memory and file by file alike."""
  config = config_of("folder", data__path=str(folder), data__image_size=8, data__cache_gib=gib)
  train, test = data.load(config, "train"), data.load(config, "test")
  assert (len(train), len(test)) == (27, 3)
  batch = train.gather(np.arange(27))
  assert batch["image"].shape == (27, 8, 8, 3)
  assert batch["image"].dtype == np.uint8
  assert sorted(np.concatenate([batch["label"], test.gather(np.arange(3))["label"]])) == [0] * 15 + [1] * 15


def test_a_crop_is_central_and_square(tmp_path):
  image = np.zeros((8, 24, 3), np.uint8)
  image[:, 8:16] = 255
  for i in range(10):
    Image.fromarray(image).save(tmp_path / f"{i}.png")
  config = config_of("folder", data__path=str(tmp_path), data__image_size=8)
  assert data.load(config, "train").image.min() == 255


def test_corrupt_images_are_named_counted_and_skipped_or_fatal(folder):
  whole = (folder / "cats" / "deep1" / "1.jpg").read_bytes()
  (folder / "cats" / "torn.jpg").write_bytes(whole[: len(whole) // 2])
  (folder / "dogs" / "empty.png").write_bytes(b"")
  config = config_of("folder", data__path=str(folder), data__image_size=8)
  found = ""
  for split in ("train", "test"):
    try:
      data.load(config, split)
    except BadInput as error:
      found += str(error)
  assert re.search(r"of (29|3) images of .* cannot be read: .*on_corrupt=skip", found)
  assert "cats/torn.jpg (" in found
  assert "dogs/empty.png (" in found
  config = config_of("folder", data__path=str(folder), data__image_size=8, data__on_corrupt="skip")
  train, test = data.load(config, "train"), data.load(config, "test")
  assert len(train) + len(test) == 30
  assert train.gather(np.arange(len(train)))["image"].std() > 10  # no rows of images that were left out


def test_missing_and_empty_folders_are_named(tmp_path):
  (tmp_path / "readme.md").write_text("")
  for path, message in ((tmp_path, r"0 of 1 files match"), (tmp_path / "none", "no existing folder")):
    with pytest.raises(BadInput, match=message):
      data.load(config_of("folder", data__path=str(path), data__image_size=8), "train")


def test_data_of_another_shape_is_refused():
  with pytest.raises(BadInput, match=r"shape \(8, 8, 1\), but data.image_size=32"):
    data.load(config_of("digits"), "train")


# --- tensorflow-datasets ------------------------------------------------------------------------------------------


def test_unknown_and_unprepared_names_are_explained(tmp_path):
  with pytest.raises(BadInput, match=r"none of digits, .*no tensorflow-datasets name"):
    data.load(config_of("cifar11"), "train")
  with pytest.raises(BadInput, match=r"'CIFAR10' is not prepared .*download_and_prepare"):
    data.load(config_of("CIFAR10", data__path=str(tmp_path)), "train")


def tfrecord(image):
  """A record as the scripts of progressive GANs write it: (C, H, W), framed by its length and two checksums."""
  from tensorflow_datasets.proto import tf_example_pb2

  example = tf_example_pb2.Example()
  example.features.feature["shape"].int64_list.value.extend(image.transpose(2, 0, 1).shape)
  example.features.feature["data"].bytes_list.value.append(image.transpose(2, 0, 1).tobytes())
  content = example.SerializeToString()
  return framed(content)


def framed(content):
  length = struct.pack("<Q", len(content))
  return length + records._checksum(length) + content + records._checksum(content)


def test_tfrecords_are_read_as_the_official_code_reads_them(tmp_path):
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (40, 16, 16, 3)).astype(np.uint8)
  (tmp_path / "ffhq-r04.tfrecords").write_bytes(b"".join(map(tfrecord, images)))
  (tmp_path / "ffhq-r03.tfrecords").write_bytes(b"".join(map(tfrecord, images[:, ::2, ::2])))
  for dataset in ("FFHQ", "tfrecords"):
    for path in (tmp_path, tmp_path / "ffhq-r04.tfrecords"):
      config = config_of(dataset, data__path=str(path), data__image_size=16)
      train, test = data.load(config, "train"), data.load(config, "test")
      assert (len(train), len(test)) == (36, 4)
      read = np.concatenate([s.gather(np.arange(len(s)))["image"] for s in (train, test)])
      assert {x.tobytes() for x in read} == {x.tobytes() for x in images}
  fitted = data.load(config_of("FFHQ", data__path=str(path), data__image_size=8), "train").gather(np.arange(3))
  assert fitted["image"].shape == (3, 8, 8, 3)


def test_tfrecords_that_are_none_are_named(tmp_path):
  whole = b"".join(map(tfrecord, np.zeros((20, 16, 16, 3), np.uint8)))
  config = config_of("FFHQ", data__path=str(tmp_path), data__image_size=16)
  with pytest.raises(BadInput, match="'tfrecords' found no"):
    data.load(config_of("tfrecords", data__path=str(tmp_path)), "train")
  (tmp_path / "ffhq-r04.tfrecords").write_bytes(whole[:-5])
  with pytest.raises(BadInput, match=r"r04.tfrecords is no file of TFRecords, or damaged after 19"):
    data.load(config, "train")
  (tmp_path / "ffhq-r04.tfrecords").write_bytes(b"nothing of the kind, but longer than a header")
  with pytest.raises(BadInput, match=r"damaged after 0"):
    data.load(config, "train")
  (tmp_path / "ffhq-r04.tfrecords").write_bytes(framed(b"abc"))
  with pytest.raises(BadInput, match=r"no image of a progressive GAN's TFRecords"):
    data.load(config, "train")
  (tmp_path / "ffhq-r05.tfrecords").write_bytes(whole)
  with pytest.raises(BadInput, match=r"has TFRecords of 16, 32 pixels, none of data.image_size=64"):
    data.load(config_of("FFHQ", data__path=str(tmp_path), data__image_size=64), "train")
  with pytest.raises(BadInput, match=r"a folder of images or a file of TFRecords; got '/nowhere/r10.tfrecords'"):
    data.load(config_of("FFHQ", data__path="/nowhere/r10.tfrecords"), "train")
