"""Arrays as data: every format and shape, their scaling, what is refused, and runs on them."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

import score_sde as ss
from configs import small
from score_sde.batch import example_keys
from score_sde.run import data, evaluate, train_step, training
from score_sde.run.config import BadInput, default_config, resolve
from score_sde.run.data.stream import batches
from score_sde.run.experiment import build
from score_sde.run.loading import parse_config
from score_sde.run.workdir import recalled

rng = np.random.default_rng(0)


def config_of(path, **changes):
  config = small.get_config()
  config.data.dataset, config.data.path, config.model.name = "array", str(path), "mlp"
  config.model.nf, config.model.num_res_blocks = 16, 1
  for key, value in changes.items():
    section, name = key.split("__")
    config[section][name] = value
  return config


def test_floats_of_every_format_and_shape_are_standardized_by_channel(tmp_path):
  x = rng.normal(size=(200, 6, 3)) * [1, 10, 100] + [0, 5, -1e4]
  np.save(tmp_path / "x.npy", x)
  np.savez(tmp_path / "x.npz", x=x[:150], x_test=x[150:])
  (tmp_path / "folder").mkdir()
  for i, one in enumerate(x):
    np.save(tmp_path / "folder" / f"{i:03d}.npy", one)
  for name, n_train in (("x.npy", 180), ("x.npz", 150), ("folder", 180)):
    config = resolve(config_of(tmp_path / name))
    train, test = data.load(config, "train"), data.load(config, "test")
    assert (len(train), len(test), tuple(config.data.shape)) == (n_train, 200 - n_train, (6, 3))
    prepared = data.scaling_of(config).prepare(None, jnp.asarray(train.gather(np.arange(n_train))["image"]))
    np.testing.assert_allclose(np.mean(prepared, axis=(0, 1)), 0, atol=2e-3)
    np.testing.assert_allclose(np.std(prepared, axis=(0, 1)), 1, atol=1e-3)
    back = data.scaling_of(config).inverse(prepared)
    np.testing.assert_allclose(back, train.gather(np.arange(n_train))["image"], rtol=1e-5, atol=1e-2)
    assert config.model.sigma_data == 1.0
  together = np.concatenate([data.load(resolve(config_of(tmp_path / "x.npy")), s).image for s in ("train", "test")])
  np.testing.assert_allclose(np.sort(together.ravel()), np.sort(x.ravel()))


def test_a_table_gives_its_columns_and_classes(tmp_path):
  table = pa.table({
    "name": [f"row {i}" for i in range(40)], "kind": ["b", "a", "c", "a"] * 10, "count": list(range(40)),
    "size": rng.normal(size=40),
  })  # fmt: skip
  pyarrow.csv.write_csv(table, tmp_path / "t.csv")
  pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
  for name in ("t.csv", "t.parquet"):
    config = config_of(tmp_path / name, data__label_column="kind", model__num_classes=3)
    train = data.load(resolve(config), "train")
    assert train.columns == ("count", "size")
    assert train.names == ("a", "b", "c")
    assert train.image.shape == (36, 2)
    assert set(np.unique(train.label)) == {0, 1, 2}
    chosen = resolve(config_of(tmp_path / name, data__columns=("size",)))
    assert tuple(chosen.data.shape) == (1,)
    assert tuple(resolve(config_of(tmp_path / name, data__columns=("count, size",))).data.shape) == (2,)
  with pytest.raises(BadInput, match=r"no column sise.*name, kind, count, size"):
    resolve(config_of(tmp_path / "t.csv", data__columns=("sise",)))
  with pytest.raises(BadInput, match="columns name hold no numbers"):
    resolve(config_of(tmp_path / "t.csv", data__columns=("name",)))


@pytest.mark.parametrize(("kind", "levels"), [(np.uint8, 256), (np.uint16, 65536)])
def test_integers_are_dequantized_over_their_levels(tmp_path, kind, levels):
  x = rng.integers(0, levels, (50, 4, 6, 5)).astype(kind)
  np.save(tmp_path / "x.npy", x)
  config = resolve(config_of(tmp_path / "x.npy", data__uniform_dequantization=True))
  assert (config.data.levels, tuple(config.data.shape)) == (levels, (4, 6, 5))
  raw = data.load(config, "train").gather(np.arange(3))["image"]
  assert raw.dtype == kind
  keys = jax.random.split(jax.random.key(0), 3)
  found = (np.asarray(data.scaling_of(config).prepare(keys, jnp.asarray(raw))) + 1) / 2 * levels  # centered under VP
  assert (found >= raw - 0.02).all()
  assert (found <= raw + 1.02).all()


REFUSED = {
  "not a number": (lambda: np.where(np.arange(40).reshape(20, 2) == 7, np.nan, rng.normal(size=(20, 2))),
                   r"x of example 3 is nan at entry \(1,\)"),
  "constant": (lambda: np.stack([np.full(20, 3.0), rng.normal(size=20)], axis=1), r"channel 0 is constant \(3\)"),
  "integers": (lambda: rng.integers(0, 200, (20, 2)), "int64.*run from [0-9]+ to [0-9]+: save it as uint8"),
  "truth values": (lambda: rng.normal(size=(20, 2)) > 0, "bool.*data.levels=2"),
  "text": (lambda: np.array([["a"]] * 20), "Save text and objects as numbers"),
  "few": (lambda: rng.normal(size=(6, 2)), "6 examples, and at least 10 are needed"),
  "many axes": (lambda: rng.normal(size=(20, 1, 1, 1, 1, 2)), "Accepted are points"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_trained_on_is_named(tmp_path, name):
  make, message = REFUSED[name]
  np.save(tmp_path / "x.npy", make())
  with pytest.raises(BadInput, match=message):
    data.load(resolve(config_of(tmp_path / "x.npy")), "train")


def test_ragged_files_and_folders_are_named(tmp_path):
  np.save(tmp_path / "x.npy", np.array([np.ones(2), np.ones(3)], object), allow_pickle=True)
  with pytest.raises(BadInput, match="ragged shapes are not accepted"):
    resolve(config_of(tmp_path / "x.npy"))
  (tmp_path / "folder").mkdir()
  np.save(tmp_path / "folder" / "a.npy", np.ones((4, 1)))
  np.save(tmp_path / "folder" / "b.npy", np.ones((5, 1)))
  with pytest.raises(BadInput, match=r"a.npy has float64\[4, 1\] and b.npy float64\[5, 1\]"):
    resolve(config_of(tmp_path / "folder"))
  with pytest.raises(BadInput, match="does not exist"):
    resolve(config_of(tmp_path / "missing.npy"))
  np.savez(tmp_path / "x.npz", x=np.ones((20, 2)), labels=np.ones(20))
  with pytest.raises(BadInput, match=r"arrays labels, x\. Name the examples x, classes y"):
    resolve(config_of(tmp_path / "x.npz"))


def test_a_large_file_is_mapped_and_not_read(tmp_path, monkeypatch):
  from score_sde.run.data import arrays

  monkeypatch.setattr(arrays, "_LARGE", 100)
  x = rng.normal(size=(100, 5)).astype(np.float32)
  np.save(tmp_path / "x.npy", x)
  config = resolve(config_of(tmp_path / "x.npy"))
  train, test = data.load(config, "train"), data.load(config, "test")
  assert isinstance(train.image.array, np.memmap)
  both = np.concatenate([s.gather(np.arange(len(s)))["image"] for s in (train, test)])
  np.testing.assert_array_equal(np.sort(both.ravel()), np.sort(x.ravel()))
  assert data.identity(train) != data.identity(test)


FUNCTION = """
import numpy as np
def arrays(section, split):
  rng = np.random.default_rng(split == "train")
  return {"x": rng.normal(size=(30, 4)) * 7 + 3, "condition": rng.normal(size=(30, 2))}
