"""Image files of every mode as arrays of one shape, what is said about changes, and the preview of a data set."""

import logging

import numpy as np
import pytest
from PIL import Image
from runs import tiny

from score_sde.run import data
from score_sde.run.config import BadInput, resolve
from score_sde.run.data.files import as_array
from score_sde.run.guide import make_operator
from score_sde.run.report import pictures
from score_sde.run.report.preview import show

RGB = np.zeros((8, 8, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
GRAY = round(0.299 * 200 + 0.587 * 100 + 0.114 * 50)


def with_alpha(mode):
  alpha = np.full((8, 8, 1), 255, np.uint8)
  alpha[4:] = 0
  return Image.fromarray(np.concatenate([RGB, alpha], axis=2)).convert(mode)


def palette():
  image = Image.fromarray(RGB).quantize(4)
  image.info["transparency"] = image.getpixel((0, 0))
  return image


MODES = {
  "1": (Image.fromarray(np.full((8, 8), True)), (255, 255, 255)),
  "L": (Image.fromarray(np.full((8, 8), 90, np.uint8)), (90, 90, 90)),
  "RGB": (Image.fromarray(RGB), (200, 100, 50)),
  "P": (Image.fromarray(RGB).quantize(4), (200, 100, 50)),
  "CMYK": (Image.fromarray(RGB).convert("CMYK"), (200, 100, 50)),
  "YCbCr": (Image.fromarray(RGB).convert("YCbCr"), (200, 100, 50)),
  "HSV": (Image.fromarray(RGB).convert("HSV"), (200, 100, 50)),
  "I;16": (Image.fromarray(np.full((8, 8), 25700, np.uint16)), (100, 100, 100)),
  "I": (Image.fromarray(np.full((8, 8), 25700, np.int32)), (100, 100, 100)),
  "F": (Image.fromarray(np.full((8, 8), 0.5, np.float32)), (128, 128, 128)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_becomes_what_a_viewer_shows(mode, tmp_path):
  image, expected = MODES[mode]
  np.testing.assert_allclose(as_array(image, (8, 8), 3)[0, 0], expected, atol=6)
  np.testing.assert_allclose(as_array(image, (4, 8), 1)[0, 0], [np.dot(expected, [0.299, 0.587, 0.114])], atol=4)
  assert as_array(image, (16, 16), 4).shape == (16, 16, 4)


@pytest.mark.parametrize("image", [with_alpha("RGBA"), with_alpha("LA")], ids=["RGBA", "LA"])
def test_transparent_parts_get_the_background(image):
  notes = []
  found = as_array(image, None, 3, background="#0000ff", notes=notes)
  assert found[7, 0].tolist() == [0, 0, 255]
  assert found[0, 0, 2] < 130
  assert "transparent parts made #0000ff" in notes
  assert as_array(palette(), None, 3, background="black")[0, 0].tolist() == [0, 0, 0]
  assert as_array(with_alpha("RGBA"), None, 4)[7, 0, 3] == 0


def test_files_are_turned_upright_and_their_first_frame_is_taken(tmp_path):
  wide = np.zeros((4, 8, 3), np.uint8)
  wide[:, :4] = 255
  exif = Image.Exif()
  exif[0x0112] = 6  # turned by a quarter
  Image.fromarray(wide).save(tmp_path / "a.png", exif=exif, icc_profile=b"profile")
  frames = [Image.fromarray(np.full((8, 8), value, np.uint8)) for value in (10, 200)]
  frames[0].save(tmp_path / "b.gif", save_all=True, append_images=frames[1:])
  notes = []
  with Image.open(tmp_path / "a.png") as image:
    found = as_array(image, None, 3, notes=notes)
  assert found.shape == (8, 4, 3)
  assert (found[0, 0].tolist(), found[7, 0].tolist()) == ([255] * 3, [0] * 3)
  with Image.open(tmp_path / "b.gif") as image:
    assert as_array(image, (8, 8), 1, notes=notes)[0, 0, 0] == pytest.approx(10, abs=3)
  assert {"turned by its EXIF orientation", "colour profile ignored", "first frame of an animation"} <= set(notes)


def test_each_way_to_resize_keeps_what_it_says():
  """A ramp along the width: its middle, its ends and its mean tell the ways apart."""
  ramp = Image.fromarray(np.tile(np.arange(0, 240, 4, dtype=np.uint8), (30, 1)))  # 60 wide, 30 high
  central = as_array(ramp, (10, 10), 1)[..., 0]  # the central 30 x 30
  assert central[0, 0] == pytest.approx(64, abs=3)
  assert central[0, -1] == pytest.approx(172, abs=3)
  area = as_array(ramp, (10, 10), 1, "area")[..., 0]
  np.testing.assert_array_equal(area[0], np.arange(0, 240, 4).reshape(20, 3).mean(1).round()[5:15])
  assert as_array(ramp, (10, 20), 1, "area")[0, :, 0].tolist() == np.arange(0, 240, 4).reshape(20, 3).mean(1).tolist()
  np.testing.assert_array_equal(as_array(ramp, (10, 10), 1, "crop")[..., 0], np.asarray(ramp)[10:20, 25:35])
  padded = as_array(ramp, (10, 10), 1, "pad", "white")[..., 0]
  assert padded[0].tolist() == [255] * 10
  assert padded[5, 0] < 20
  assert padded[5, -1] > 215
  crops = [as_array(ramp, (10, 10), 1, "random_crop", rng=np.random.default_rng(i))[..., 0] for i in range(8)]
  assert len({int(crop[0, 0]) for crop in crops}) > 3
  assert all((np.diff(crop.astype(int), axis=1) == 4).all() for crop in crops)
  assert as_array(Image.fromarray(RGB), (20, 12), 3, "crop").shape == (20, 12, 3)  # too small: enlarged


@pytest.mark.parametrize("size", [(1, 1), (1, 500), (3000, 2)])
def test_tiny_and_long_images_are_read(size):
  for resize in ("lanczos", "area", "crop", "pad"):
    found = as_array(Image.new("RGB", size, "red"), (16, 32), 3, resize)
    assert found.shape == (16, 32, 3)
    assert (found == [255, 0, 0]).all(axis=2).any() if resize == "pad" else (found == [255, 0, 0]).all()


def photographs(folder):
  rng = np.random.default_rng(0)
  for i in range(12):
    (folder / ("cat" if i % 2 else "dog")).mkdir(parents=True, exist_ok=True)
    mode = "CMYK" if i % 3 == 0 else "RGB"
    name = folder / ("cat" if i % 2 else "dog") / f"{i}.tif"
    Image.fromarray(rng.integers(0, 255, (40, 60, 3)).astype(np.uint8)).convert(mode).save(name)
  return folder


def config_of(folder, **values):
  return tiny(data__dataset="folder", data__path=str(folder), data__num_channels=3, **values)


def test_changes_of_a_fifth_of_the_files_are_told(tmp_path, caplog):
  caplog.set_level(logging.INFO, "score_sde")
  data.load(config_of(photographs(tmp_path), data__image_size=(16, 24)), "train")
  line = next(m for m in caplog.messages if m.startswith("Of 11 images"))
  assert "resized: 11" in line
  assert "converted from CMYK to RGB: " in line
  assert "cropped" not in line  # 40 x 60 has the shape of 16 x 24


def test_options_that_no_image_can_have_are_refused(tmp_path):
  folder = photographs(tmp_path)
  with pytest.raises(BadInput, match=r"data.num_channels=5.*data.dataset=array"):
    data.load(tiny(data__dataset="folder", data__path=str(folder), data__num_channels=5), "train")
  with pytest.raises(BadInput, match=r"data\.background='whiteish' is no colour"):
    data.load(config_of(folder, data__background="whiteish"), "train")
  for size in ((16, 16, 3), (16, 0), 12.5, "16"):
    with pytest.raises(BadInput, match=r"data.image_size=.* must be a positive integer, or \(height, width\)"):
      resolve(config_of(folder, data__image_size=size))


TASKS = ("inpaint", "colorize", "super_resolution", "deblur", "motion_deblur", "fourier", "projections")


@pytest.mark.thorough
@pytest.mark.parametrize("task", TASKS)
def test_measurement_operators_take_rectangles(task):
  """`make_operator` checks the adjoint of each, <A x, y> = <x, Aᵀ y>, on images of 16 x 32."""
  config = config_of("x", data__image_size=(16, 32), guidance__task=task)
  operator = make_operator(config, 2)
  assert operator.apply(np.ones((2, 16, 32, 3), np.float32)).shape[0] == 2


def test_a_data_set_is_shown_as_the_network_will_see_it(tmp_path, capsys):
  found = show(config_of(photographs(tmp_path / "images"), data__image_size=(16, 24)), str(tmp_path / "data.png"))
  assert found.examples == {"train": 11, "test": 1}
  assert found.shape == (16, 24, 3)
  assert set(found.classes) == {"cat", "dog"}
  assert sum(found.classes.values()) == 11
  said = capsys.readouterr().out
  assert "11 train and 1 test examples of 16 x 24 x 3, 256 levels" in said
  picture = np.asarray(Image.open(tmp_path / "data.png").convert("RGB"))
  assert picture.std() > 20


def test_the_preview_shows_the_augmentation(tmp_path):
  folder, drawn = photographs(tmp_path / "images"), []
  for augment in (0.0, 1.0):
    show(
      config_of(folder, data__random_flip=False, data__image_size=16, training__augment=augment),
      str(tmp_path / "a.png"),
    )
    drawn.append(np.asarray(Image.open(tmp_path / "a.png").convert("RGB"), np.float32))
  assert np.abs(drawn[1] - drawn[0]).mean() > 1


def test_a_config_of_a_folder_counts_its_classes(tmp_path):
  from configs import folder

  for i, name in enumerate(("cat", "dog", "dog", "emu") * 3):
    (tmp_path / name).mkdir(exist_ok=True)
    Image.new("RGB", (8, 8), (20 * i, 0, 0)).save(tmp_path / name / f"{i}.png")
  config = folder.get_config(str(tmp_path))
  assert (config.data.path, config.model.num_classes) == (str(tmp_path), 3)
  assert folder.get_config().model.num_classes == 0


def test_axes_fit_points_of_any_units():
  """Metres and kilograms: each axis its own range; a toy: a square of one scale."""
  points = np.random.default_rng(0).normal(size=(500, 2)) * [0.1, 10] + [1.7, 70]
  low, high = pictures.limits(points)
  assert (np.quantile(points, 0.01, axis=0) > low).all()
  assert (high - low)[0] < 1.0
  low, high = pictures.limits(np.random.default_rng(0).normal(size=(500, 2)))
  assert high[0] - low[0] == pytest.approx(high[1] - low[1])
