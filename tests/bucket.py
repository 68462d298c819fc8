"""Google Cloud's storage on loopback, for tests: `python tests/bucket.py PORT FOLDER` serves the bucket "runs"."""

import sys
import time

from gcp_storage_emulator.handlers import objects

_download = objects.download


def _with_generation(request, response, storage, *args, **options):
  """Adds a header that Google's server sends with each object and the emulator leaves out; tensorstore needs it."""
  _download(request, response, storage, *args, **options)
  if response.status.value < 300:
    found = storage.get_file_obj(request.params["bucket_name"], request.params["object_id"])
    response["x-goog-generation"] = found["generation"]


objects.download = _with_generation  # before the server is imported, which keeps a table of its functions

from gcp_storage_emulator.server import create_server  # noqa: E402

if __name__ == "__main__":
  server = create_server("localhost", int(sys.argv[1]), in_memory=False, default_bucket="runs", data_dir=sys.argv[2])
  server.start()
  print("ready", flush=True)
  while True:
    time.sleep(60)
