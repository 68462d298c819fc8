"""Fashion-MNIST through tensorflow-datasets: its real builder downloads from loopback, and training reads the result.

Preparing needs TensorFlow (the extra `prepare`); reading what was prepared does not: a second process reads, with the
Python of $PYTHON_WITHOUT_TENSORFLOW where that is set (CI does).
"""

import functools
import http.server
import os
import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import runs
from test_data import config_of

from score_sde.run import data

IDX = pathlib.Path("/usr/share/datasets/fashion-mnist")
READ = """
import sys
sys.path[:0] = ["tests", "."]
import numpy as np
from test_data import config_of
from score_sde.run import data
config = config_of("fashion_mnist", data__path=sys.argv[1], data__image_size=28, data__num_channels=1)
source = data.load(config, "train")
batch = source.gather(np.arange(64))
print(len(source), batch["image"].shape, batch["image"].dtype, int(batch["image"].sum()), int(batch["label"].sum()))
"""


@pytest.fixture
def served():
  """The folder of IDX files on a loopback port."""
  handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=str(IDX))
  handler.log_message = lambda *_: None
  with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()
    thread.join()


@pytest.mark.skipif(not IDX.is_dir(), reason="needs `apt-get install dataset-fashion-mnist`")
def test_fashion_mnist_through_its_real_builder(served, tmp_path, monkeypatch):
  pytest.importorskip("tensorflow", reason="preparing a data set needs the extra 'prepare'")
  import tensorflow_datasets as tfds
  from tensorflow_datasets.image_classification import mnist

  monkeypatch.setattr(mnist.FashionMNIST, "URL", served, raising=False)
  config = tfds.download.DownloadConfig(verify_ssl=False)
  builder = tfds.builder("fashion_mnist", data_dir=str(tmp_path), file_format="array_record")
  builder.download_and_prepare(download_config=config)

  python = os.environ.get("PYTHON_WITHOUT_TENSORFLOW", sys.executable)
  done = subprocess.run(
    [python, "-c", READ, str(tmp_path)], cwd=runs.ROOT, env=runs.environment(),
    capture_output=True, text=True, timeout=280, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  direct = data.load(config_of("idx", data__path=str(IDX), data__image_size=28, data__num_channels=1), "train")
  assert done.stdout.startswith("60000 (64, 28, 28, 1) uint8")
  # The builder shuffles; the same 60,000 images with the same labels are there.
  prepared = data.load(
    config_of("fashion_mnist", data__path=str(tmp_path), data__image_size=28, data__num_channels=1), "train"
  )
  sums = lambda batch: sorted(zip(batch["image"].reshape(-1, 784).sum(axis=1), batch["label"], strict=True))
  everything = np.arange(60_000)
  assert sums(prepared.gather(everything)) == sums(direct.gather(everything))


READ_RECORDS = """
import sys
sys.path[:0] = ["tests", "."]
import numpy as np
from test_data import config_of
from score_sde.run import data
source = data.load(config_of("CelebAHQ", data__path=sys.argv[1], data__image_size=16), "train")
print(len(source), int(source.gather(np.arange(len(source)))["image"].astype(int).sum()), "tensorflow" in sys.modules)
"""


def test_tfrecords_that_tensorflow_wrote_are_read_without_it(tmp_path):
  tf = pytest.importorskip("tensorflow", reason="writing them needs the extra 'prepare'")
  images = np.random.default_rng(0).integers(0, 256, (9, 3, 16, 16)).astype(np.uint8)
  feature = lambda image: {
    "shape": tf.train.Feature(int64_list=tf.train.Int64List(value=image.shape)),
    "data": tf.train.Feature(bytes_list=tf.train.BytesList(value=[image.tobytes()])),
  }
  path = str(tmp_path / "celebahq-r04.tfrecords")
  with tf.io.TFRecordWriter(path) as writer:
    for image in images:
      writer.write(tf.train.Example(features=tf.train.Features(feature=feature(image))).SerializeToString())
  python = os.environ.get("PYTHON_WITHOUT_TENSORFLOW", sys.executable)
  done = subprocess.run(
    [python, "-c", READ_RECORDS, path], cwd=runs.ROOT, env=runs.environment(), capture_output=True, text=True,
    timeout=280, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  assert done.stdout.split() == ["9", str(images.astype(int).sum()), "False"]
