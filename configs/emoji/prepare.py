"""Makes a folder of emoji for configs/emoji/ncsnpp.py, from the file of an npm package:

    curl -O https://registry.npmjs.org/emoji-datasource-twitter/-/emoji-datasource-twitter-16.0.0.tgz
    python -m configs.emoji.prepare emoji-datasource-twitter-16.0.0.tgz data/emoji

The package holds Twitter's emoji (Twemoji, copyright Twitter and other contributors, CC-BY 4.0) as PNGs of 64 x 64
with a transparent background. The folder has a subfolder for each group of Unicode. Variants of skin tone, and parts of
other emoji, are left out.
"""

import json
import pathlib
import sys
import tarfile

PICTURES = "/64/"


def main(package: str, folder: str) -> None:
  with tarfile.open(package) as opened:
    files = {m.name.rpartition("/")[2]: m for m in opened.getmembers() if PICTURES in m.name}
    listed = json.load(opened.extractfile("package/emoji.json"))
    kept = [e for e in listed if e["image"] in files and e["category"] != "Component"]
    for emoji in kept:
      target = pathlib.Path(folder) / emoji["category"] / emoji["image"]
      target.parent.mkdir(parents=True, exist_ok=True)
      target.write_bytes(opened.extractfile(files[emoji["image"]]).read())
  print(f"Wrote {len(kept):,} emoji to {folder}.")


if __name__ == "__main__":
  if len(sys.argv) != 3:
    sys.exit("usage: python -m configs.emoji.prepare PACKAGE.tgz FOLDER")
  main(*sys.argv[1:])
