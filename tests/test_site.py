"""The site: it builds without a warning, its links lead somewhere, formulas are shown, and it asks no other server."""

import functools
import http.server
import importlib
import pathlib
import subprocess
import sys
import threading
import urllib.parse

import pytest
import runs
from test_page import opened

import score_sde

pytestmark = [pytest.mark.slow, pytest.mark.browser]

# Pages that are opened in the browser; links and pictures are followed in all.
OPENED = ("index.html", "theory/likelihood.html", "reference/sampling.html", "notebooks/2_one_sde.html", "data.html")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
  pytest.importorskip("mkdocs")
  folder = tmp_path_factory.mktemp("site")
  done = subprocess.run(
    [sys.executable, "-m", "mkdocs", "build", "--strict", f"--site-dir={folder}"],
    cwd=runs.ROOT, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  return folder


@pytest.fixture(scope="module")
def address(site):
  class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
      pass

  server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
  threading.Thread(target=server.serve_forever, daemon=True).start()
  yield f"http://127.0.0.1:{server.server_port}"
  server.shutdown()


@functools.cache
def parsed(file):
  """(links, pictures, ids) of a page."""
  from bs4 import BeautifulSoup

  page = BeautifulSoup(pathlib.Path(file).read_text(), "html.parser")
  links = {a["href"] for a in page.find_all("a", href=True)}
  pictures = [(i["src"], i.get("alt")) for i in page.find_all("img")]
  return links, pictures, {tag["id"] for tag in page.find_all(id=True)}


def test_every_link_inside_leads_somewhere_and_every_picture_is_there(site):
  missing = []
  for page in site.rglob("*.html"):
    if page.name == "404.html":
      continue
    links, pictures, _ = parsed(page)
    for target in [*links, *(source for source, _ in pictures)]:
      url = urllib.parse.urlsplit(target)
      if url.scheme or url.netloc or target.startswith("data:"):
        continue
      file = page if not url.path else (page.parent / urllib.parse.unquote(url.path)).resolve()
      file = file / "index.html" if file.is_dir() else file
      found = file.is_file() and (not url.fragment or file.suffix != ".html" or url.fragment in parsed(file)[2])
      if not found and url.fragment not in ("__tabbed", "__codelineno"):
        missing.append((str(page.relative_to(site)), target))
  assert not missing


def test_pictures_say_what_they_show(site):
  assert not [(str(p), source) for p in site.rglob("*.html") for source, alt in parsed(p)[1] if not alt]


def test_every_public_name_is_in_the_reference(site):
  ids = set().union(*(parsed(page)[2] for page in (site / "reference").glob("*.html")))
  public = {f"score_sde.{name}" for name in score_sde.__all__} - {
    "score_sde.__version__", "score_sde.analytic", "score_sde.guidance",
  }  # fmt: skip
  guidance = importlib.import_module("score_sde.guidance")
  public |= {f"score_sde.guidance.{name}" for name in guidance.__all__ if name != "METHODS"}
  assert not public - ids


def test_every_key_of_a_config_is_in_the_reference(site):
  from score_sde.run.config import keys

  text = (site / "reference" / "config.html").read_text()
  assert not [key for key in keys() if f"<code>{key.split('.')[1]}</code>" not in text]


@pytest.mark.parametrize("page", OPENED)
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_pages_work_in_a_browser_and_ask_no_other_server(address, page, width, dark):
  with opened(f"{address}/{page}", width, dark) as (shown, requests, errors):
    shown.wait_for_load_state("networkidle")
    assert errors == []
    assert [url for url in requests if not url.startswith((address, "data:", "blob:"))] == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= width
    if page.startswith("theory"):
      formulas = shown.evaluate("[...document.querySelectorAll('math')].map(m => m.getBoundingClientRect().width)")
      assert formulas
      assert min(formulas) > 0
    assert "\\(" not in shown.locator("article").inner_text()
    assert "$$" not in shown.locator("article").inner_text()


def test_a_search_finds_a_key(address):
  with opened(f"{address}/index.html", 1280) as (shown, _, errors):
    shown.locator(".md-search__input").click()
    shown.keyboard.type("predictor corrector")
    shown.wait_for_selector(".md-search-result__item", timeout=15000)
    assert errors == []
