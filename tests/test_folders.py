"""Folders, zip files and IDX files as people have them: splits, classes, names, and what is left out."""

import gzip
import hashlib
import json
import logging
import os
import pathlib
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest
from PIL import Image
from runs import tiny

from score_sde.run import data, features
from score_sde.run.config import BadInput
from score_sde.run.data import folders
from score_sde.run.data.sources import split_off
from score_sde.run.evaluate.folders import fid
from score_sde.run.report import pictures

RNG = np.random.default_rng(0)


def image(path, shape=(16, 16, 3), value=None):
  path.parent.mkdir(parents=True, exist_ok=True)
  pixels = RNG.integers(0, 256, shape, dtype=np.uint8) if value is None else np.full(shape, value, np.uint8)
  Image.fromarray(pixels).save(path)


def config_of(path, dataset="folder", size=16, channels=3, **values):
  return tiny(data__dataset=dataset, data__path=str(path), data__image_size=size, data__num_channels=channels, **values)


def both(path, **values):
  config = config_of(path, **values)
  return data.load(config, "train"), data.load(config, "test")


# --- classes and splits -----------------------------------------------------------------------------------------------


def test_a_tenth_of_every_class_is_held_out(tmp_path):
  for name, count in (("cat", 36), ("dog", 4), ("eel", 1)):
    for i in range(count):
      image(tmp_path / name / f"{i}.png")
  train, test = both(tmp_path)
  assert train.names == test.names == ("cat", "dog", "eel")
  assert np.bincount(train.label, minlength=3).tolist() == [33, 3, 1]
  assert np.bincount(test.label, minlength=3).tolist() == [3, 1, 0]
  assert not set(train.examples) & set(test.examples)


def test_files_that_are_added_move_few_others_between_the_splits(tmp_path):
  names = [f"cat/{i}.png" for i in range(2000)]
  labels = np.zeros(len(names), np.int32)
  before = {n for n, held in zip(names[:1800], folders._held_out(names[:1800], labels[:1800]), strict=True) if held}
  after = {n for n, held in zip(names, folders._held_out(names, labels), strict=True) if held}
  assert (len(before), len(after)) == (180, 200)
  assert len(before - after) < 20  # a permutation of all would move some 160


@pytest.mark.parametrize("held_out", [("val",), ("test",), ("valid", "test"), ("Validation",)])
def test_folders_named_as_splits_are_splits(tmp_path, held_out, caplog):
  for i in range(5):
    image(tmp_path / "train" / "cat" / f"{i}.png", value=10)
    image(tmp_path / "train" / "dog" / f"{i}.png", value=20)
    for name in held_out:
      image(tmp_path / name / "dog" / f"{i}.png", value=200 if name == held_out[-1] else 100)
  with caplog.at_level(logging.INFO, "score_sde"):
    train, test = both(tmp_path)
  assert train.names == test.names == ("cat", "dog")
  assert (train.image.max(), np.bincount(train.label).tolist()) == (20, [5, 5])
  assert (test.image.min(), np.bincount(test.label).tolist()) == (200, [0, 5])
  assert ("5 images of valid/" in caplog.text) == (len(held_out) == 2)


def test_a_train_folder_alone_gives_its_own_tenth(tmp_path):
  for i in range(20):
    image(tmp_path / "train" / ("cat" if i % 2 else "dog") / f"{i}.png")
  train, test = both(tmp_path)
  assert (len(train), len(test), train.names) == (18, 2, ("cat", "dog"))


def test_linked_folders_are_followed_and_a_circle_of_links_ends(tmp_path):
  for i in range(10):
    image(tmp_path / "store" / "cat" / f"{i}.png")
    image(tmp_path / "store" / "dog" / f"{i}.png")
  (tmp_path / "set").mkdir()
  for name in ("cat", "dog"):
    (tmp_path / "set" / name).symlink_to(tmp_path / "store" / name)
  (tmp_path / "store" / "cat" / "again").symlink_to(tmp_path / "set")
  train, test = both(tmp_path / "set")
  assert train.names == ("cat", "dog")
  assert len(train) + len(test) >= 20


def test_what_is_left_out_is_counted_in_one_line(tmp_path, caplog):
  for i in range(12):
    image(tmp_path / f"{i}.png")
  for name in ("notes.txt", "more.txt", "table.csv", ".DS_Store", "__MACOSX/._0.png", ".ipynb_checkpoints/0.png"):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_bytes(b"no image")
  with caplog.at_level(logging.INFO, "score_sde"):
    train, test = both(tmp_path)
  assert len(train) + len(test) == 12
  (line,) = [r.getMessage() for r in caplog.records]
  assert line.endswith("2 .txt files, 1 .csv files, 3 hidden or system files and folders.")


