"""Emoji as a data set: `data.dataset=configs/emoji/images.py:emoji`, with the file of an npm package as `data.path`.

    curl -O https://registry.npmjs.org/emoji-datasource-twitter/-/emoji-datasource-twitter-16.0.0.tgz

It holds Twitter's emoji (Twemoji, copyright Twitter and other contributors, CC-BY 4.0) as PNGs of 64 x 64. Variants of
skin tone, and parts of others, are left out. The classes are the groups of Unicode; a fixed tenth is held out.
"""

import io
import json
import tarfile

import numpy as np
from PIL import Image

from score_sde.run.data import Arrays
from score_sde.run.data.files import fitted
from score_sde.run.data.sources import split_off


def emoji(data, split):
  """Reads the emoji of the package `data.path`, on white, resized to `data.image_size`."""
  with tarfile.open(data.path) as package:
    files = {m.name.rpartition("/")[2]: m for m in package.getmembers() if "/64/" in m.name and m.name.endswith(".png")}
    listed = json.load(package.extractfile("package/emoji.json"))
    found = [
      (e["category"], package.extractfile(files[e["image"]]).read())
      for e in listed
      if e["image"] in files and e["category"] != "Component"
    ]
  groups = tuple(sorted({group for group, _ in found}))
  chosen = split_off(len(found), split)
  images = np.stack([fitted(Image.open(io.BytesIO(found[i][1])), data) for i in chosen])
  labels = np.array([groups.index(found[i][0]) for i in chosen], np.int32)
  return Arrays(images, labels, names=groups)
