"""Every reader of somebody else's file gets 200 mutations of a good one: sound data, or one line that names the file.

The readers of PyTorch's files are in test_torch_file.
"""

import gzip
import io
import json
import zipfile

import flax.serialization
import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
import safetensors.numpy
from PIL import Image
from runs import mutations, tiny
from test_data import tfrecord

from score_sde.metrics import Moments
from score_sde.run import data, features, loading
from score_sde.run.checkpoints import published
from score_sde.run.config import BadInput, as_dict
from score_sde.run.data import arrays, folders, records
from score_sde.run.data.files import fit
from score_sde.run.data.idx import read_idx

RNG = np.random.default_rng(0)
IMAGES = RNG.integers(0, 256, (20, 8, 8, 3)).astype(np.uint8)

OWN = features.Extractor("own", lambda variables, images: (images, images), {})


def weights():
  return {"Dense_0": {"kernel": np.ones((3, 4), np.float32), "bias": np.zeros(4, np.float32)}}


def safetensors_file(path):
  safetensors.numpy.save_file({"params/a": np.ones((3, 4), np.float32)}, path, {"step": "7"})
  return lambda: published.read(path, ["a"])


def msgpack_file(path):
  state = {"step": 7, "params_ema": weights(), "optimizer": {"target": weights(), "state": {}}}
  path.write_bytes(flax.serialization.msgpack_serialize(state))
  return lambda: published.read(path, ["Dense_0/kernel"])


def statistics(path):
  samples = RNG.normal(size=(50, 8))
  features.write(path, features.Reference("own", Moments.of(samples), samples))
  return lambda: features.read(str(path), OWN)


def idx_file(path):
  path.write_bytes(b"\x00\x00\x08\x03" + np.array([20, 8, 8], ">u4").tobytes() + IMAGES[..., 0].tobytes())
  return lambda: read_idx(path)


def gzipped_idx_file(path):
  idx_file(path)
  path.write_bytes(gzip.compress(path.read_bytes()))
  return lambda: read_idx(path)


def tfrecord_file(path):
  path.write_bytes(b"".join(map(tfrecord, IMAGES)))
  config = tiny(data__dataset="tfrecords", data__path=str(path), data__image_size=8, data__num_channels=3)

  def read():
    source = records.tfrecords(config, "train")
    return [source.read(i) for i in range(len(source))]

  return read


def image_file(path):
  Image.fromarray(IMAGES[0]).save(path)
  config = tiny(data__image_size=8, data__num_channels=3)
  return lambda: folders._decoded(folders.open_folder(str(path.parent)), path.name, lambda image: fit(image, config))


def zip_file(path):
  with zipfile.ZipFile(path, "w") as archive:
    for i, image in enumerate(IMAGES):
      content = io.BytesIO()
      Image.fromarray(image).save(content, "png")
      archive.writestr(f"{'cat' if i % 2 else 'dog'}/{i}.png", content.getvalue())
    labels = [[f"{'cat' if i % 2 else 'dog'}/{i}.png", i % 2] for i in range(len(IMAGES))]
    archive.writestr("dataset.json", json.dumps({"labels": labels}))
  config = tiny(data__dataset="folder", data__path=str(path), data__image_size=8, data__num_channels=3)
  return lambda: data.load(config, "train")


def array_file(path):
  x = RNG.normal(size=(40, 3))
  if path.suffix == ".npy":
    np.save(path, x)
  elif path.suffix == ".npz":
    np.savez(path, x=x, y=np.arange(40) % 3, condition=x[:, :1])
  else:
    table = pa.table({name: x[:, i] for i, name in enumerate("abc")})
    (pyarrow.csv.write_csv if path.suffix == ".csv" else pyarrow.parquet.write_table)(table, path)
  config = tiny(data__dataset="array", data__path=str(path))

  def read():
    arrays._read.cache_clear()
    return arrays.describe(arrays.array(config, "train"), True, f"data.path={str(path)!r}")

  return read


def config_file(path):
  path.write_text(json.dumps(as_dict(tiny()), default=list))
  return lambda: loading.parse_config(path.read_text(errors="replace"), str(path))


READERS = {
  "a.safetensors": safetensors_file, "official.flax": msgpack_file, "statistics.npz": statistics, "idx": idx_file,
  "idx.gz": gzipped_idx_file, "r03.tfrecords": tfrecord_file, "image.png": image_file, "image.jpg": image_file,
  "image.webp": image_file, "image.gif": image_file, "image.tif": image_file, "image.bmp": image_file,
  "images.zip": zip_file, "config.json": config_file, "x.npy": array_file, "x.npz": array_file, "x.csv": array_file,
  "x.parquet": array_file,
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
@pytest.mark.filterwarnings("ignore")
def test_a_mutated_file_is_read_or_refused_in_one_line(tmp_path, name):
  path = tmp_path / name
  read = READERS[name](path)
  assert read() is not None
  content, refused = path.read_bytes(), 0
  for mutated in mutations(content, RNG):
    path.write_bytes(mutated)
    try:
      read()
    except BadInput as error:
      refused += 1
      first, *others = str(error).splitlines()
      if others or str(path) not in first:
        pytest.fail(f"{error!r} is not one line that names {path}")
  assert refused > 5 or name.startswith("image")  # reading an image gives the reason


def test_a_flipped_bit_of_a_tfrecord_is_found(tmp_path):
  """TFRecords have checksums, so that no damaged pixel is trained on."""
  read = tfrecord_file(path := tmp_path / "r03.tfrecords")
  content = bytearray(path.read_bytes())
  content[60] ^= 1
  path.write_bytes(bytes(content))
  with pytest.raises(BadInput, match="does not have its checksum"):
    read()
  assert google_crc32c.value(b"123456789") == 0xE3069283  # RFC 3720, Appendix B.4


def test_a_bomb_in_statistics_and_a_pointer_of_git_lfs_are_refused(tmp_path):
  with (tmp_path / "lfs.safetensors").open("w") as file:
    file.write("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
  with pytest.raises(BadInput, match="is a pointer of Git LFS"):
    published.read(tmp_path / "lfs.safetensors", ["a"])
  np.savez(tmp_path / "pickled.npz", mu=np.array([{}, {}], object), sigma=np.eye(2))
  with pytest.raises(BadInput, match="cannot be read"):
    features.read(
      str(tmp_path / "pickled.npz"), features.Extractor("own", lambda variables, images: (images, images), {})
    )


def test_fewer_labels_than_images_are_refused(tmp_path):
  for kind, shape in (("images-idx3-ubyte", (20, 8, 8)), ("labels-idx1-ubyte", (19,))):
    header = b"\x00\x00\x08" + bytes([len(shape)]) + np.array(shape, ">u4").tobytes()
    (tmp_path / f"train-{kind}").write_bytes(header + bytes(int(np.prod(shape))))
  config = tiny(data__dataset="idx", data__path=str(tmp_path), data__image_size=8)
  with pytest.raises(BadInput, match=r"labels \(19,\)"):
    data.load(config, "train")