@pytest.mark.parametrize("count", [1, 9])
def test_fewer_than_ten_images_are_refused_with_what_to_do(tmp_path, count):
  for i in range(count):
    image(tmp_path / f"{i}.png")
  with pytest.raises(BadInput, match=rf"holds {count} images, and at least 10 .* folders train/ and test/"):
    both(tmp_path)


def test_labels_come_from_a_dataset_json(tmp_path):
  for i in range(20):
    image(tmp_path / "00000" / f"img{i:08d}.png")
  labels = [[f"00000/img{i:08d}.png", i % 3] for i in range(20)]
  (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels}))
  train, _ = both(tmp_path)
  assert train.classes == 3
  given = dict(labels)
  assert train.label.tolist() == [given[name] for name in train.examples]
  (tmp_path / "dataset.json").write_text(json.dumps({"labels": labels[1:]}))
  with pytest.raises(BadInput, match=r"no class for 1 of 20 images, such as 00000/img00000000\.png"):
    both(tmp_path)
  (tmp_path / "dataset.json").write_text('{"labels": [["a", "cat"]]}')
  with pytest.raises(BadInput, match=r"dataset\.json cannot be read"):
    both(tmp_path)


def test_null_in_a_dataset_json_is_a_set_without_classes(tmp_path):
  for i in range(20):
    image(tmp_path / f"{i // 10:05d}" / f"img{i:08d}.png")
  (tmp_path / "dataset.json").write_text('{"labels": null}')
  train, test = both(tmp_path)
  assert (train.classes, train.names, test.names) == (1, (), ())
  assert not train.label.any()


def test_the_first_test_images_are_of_all_classes_and_their_identity_does_not_depend_on_the_order(tmp_path):
  for name in "abcd":
    for i in range(100):
      image(tmp_path / name / f"{i}.png", value=ord(name))
  _, test = both(tmp_path)
  assert len(test) == 40
  assert len(set(test.label[:12])) == 4
  assert [name[0] for name in test.examples] == [test.names[i] for i in test.label]
  assert (test.image[:, 0, 0, 0] == [ord(name[0]) for name in test.examples]).all()
  text = "".join(f"{n} {(tmp_path / n).stat().st_size} {'abcd'.index(n[0])}\n" for n in sorted(test.examples))
  assert test.identity == hashlib.sha256(text.encode()).hexdigest()[:16]


def test_inputs_of_one_name_are_numbered(tmp_path):
  for name in ("a.png", "a.bmp", "a_2.png", "b/c.png", "b_c.png"):
    image(tmp_path / name)
  found = folders.read_inputs(config_of("", guidance__num_inputs=5, guidance__input=str(tmp_path)))
  assert sorted(name for name, _ in found) == ["a", "a_2", "a_2_2", "b_c", "b_c_2"]


def test_features_that_are_kept_are_of_all_images_whatever_the_batches():
  values = np.arange(1000.0)[:, None] + np.zeros(3)
  of = lambda size: features.collect(
    "x", ((values[i : i + size], values[i : i + size]) for i in range(0, 1000, size)), 50
  )
  kept = of(7)[0].features[:, 0]
  assert len(kept) == 50
  assert (np.diff(kept) > 0).all()
  assert np.bincount(kept.astype(int) // 250, minlength=4).min() >= 5
  np.testing.assert_array_equal(kept, of(400)[0].features[:, 0])
  np.testing.assert_array_equal(features.collect("x", [(values, values)], 1000)[0].features, values)
  np.testing.assert_allclose(of(7)[0].moments.mean, values.mean(0))


def test_a_zip_is_read_as_its_folder(tmp_path):
  for i in range(20):
    image(tmp_path / "set" / ("cat" if i % 3 else "dog") / f"{i}.png")
  with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
    for file in sorted((tmp_path / "set").rglob("*.png")):
      archive.write(file, file.relative_to(tmp_path))  # below one common folder, as most archives are
  of_folder, of_zip = both(tmp_path / "set"), both(tmp_path / "set.zip")
  for a, b in zip(of_folder, of_zip, strict=True):
    np.testing.assert_array_equal(a.image, b.image)
    np.testing.assert_array_equal(a.label, b.label)
    assert a.names == b.names == ("cat", "dog")
  train, _ = both(tmp_path / "set.zip", data__cache_gib=0.0)
  np.testing.assert_array_equal(train.gather(np.arange(18))["image"], of_folder[0].image)


def test_each_file_is_decoded_once_and_little_more_than_the_pixels_is_held(tmp_path, monkeypatch):
  for i in range(60):
    image(tmp_path / f"{i}.png", (96, 96, 3))
  opened = []
  open_image = Image.open
  monkeypatch.setattr(Image, "open", lambda file: opened.append(file) or open_image(file))
  config = config_of(tmp_path, size=96)
  both(tmp_path, size=96)
  assert len(opened) == len(set(opened)) == 60
  tracemalloc.start()
  train = data.load(config, "train")
  _, peak = tracemalloc.get_traced_memory()
  tracemalloc.stop()
  assert peak < 1.3 * train.image.nbytes


def test_images_that_cannot_be_read_are_named_with_the_reason(tmp_path, monkeypatch):
  for i in range(30):
    image(tmp_path / "train" / f"{i}.png")
    image(tmp_path / "test" / f"{i}.png")
  image(tmp_path / "train" / "huge.png", (400, 400))
  monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 50_000)
  with pytest.raises(BadInput, match=r"1 of 31 .*huge\.png \(more than 100,000 pixels, Pillow's limit: make it sm"):
    both(tmp_path)


