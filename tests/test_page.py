"""report.html: what stands in it, that it needs nothing else, and that it can be used in a browser."""

import contextlib
import dataclasses
import json
import re
import shutil

import numpy as np
import pytest
import runs
from ml_collections import ConfigDict

from score_sde.run.config import BadInput
from score_sde.run.evaluate import evaluate
from score_sde.run.evaluate.compare import compare, with_reports
from score_sde.run.report import page
from score_sde.run.storage import path_of

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run(trained):
  """A small run, evaluated twice, with class names that would break a page that does not escape them."""
  folder, config = trained
  evaluate(runs.changed(ConfigDict(config), eval__enable_bpd=True, eval__num_examples=16), str(folder))
  page.write_page(folder)
  return folder


def test_a_run_leaves_a_page_with_its_numbers_pictures_and_settings(run):
  text = (run / "report.html").read_text()
  shown = page.read(run)
  assert dict(shown.summary)["steps"] == "40 of 40"
  assert re.search(r"<dt>bits/dim</dt><dd>\d+\.\d+ ± \d+\.\d+</dd>", text)
  assert re.search(r"<dt>training time</dt><dd>\d+ (s|min)</dd>", text)
  assert text.count("data:image/png;base64") >= 2  # snapshots, the first of step 20
  assert 'data-step="20"' in text
  assert "training.batch_size" in dict(shown.chosen)
  assert shown.chosen["training.batch_size"] == (16, 128)
  assert "python -m score_sde train --workdir=" in text


def test_a_page_loads_nothing_from_elsewhere(run):
  """Scripts and pictures are in the file; the policy of the page forbids every request."""
  text = (run / "report.html").read_text()
  without_library = re.sub(r"<script>/\*\*.*?</script>", "", text, flags=re.DOTALL)
  assert "Content-Security-Policy" in text
  assert not re.findall(r"""(?:src|href)=["'](?!data:)""", without_library)


def test_names_are_escaped(run, tmp_path):
  shutil.copytree(run, tmp_path / "<script>alert(1)<")
  page.write_page(tmp_path / "<script>alert(1)<")
  assert "<script>alert(1)" not in (tmp_path / "<script>alert(1)<" / "report.html").read_text()


def test_metrics_are_json_lines_too_with_speed_rate_and_time(run):
  rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
  assert [row["step"] for row in rows] == [10, 20, 30, 40]
  assert all(0 < row["learning_rate"] <= 1e-2 for row in rows)
  seconds = [row["seconds"] for row in rows]
  assert seconds == sorted(seconds)
  assert rows[-1]["images_per_second"] > 0


def test_an_evaluation_with_other_settings_replaces_no_report(run, trained):
  """The fixture evaluated the run without and with likelihoods: both reports are there, and compared."""
  _, config = trained
  before = {p.name: p.read_bytes() for p in run.glob("report*.json")}
  evaluate(runs.changed(ConfigDict(config), eval__num_examples=8), str(run))
  after = {p.name: p.read_bytes() for p in run.glob("report*.json")}
  assert set(before.values()) <= set(after.values())
  assert len(after) == len(before) + 1
  evaluate(runs.changed(ConfigDict(config), eval__num_examples=8), str(run))  # the same again
  assert len(list(run.glob("report*.json"))) == len(after)
  assert len(re.findall(r"/report", compare(str(run)))) == len(after)


def test_samples_and_likelihoods_of_another_evaluation_are_kept(run, trained):
  _, config = trained
  measure = lambda **changes: evaluate(
    runs.changed(ConfigDict(config), eval__enable_sampling=True, eval__enable_bpd=True, eval__num_samples=4,
                 eval__num_examples=4, eval__enable_loss=False, eval__report="report_mine", **changes), str(run),
  )  # fmt: skip
  measure()
  before = {p.read_bytes() for p in (run / "eval").glob("*_mine*.npz")}
  assert len(before) == 2
  measure(sampling__num_steps=3)
  after = [p.read_bytes() for p in (run / "eval").glob("*_mine*.npz")]
  assert before <= set(after)
  assert len(after) == 4
  measure(eval__checkpoint="20")  # another step is another report
  assert len(list(run.glob("report_mine*.json"))) == 3


