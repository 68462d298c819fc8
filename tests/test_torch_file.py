"""A hostile PyTorch file reads nothing outside its tensors, sets nothing, and gets no more memory than it has bytes."""

import collections
import pickle
import zipfile

import numpy as np
import pytest
from runs import mutations
from test_published import Global, Storage, StreamPickler, write_stream

from score_sde.run.checkpoints import torch_file
from score_sde.run.config import BadInput


class Pickler(StreamPickler):
  """Also writes a view of a storage with any offset, shape and strides, and a state that BUILD would set."""

  def save(self, value, *args, **kwargs):
    if isinstance(value, View):
      storage = Storage("0", np.arange(12, dtype=np.float32))
      self.save(Global("torch._utils", "_rebuild_tensor_v2"))
      self.save((storage, value.offset, value.shape, value.strides, False, collections.OrderedDict()))
      self.write(pickle.REDUCE)
    elif isinstance(value, Built):
      self.save(value.of)
      self.save(value.state)
      self.write(pickle.BUILD)
    else:
      super().save(value, *args, **kwargs)


class View:
  def __init__(self, offset, shape, strides):
    self.offset, self.shape, self.strides = offset, shape, strides


class Built:
  def __init__(self, of, state):
    self.of, self.state = of, state


def write_zip(path, content, compression=zipfile.ZIP_STORED):
  with path.with_suffix(".pkl").open("wb") as file:
    pickler = Pickler(file, protocol=2)
    pickler.storages = []
    pickler.dump(content)
  with zipfile.ZipFile(path, "w", compression) as archive:
    archive.writestr("archive/data.pkl", path.with_suffix(".pkl").read_bytes())
    archive.writestr("archive/data/0", np.arange(12, dtype=np.float32).tobytes())
  return path


def test_views_within_their_storage_are_read(tmp_path):
  views = {
    "a": View(0, (3, 4), (4, 1)),
    "t": View(0, (4, 3), (1, 4)),
    "last": View(11, (1,), (1,)),
    "empty": View(0, (0, 5), (5, 1)),
  }
  found = torch_file.read(write_zip(tmp_path / "good.pth", views))
  np.testing.assert_array_equal(found["a"], np.arange(12).reshape(3, 4))
  np.testing.assert_array_equal(found["t"], np.arange(12).reshape(3, 4).T)
  assert found["last"].tolist() == [11]
  assert found["empty"].shape == (0, 5)


@pytest.mark.parametrize(
  "view",
  [
    View(0, (3, 4), (-4, 1)),  # negative strides
    View(5, (3, 3), (4, -3)),  # of mixed signs: the last corner lies inside, another one outside
    View(-4, (4,), (1,)),
    View(0, (2, 2), (2**62, -(2**62))),  # overflows where the sum is of machine integers
    View(0, (13,), (1,)),
    View(0, (10**9,), (0,)),  # a gigabyte of one number
    View(0, (2**40, 2**40), (0, 0)),
    View(0, (3,), (1, 1)),
    View(0, (-3,), (1,)),
    View(0, (3.0,), (1,)),
  ],
)  # fmt: skip
def test_a_view_beyond_its_storage_is_refused(tmp_path, view):
  with pytest.raises(BadInput, match="cannot be read as a PyTorch checkpoint"):
    torch_file.read(write_zip(tmp_path / "hostile.pth", {"weight": view}))


def test_a_state_sets_nothing(tmp_path):
  """`_metadata` of a state_dict is dropped; a function, a dtype and a tensor stay what they were."""
  before = torch_file._rebuild_tensor.__defaults__, dict(vars(torch_file._Tensor))
  rebuild, tensor = Global("torch._utils", "_rebuild_tensor_v2"), View(0, (2,), (1,))
  hostile = {
    "function": Built(rebuild, {"__defaults__": (1, 2)}),
    "tensor": Built(tensor, {"shape": (10**6,), "offset": -100}),
    "state_dict": Built(tensor, {"_metadata": {"version": 1}}),
  }
  found = torch_file.read(write_zip(tmp_path / "state.pth", hostile))
  assert found["tensor"].tolist() == found["state_dict"].tolist() == [0, 1]
  assert (torch_file._rebuild_tensor.__defaults__, dict(vars(torch_file._Tensor))) == before


@pytest.mark.parametrize(
  "program",
  [
    b"\x80\x02ccollections\nOrderedDict\n)\x81.",  # NEWOBJ
    b"(ccollections\nOrderedDict\no.",  # OBJ
    b"(icollections\nOrderedDict\n.",  # INST
    b"\x80\x02\x82\x01.",  # EXT1
    b"\x80\x04\x8c\x02os\x8c\x06system\x93.",  # STACK_GLOBAL
  ],
)
def test_instructions_that_make_objects_are_refused(tmp_path, program):
  path = tmp_path / "hostile.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", program)
  with pytest.raises(BadInput, match="refused as a PyTorch checkpoint"):
    torch_file.read(path)


def test_a_compressed_archive_and_endless_nesting_are_refused(tmp_path):
  with pytest.raises(BadInput, match="its parts are compressed"):
    torch_file.read(write_zip(tmp_path / "bomb.pth", {"a": View(0, (2,), (1,))}, zipfile.ZIP_DEFLATED))
  deep = b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."
  with zipfile.ZipFile(tmp_path / "deep.pth", "w") as archive:
    archive.writestr("archive/data.pkl", deep)
  with pytest.raises(BadInput, match="cannot be read"):
    torch_file.read(tmp_path / "deep.pth")


def test_shared_containers_do_not_multiply(tmp_path):
  """Thirty lists, each of which holds the one before twice: 30 objects, not 2^30."""
  program = b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(30)) + b"."
  path = tmp_path / "laughs.pth"
  with zipfile.ZipFile(path, "w") as archive:
    archive.writestr("archive/data.pkl", program)
  found, depth = torch_file.read(path), 0
  while found:
    assert found[0] is found[1]
    found, depth = found[0], depth + 1
  assert depth == 30


def test_a_storage_larger_than_its_file_is_refused(tmp_path):
  path = write_stream(tmp_path / "large.pth", {"a": np.arange(12, dtype=np.float32)})
  content = path.read_bytes()
  place = content.rindex((12).to_bytes(8, "little"))
  path.write_bytes(content[:place] + (10**10).to_bytes(8, "little") + content[place + 8 :])
  with pytest.raises(BadInput, match="10000000000 numbers, more than the file has"):
    torch_file.read(path)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_mutated_files_are_read_or_refused_and_nothing_else(tmp_path, form):
  """200 mutations of a good file, each of a few bytes or a cut: arrays no larger than the file, or one line."""
  good = tmp_path / "good.pth"
  if form == "zip":
    write_zip(good, {"a": View(0, (3, 4), (4, 1)), "b": [1, 2.5, "x"]})
  else:
    write_stream(good, {"a": np.arange(12, dtype=np.float32).reshape(3, 4), "b": [1, 2.5, "x"]})
  content, rng, path = good.read_bytes(), np.random.default_rng(0), tmp_path / "mutated.pth"
  refused = 0
  for mutated in mutations(content, rng):
    path.write_bytes(mutated)
    try:
      found = torch_file.read(path)
    except BadInput:
      refused += 1
      continue
    arrays = [v for v in (found.values() if isinstance(found, dict) else []) if isinstance(v, np.ndarray)]
    assert all(a.nbytes <= len(content) for a in arrays)
  assert refused > 20