def test_an_image_that_vanishes_is_named_in_one_line(tmp_path):
  for i in range(20):
    image(tmp_path / f"{i}.png")
  train, _ = both(tmp_path, data__cache_gib=0.0)
  os.remove(tmp_path / train.examples[3])
  with pytest.raises(folders.DataVanished, match=r"could be read when the run started .*Restore it and repeat"):
    train.gather(np.arange(5))


# --- IDX --------------------------------------------------------------------------------------------------------------


def write_idx(path, array, code=8):
  path.parent.mkdir(parents=True, exist_ok=True)
  content = bytes([0, 0, code, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
  path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


NAMES = {
  "kaggle": "{0}-{1}.idx{2}-ubyte",
  "gz": "{0}-{1}-idx{2}-ubyte.gz",
  "torchvision": "MNIST/raw/{0}-{1}-idx{2}-ubyte",
  "kaggle's folders": "{0}-{1}-idx{2}-ubyte/{0}-{1}-idx{2}-ubyte",
}
DIGITS = RNG.integers(0, 256, (30, 28, 28), dtype=np.uint8)
LABELS = RNG.integers(0, 10, 30, dtype=np.uint8)


def write_four(folder, name, images=DIGITS, code=8, test="t10k"):
  for prefix in ("train", test):
    write_idx(folder / name.format(prefix, "images", images.ndim), images, code)
    write_idx(folder / name.format(prefix, "labels", 1), LABELS)


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_idx_files_are_found_under_all_their_names(tmp_path, name):
  write_four(tmp_path, name)
  for source in both(tmp_path, dataset="idx", size=28, channels=1):
    np.testing.assert_array_equal(source.image[..., 0], DIGITS)
    np.testing.assert_array_equal(source.label, LABELS)


def test_emnist_is_turned_upright_and_one_of_its_sets_is_chosen_by_name(tmp_path):
  for name in ("letters", "mnist"):
    write_four(tmp_path, f"emnist-{name}-{{0}}-{{1}}-idx{{2}}-ubyte", test="test")
  with pytest.raises(BadInput, match=r"holds 2 sets of IDX files\. Choose one .*emnist-letters.*emnist-mnist"):
    both(tmp_path, dataset="idx", size=28, channels=1)
  train, _ = both(tmp_path / "emnist-letters", dataset="idx", size=28, channels=1)
  np.testing.assert_array_equal(train.image[..., 0], DIGITS.swapaxes(1, 2))


@pytest.mark.parametrize(("code", "dtype"), [(0x0B, ">i2"), (0x0C, ">i4"), (0x0D, ">f4"), (0x0E, ">f8")])
def test_idx_files_of_every_type_are_the_same_images(tmp_path, code, dtype):
  write_four(tmp_path, NAMES["gz"], DIGITS.astype(dtype), code)
  np.testing.assert_array_equal(both(tmp_path, dataset="idx", size=28, channels=1)[0].image[..., 0], DIGITS)


def test_idx_images_are_padded_a_little_or_resized(tmp_path):
  write_four(tmp_path, NAMES["gz"])
  padded = both(tmp_path, dataset="idx", size=32, channels=1)[0].image[..., 0]
  np.testing.assert_array_equal(padded[:, 2:30, 2:30], DIGITS)
  assert padded[:, :2].max() == padded[..., 30:].max() == 0
  assert both(tmp_path, dataset="idx", size=14, channels=1)[0].image.shape == (30, 14, 14, 1)
  assert both(tmp_path, dataset="idx", size=64, channels=3)[0].image.shape == (30, 64, 64, 3)
  color = RNG.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
  write_four(tmp_path / "color", "{0}-{1}-idx{2}-ubyte", color)
  np.testing.assert_array_equal(both(tmp_path / "color", dataset="idx", size=8)[0].image, color)


def test_idx_files_that_are_pages_or_torn_or_short_of_labels_are_named(tmp_path):
  write_four(tmp_path, NAMES["gz"])
  read = lambda: both(tmp_path, dataset="idx", size=28, channels=1)
  images = tmp_path / "train-images-idx3-ubyte.gz"
  whole = images.read_bytes()
  for content in (b"<!DOCTYPE HTML>", whole[: len(whole) // 2], whole[:-8] + b"\0" * 8):
    images.write_bytes(content)
    with pytest.raises(BadInput, match=r"train-images-idx3-ubyte\.gz cannot be read .*Download it again"):
      read()
  images.write_bytes(whole)
  write_idx(tmp_path / "train-labels-idx1-ubyte.gz", LABELS[:10])
  with pytest.raises(BadInput, match=r"images \(30, 28, 28\) and labels \(10,\)"):
    read()


# --- two folders, and pictures ----------------------------------------------------------------------------------------


def test_two_folders_have_a_fid(tmp_path, monkeypatch, capsys):
  """Of features that are the mean colors: N(m, C) of the two sets in closed form."""
  from score_sde.metrics import frechet_distance
  from score_sde.run import features

  def mean_colors(variables, images):
    return images.mean(axis=(1, 2)), images.mean(axis=(1, 2))

  own = features.Extractor("own", mean_colors, {})
  monkeypatch.setattr(features, "inception", lambda path: own)
  sets = []
  for name, low in (("a", 0), ("b", 60)):
    images = RNG.integers(low, low + 100, (40, 12, 12, 3), dtype=np.uint8)
    for i, pixels in enumerate(images):
      (tmp_path / name / "class").mkdir(parents=True, exist_ok=True)
      Image.fromarray(pixels).save(tmp_path / name / "class" / f"{i}.png")
    sets.append(images.mean(axis=(1, 2)))
  a, b = sets
  expected = frechet_distance(a.mean(0), np.cov(a.T), b.mean(0), np.cov(b.T))
  row = fid(str(tmp_path / "a"), str(tmp_path / "b"))
  assert row["fid"] == pytest.approx(expected, rel=1e-4)
  assert (row["images"], row["reference_images"]) == (40, 40)
  assert f"FID {row['fid']:.4f}" in capsys.readouterr().out
  features.write(tmp_path / "b.npz", features.Reference("own", features.Moments.of(b), b))
  assert fid(str(tmp_path / "a"), str(tmp_path / "b.npz"))["fid"] == pytest.approx(expected, rel=1e-4)
  np.savez(tmp_path / "c.npz", samples=images)
  assert fid(str(tmp_path / "c.npz"), str(tmp_path / "b"))["fid"] == pytest.approx(0, abs=1e-2)
  image(tmp_path / "a" / "wide.png", (12, 24, 3))
  with pytest.raises(BadInput, match=r"several sizes, .*--image_size"):
    fid(str(tmp_path / "a"), str(tmp_path / "b"))
  assert fid(str(tmp_path / "a"), str(tmp_path / "b"), size=12)["images"] == 41


def test_captions_are_drawn_above_their_images(tmp_path):
  plain, named = tmp_path / "plain.png", tmp_path / "named.png"
  samples = np.zeros((9, 8, 8, 1))
  pictures.sample_grid(plain, samples, "digits")
  pictures.sample_grid(named, samples, "digits", captions=[f"class {i}" for i in range(9)])
  dark = lambda file: (np.asarray(Image.open(file).convert("L")) < 128).mean()
  assert pathlib.Path(named).stat().st_size > plain.stat().st_size
  assert dark(named) < dark(plain)  # the images make room for the names


def test_data_without_names_keep_a_fixed_tenth():
  train, test = split_off(50, "train"), split_off(50, "test")
  assert sorted([*train, *test]) == list(range(50))
  assert len(test) == 5