def test_runs_are_compared_in_one_page(run, tmp_path):
  other = tmp_path / "other"
  shutil.copytree(run, other)
  config = json.loads((other / "config.json").read_text())
  config["optim"]["lr"] = 0.5
  (other / "config.json").write_text(json.dumps(config))
  page.write_comparison([str(run), str(other)], path_of(tmp_path / "both.html"))
  text = (tmp_path / "both.html").read_text()
  assert "<code>optim.lr</code>" in text
  assert f"{other.name}: training" in text
  assert "| `optim.lr` |" in compare(str(run), str(other))
  assert "Published" not in compare(str(run), str(other))  # those are of CIFAR-10
  (tmp_path / "logs").mkdir()
  (tmp_path / "slurm.log").touch()
  others = (str(tmp_path / "logs"), str(tmp_path / "slurm.log"))
  assert compare(str(run), *others, str(other)) == compare(str(run), str(other))
  assert with_reports(str(run), *others) == (str(run),)
  with pytest.raises(BadInput, match="no workdir with one"):
    compare(*others)
  with pytest.raises(BadInput, match="'nowhere' does not exist"):
    compare(str(run), "nowhere")


def test_code_that_a_config_names_is_not_run_for_a_page_or_a_comparison(run, tmp_path):
  """docs/security.md: a config.json of somebody else names a file, which must not be run."""
  shutil.copytree(run, tmp_path / "foreign")
  ran = tmp_path / "ran"
  (tmp_path / "evil.py").write_text(f"import pathlib\npathlib.Path({str(ran)!r}).touch()\ndef f(m): 1 / 0\n")
  config = json.loads((tmp_path / "foreign" / "config.json").read_text())
  config["training"]["sde"] = f"{tmp_path / 'evil.py'}:f"
  (tmp_path / "foreign" / "config.json").write_text(json.dumps(config))
  page.write_page(tmp_path / "foreign")
  assert "| `training.sde` |" in compare(str(run), str(tmp_path / "foreign"))
  assert "training.sde" in page.read(tmp_path / "foreign").chosen
  assert not ran.exists()


def test_curves_of_a_run_that_began_without_json_lines_are_shown_whole(run, tmp_path):
  shutil.copytree(run, tmp_path / "run")
  lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  (tmp_path / "run" / "metrics.jsonl").write_text("\n".join(["{cut", *lines[2:]]) + "\n")
  assert [row["step"] for row in page.read(tmp_path / "run").metrics] == [10, 20, 30, 40]


def test_a_page_that_cannot_be_written_is_a_warning(tmp_path, caplog):
  page.refresh(path_of(tmp_path))
  assert "report.html was not written" in caplog.text


@contextlib.contextmanager
def opened(url, width, dark=False):
  """Opens a page in Chromium. Yields it with the requests that leave this machine, and the errors of scripts."""
  sync = pytest.importorskip("playwright.sync_api").sync_playwright
  if not CHROMIUM:
    pytest.skip("there is no Chromium")
  with sync() as play:
    browser = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
    found = browser.new_page(viewport={"width": width, "height": 800}, color_scheme="dark" if dark else "light")
    requests, errors = [], []
    found.on("request", lambda r: requests.append(r.url))
    found.on("pageerror", lambda e: errors.append(str(e)))
    found.goto(url)
    yield found, requests, errors
    browser.close()


@pytest.mark.browser
@pytest.mark.slow
@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_a_page_works_in_a_browser_by_keyboard(run, width, dark):
  with opened(f"file://{run}/report.html", width, dark) as (shown, requests, errors):
    shown.wait_for_selector(".chart .main-svg")
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:", "blob:"))] == []
    assert shown.evaluate("document.documentElement.scrollWidth") <= width  # nothing is cut off on a phone
    assert shown.locator("img:not([alt])").count() == 0
    slider = shown.locator("#snapshot")
    before = shown.locator("#step").inner_text()
    slider.focus()
    shown.keyboard.press("ArrowLeft")
    after = shown.locator("#step").inner_text()
    assert (before, after) == ("40", "20") if slider.is_enabled() else before == after
    box = shown.locator("[data-chart]").first
    box.focus()
    shown.keyboard.press("Space")
    kind = shown.evaluate(
      "document.getElementById(document.querySelector('[data-chart]').dataset.chart).layout.yaxis.type"
    )
    assert kind == "log"
    ink = shown.evaluate("getComputedStyle(document.body).color")
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    light = [np.mean([int(v) for v in re.findall(r"\d+", colour)[:3]]) for colour in (ink, paper)]
    assert abs(light[0] - light[1]) > 150  # readable in both modes


def test_the_command_that_resumes_is_the_last_one_that_trained(run):
  """Those of a mode other than training are left out; options of evaluation are part of a training."""
  shown = page.read(run)
  lines = [
    "python run.py --config=c.py --workdir=w --mode=train --config.eval.batch_size=8",
    "python run.py --config=c.py --workdir=w --mode=sample",
    "python -m score_sde eval --workdir=w",
  ]
  (run / "commands.txt").write_text("".join(f"2026-11-29 12:00:00  {line}\n" for line in lines))
  assert page._resume(dataclasses.replace(shown, names_code=True)) == lines[0]