def halves(examples):
  return examples[:, :2] / 10
def bright(images):
  return np.minimum(images, 200)
def same(images):
  return images
def with_test(section, split):
  return {"x": np.ones((30, 2)) * np.arange(30)[:, None], "x_test": -np.ones((7, 2))}
"""


def test_a_function_gives_the_arrays_and_another_one_the_conditions(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(FUNCTION)
  config = resolve(config_of(f"{file}:arrays"))
  assert (tuple(config.data.shape), tuple(config.data.condition_shape)) == ((4,), (2,))
  assert np.std(data.load(config, "train").gather(np.arange(30))["image"]) == pytest.approx(7, rel=0.2)
  config = resolve(config_of(f"{file}:arrays", data__condition=f"{file}:halves"))
  first = data.load(config, "test").gather(np.arange(3))
  np.testing.assert_allclose(first["condition"], first["image"][:, :2] / 10)
  assert not tuple(resolve(config_of(f"{file}:arrays", data__condition="none")).data.condition_shape)
  config = default_config()
  np.savez(tmp_path / "x.npz", x=rng.normal(size=(20, 8, 8, 1)), condition=rng.normal(size=(20, 2)))
  config.data.dataset, config.data.path, config.model.name = "array", str(tmp_path / "x.npz"), "wideresnet"
  config.training.task, config.model.num_classes = "classifier", 2
  with pytest.raises(BadInput, match=r"takes no conditions.*data.condition=none"):
    build(config)


def test_integer_conditions_of_a_function_are_scaled_wherever_they_come_from(tmp_path):
  """As uint8 in training and as the same numbers in a file or in Python, they reach the network as [-1, 1]."""
  file = tmp_path / "own.py"
  file.write_text(FUNCTION)
  np.save(tmp_path / "x.npy", rng.integers(0, 256, (30, 4, 4, 1)).astype(np.uint8))
  config = resolve(config_of(tmp_path / "x.npy", data__condition=f"{file}:bright"))
  first = data.load(config, "train").gather(np.arange(3))
  prepared = data.condition_scaling_of(config).prepare(None, jnp.asarray(first["condition"]))
  np.testing.assert_allclose(prepared, np.minimum(first["image"], 200) / 127.5 - 1, atol=1e-6)
  assert config.data.image_size == (4, 4)  # files for guidance get this size


def test_conditions_of_16_bits_stay_as_they_are(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(FUNCTION)
  np.save(tmp_path / "x.npy", rng.integers(0, 65536, (30, 4, 4, 1)).astype(np.uint16))
  config = resolve(config_of(tmp_path / "x.npy", data__condition=f"{file}:same"))
  assert not config.data.condition_std


def test_integers_beyond_the_levels_are_refused(tmp_path):
  np.save(tmp_path / "masks.npy", (255 * rng.integers(0, 2, (30, 4, 4, 1))).astype(np.uint8))
  config = resolve(config_of(tmp_path / "masks.npy", data__levels=2))
  with pytest.raises(BadInput, match=r"data.levels=2 means values from 0 to 1, and .* has 255"):
    data.load(config, "train")
  np.save(tmp_path / "floats.npy", rng.uniform(size=(30, 4, 4, 1)))
  with pytest.raises(BadInput, match="holds floats, which have none"):
    resolve(config_of(tmp_path / "floats.npy", data__levels=256, data__standardize=False))
  stored = parse_config(resolve(config_of(tmp_path / "floats.npy")).to_json_best_effort(), "config.json")
  stored.data.levels = 256
  with pytest.raises(BadInput, match="holds floats, which have none"):  # also where the file is not read again
    resolve(stored)


def test_a_test_part_may_lack_a_class(tmp_path):
  """One of 30 examples is of class 1, and it is not among the three that are held out."""
  labels = np.zeros(30, np.int32)
  held = data.load(resolve(config_of(_saved(tmp_path / "one.npz", np.arange(30)))), "test").gather(np.arange(3))[
    "image"
  ]
  labels[min(set(range(30)) - set(held[:, 0].round().astype(int).tolist()))] = 1
  config = resolve(config_of(_saved(tmp_path / "two.npz", np.arange(30), labels), model__num_classes=2))
  assert data.load(config, "train").classes == 2
  assert data.load(config, "test").classes == 1


def _saved(file, first, labels=None):
  """An NPZ file of points whose first coordinate is `first`."""
  x = np.stack([first, rng.normal(size=len(first))], axis=1)
  np.savez(file, x=x, **({} if labels is None else {"y": labels}))
  return file


def test_the_scaling_of_a_run_is_not_changed_on_the_way(tmp_path, monkeypatch):
  np.save(tmp_path / "x.npy", rng.normal(size=(30, 4)))
  config = resolve(config_of(tmp_path / "x.npy"))
  (tmp_path / "config.json").write_text(config.to_json_best_effort())
  monkeypatch.setattr("score_sde.run.workdir.checkpoints.exists", lambda workdir: True)
  again = recalled(config_of(tmp_path / "x.npy"), str(tmp_path))
  assert tuple(again.data.std) == tuple(config.data.std) != ()
  for name, value in (("standardize", False), ("levels", 16)):
    with pytest.raises(BadInput, match=f"data.{name}={value} was"):
      recalled(config_of(tmp_path / "x.npy", **{f"data__{name}": value}), str(tmp_path))


@pytest.mark.parametrize("kind", ["digits", "idx", "cifar10"])
def test_random_crops_are_for_folders(kind):
  config = small.get_config()
  config.data.dataset, config.data.image_size, config.data.num_channels = kind, 8, 1
  config.data.resize = "random_crop"
  with pytest.raises(BadInput, match="is for folders of images"):
    data.load(resolve(config), "train")


def test_the_config_of_a_run_on_rectangles_is_read_back(tmp_path):
  np.save(tmp_path / "x.npy", rng.normal(size=(20, 4, 6, 1)).astype(np.float32))
  config = resolve(config_of(tmp_path / "x.npy"))
  stored = parse_config(config.to_json_best_effort(), "config.json")
  assert resolve(stored).data.image_size == (4, 6)
  assert resolve(stored) == config


def test_a_flip_that_version_0_1_stored_for_points_is_forgotten(tmp_path):
  np.save(tmp_path / "x.npy", rng.normal(size=(20, 3)).astype(np.float32))
  config = resolve(config_of(tmp_path / "x.npy"))
  stored = json.loads(config.to_json_best_effort())
  stored["data"]["random_flip"] = True
  assert resolve(parse_config(json.dumps(stored), "config.json")).data.random_flip is False


def test_images_of_floats_are_mirrored_on_request_and_series_never(tmp_path):
  images = rng.normal(size=(40, 4, 6, 2)).astype(np.float32)
  np.save(tmp_path / "x.npy", images)
  np.save(tmp_path / "series.npy", images[:, 0])
  small_sets_it = {"data__random_flip": None}
  assert resolve(config_of(tmp_path / "x.npy", **small_sets_it)).data.random_flip is False
  np.save(tmp_path / "bytes.npy", images.astype(np.uint8))
  assert resolve(config_of(tmp_path / "bytes.npy", **small_sets_it)).data.random_flip is True
  config = resolve(config_of(tmp_path / "x.npy", data__random_flip=True, data__standardize=False))
  keys = example_keys(jax.random.key(0), jnp.arange(40))
  seen = np.asarray(data.scaling_of(config).prepare(keys, jnp.asarray(images), train=True))
  same = (seen == images).all((1, 2, 3))
  np.testing.assert_array_equal(seen[~same], images[~same][:, :, ::-1])
  assert 8 <= same.sum() <= 32
  with pytest.raises(BadInput, match=r"random_flip=True flips images, and the data have shape \(6, 2\)"):
    resolve(config_of(tmp_path / "series.npy", data__random_flip=True))


def test_a_condition_that_is_an_image_is_mirrored_with_its_example(tmp_path):
  """With the example itself as condition, the two stay equal."""
  file = tmp_path / "own.py"
  file.write_text("same = lambda images: images")
  images = rng.integers(0, 256, (16, 8, 8, 1)).astype(np.uint8)
  np.save(tmp_path / "x.npy", images)
  changes = {"model__name": "ncsnpp", "model__ch_mult": (1, 2), "data__condition": f"{file}:same"}
  config = resolve(config_of(tmp_path / "x.npy", data__random_flip=True, **changes))
  step = train_step.make_train_step(build(config))
  compared = []

  def loss(params, keys, x, index, batch_size, y):
    compared.append((x, y["condition"]))
    return jnp.zeros(x.shape[0])

  batch = {"image": images, "condition": images, "label": np.zeros(16, np.int32), "index": np.arange(16)}
  dataclasses.replace(step, loss=loss)._of_share()({"w": jnp.zeros(())}, batch, jax.random.key(0), {})
  (x, condition), plain = compared[0], images / 127.5 - 1
  mirrored = ~np.isclose(x, plain, atol=1e-5).all((1, 2, 3))
  assert 2 <= mirrored.sum() <= 14
  np.testing.assert_allclose(x, condition, atol=1e-5)


def test_the_test_split_of_a_function_and_classes_of_a_test_file(tmp_path):
  file = tmp_path / "own.py"
  file.write_text(FUNCTION)
  config = resolve(config_of(f"{file}:with_test"))
  assert (len(data.load(config, "train")), len(data.load(config, "test"))) == (30, 7)
  table = lambda kinds: pa.table({"kind": kinds, "size": rng.normal(size=len(kinds))})
  pyarrow.csv.write_csv(table(["a", "b", "c"] * 5), tmp_path / "train.csv")
  pyarrow.csv.write_csv(table(["b", "c"]), tmp_path / "test.csv")
  values = {"data__label_column": "kind", "data__test_path": str(tmp_path / "test.csv"), "model__num_classes": 3}
  config = resolve(config_of(tmp_path / "train.csv", **values))
  assert len(data.load(config, "train")) == 15
  assert data.load(config, "test").label.tolist() == [1, 2]
  pyarrow.csv.write_csv(table(["b", "z"]), tmp_path / "test.csv")
  with pytest.raises(BadInput, match=r"has the classes z, which data.path does not have"):
    data.load(resolve(config_of(tmp_path / "train.csv", **values)), "test")


def test_a_large_test_folder_gets_the_classes_of_the_training_folder(tmp_path):
  for name, kinds in (("train", "abc"), ("test", "bc")):
    for kind in kinds:
      (tmp_path / name / kind).mkdir(parents=True)
      for i in range(4):
        np.save(tmp_path / name / kind / f"{i}.npy", rng.normal(size=(6, 2)))
  values = {"data__test_path": str(tmp_path / "test"), "model__num_classes": 3, "data__cache_gib": 0.0}
  test = data.load(resolve(config_of(tmp_path / "train", **values)), "test")
  kinds = [test.names[i] for i in test.gather(np.arange(len(test)))["label"]]
  assert sorted(kinds) == ["b"] * 4 + ["c"] * 4
  np.save(tmp_path / "flat.npy", rng.normal(size=(8, 6, 2)))
  values["data__test_path"] = str(tmp_path / "flat.npy")
  with pytest.raises(BadInput, match=r"has no classes, and data\.path has 3"):
    data.load(resolve(config_of(tmp_path / "train", **values)), "test")
  assert len(data.load(resolve(config_of(tmp_path / "train", **values | {"model__num_classes": 0})), "test")) == 8


def test_row_numbers_are_no_data_and_large_offsets_are_named(tmp_path, caplog):
  time = 1.7e9 + 1e3 * rng.normal(size=40)
  table = pa.table(
    {"": list(range(40)), "__index_level_0__": list(range(40)), "time": time, "size": rng.normal(size=40)}
  )
  pyarrow.csv.write_csv(table, tmp_path / "t.csv")
  config = resolve(config_of(tmp_path / "t.csv"))
  assert data.load(config, "train").columns == ("time", "size")
  assert "numbers the rows, and is left out" in caplog.text
  assert "channel 'time' varies by" in caplog.text
  assert "subtract an offset first" in caplog.text


def test_data_in_small_units_are_no_constants(tmp_path):
  x = 1e-9 * rng.normal(size=(50, 2))
  np.savez(tmp_path / "x.npz", x=x, condition=x)
  config = resolve(config_of(tmp_path / "x.npz"))
  assert config.data.std[0] == pytest.approx(1e-9, rel=0.3)
  assert config.data.condition_std[0] == pytest.approx(1e-9, rel=0.3)
  np.save(tmp_path / "x.npy", np.where(np.arange(100).reshape(50, 2) == 7, 1e60, x))
  with pytest.raises(BadInput, match=r"x of example 3 is 1e\+60 .*finite in float32"):
    resolve(config_of(tmp_path / "x.npy"))


def test_nats_of_an_array_carry_the_jacobian_of_its_scaling(tmp_path):
  """With the exact score of standardized data, nats are the entropy of the Gaussian that was standardized."""
  mean, std = np.array([3.0, -200.0, 0.5]), np.array([0.1, 30.0, 2.0])
  scaling = ss.Scaling(levels=None, mean=tuple(mean), std=tuple(std))
  network = lambda params, x, labels, keys: params * x  # the exact score of N(0, I) under VP
  model = ss.Model(ss.ScoreModel(ss.VP(), network), -1.0, scaling, (3,))
  x = (rng.normal(size=(64, 3)) * std + mean).astype(np.float32)
  exact = -0.5 * (((x - mean) / std) ** 2).sum(1) - np.log(std).sum() - 1.5 * math.log(2 * math.pi)
  np.testing.assert_allclose(model.log_likelihood(jax.random.key(0), x), exact, rtol=1e-3, atol=1e-3)
  drawn = model.sample(jax.random.key(0), 4000)
  np.testing.assert_allclose(drawn.mean(0), mean, atol=0.1 * std.max())
  np.testing.assert_allclose(drawn.std(0), std, rtol=0.05)


def test_a_random_crop_is_a_function_of_the_step(tmp_path):
  from PIL import Image

  for i in range(20):
    Image.fromarray(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)).save(tmp_path / f"{i}.png")
  config = small.get_config()
  config.data.dataset, config.data.path, config.data.image_size = "folder", str(tmp_path), (8, 16)
  config.data.resize, config.data.num_channels, config.training.batch_size = "random_crop", 3, 16
  config = resolve(config)
  source = data.load(config, "train")
  first, again = (next(batches(config, source, 5))["image"] for _ in range(2))
  np.testing.assert_array_equal(first, again)
  assert first.shape == (16, 8, 16, 3)
  one = source.gather(np.zeros(8, int), np.arange(8))["image"]
  assert len(np.unique(one.reshape(8, -1), axis=0)) == 8
  original = np.asarray(Image.open(tmp_path / source.examples[0]))
  windows = np.lib.stride_tricks.sliding_window_view(original, (8, 16, 3))[:, :, 0]
  assert all((windows == crop).all(axis=(2, 3, 4)).any() for crop in one)
  test = data.load(config, "test")
  np.testing.assert_array_equal(test.gather(np.arange(2))["image"], test.gather(np.arange(2))["image"])


RUN = {
  "training__n_iters": 20, "training__n_jitted_steps": 10, "training__batch_size": 16, "training__log_freq": 10,
  "training__eval_freq": 10, "training__snapshot_freq": 20, "training__snapshot_freq_for_preemption": 20,
  "training__final_report": False, "training__snapshot_sampling": False, "sampling__method": "unipc",
  "sampling__num_steps": 3, "sampling__num_samples": 8, "eval__num_examples": 8, "eval__batch_size": 8,
}  # fmt: skip


@pytest.mark.thorough
def test_a_conditional_run_is_sampled_without_its_data(tmp_path):
  """The workdir keeps the scaling: samples, and conditions of samples, need no data."""
  c = rng.normal(size=(100, 2)) * 5 + 1
  np.savez(tmp_path / "pairs.npz", x=np.c_[c.sum(1), c[:, 0]] * 10 + 50, condition=c)
  config = config_of(tmp_path / "pairs.npz", **RUN)
  folder = str(tmp_path / "run")
  training.train(config, folder)
  kept = json.loads((tmp_path / "run" / "config.json").read_text())["data"]
  assert kept["shape"] == [2]
  assert kept["condition_shape"] == [2]
  assert kept["mean"][0] == pytest.approx(70, abs=20)
  evaluate.evaluate(config, folder)
  report = json.loads((tmp_path / "run" / "report.json").read_text())["checkpoints"][0]
  assert math.isfinite(report["nats"])

  np.save(tmp_path / "asked.npy", np.array([[1.0, 2.0], [3.0, 4.0]]))
  config.sampling.condition = str(tmp_path / "asked.npy")
  (tmp_path / "pairs.npz").unlink()
  evaluate.sample(config, folder)
  assert np.load(tmp_path / "run" / "samples.npz")["samples"].shape == (8, 2)
  model = ss.load(folder)
  x = model.sample(jax.random.key(0), 6, condition=[1.0, 2.0])
  assert x.shape == (6, 2)
  assert not np.allclose(x, model.sample(jax.random.key(0), 6, condition=[9.0, 2.0]))
  assert model.log_likelihood(jax.random.key(1), x, condition=np.ones((6, 2))).shape == (6,)
  with pytest.raises(ss.InvalidArgument, match=r"condition of \[3\] must be \[2\]"):
    model.sample(jax.random.key(0), 6, condition=[1.0, 2.0, 3.0])
