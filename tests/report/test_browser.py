"""The page in a real browser: on a phone and on a desk, in the light and in the dark."""

import html
import json
import re
import shutil
import subprocess

import pytest

from mm.report import run
from mm.report.sweep import write_report
from tests.report.workdirs import write, write_sweep

NAMES = "chromium", "chromium-browser", "google-chrome"
BROWSER = next((path for name in NAMES if (path := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here: apt install chromium")

PAGES, WIDTHS = ("run", "sweep"), (360, 1280)
# Everything unfolded. Of each width: how wide the document is, which elements stick out of it and
# of no box that scrolls, and the least contrast of a text to what is behind it, by kind.
MEASURE = """
function channels(color) { return color.match(/[0-9.]+/g).map(Number); }
function luminance(color) {
  const [r, g, b] = channels(color).slice(0, 3).map(x => x / 255).map(
    x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}
function behind(element, view) {
  for (let at = element; at; at = at.parentElement) {
    const color = view.getComputedStyle(at).backgroundColor, parts = channels(color);
    if (parts.length < 4 || parts[3] > 0) return color;
  }
  return "rgb(255, 255, 255)";
}
window.onload = () => {
  const found = {};
  for (const frame of document.querySelectorAll("iframe")) {
    const page = frame.contentDocument, view = frame.contentWindow;
    page.querySelectorAll("details").forEach(details => { details.open = true; });
    const root = page.documentElement, wide = [], contrast = {};
    for (const element of page.body.querySelectorAll("*")) {
      const box = element.getBoundingClientRect();
      if (box.width && box.right > root.clientWidth + 1 && !element.closest(".scroll, pre, svg"))
        wide.push(element.outerHTML.slice(0, 80));
      const text = [...element.childNodes].some(x => x.nodeType == 3 && x.textContent.trim());
      if (!text || !box.width) continue;
      const style = view.getComputedStyle(element);
      const color = element.closest("svg") ? style.fill : style.color;
      const pair = [luminance(color), luminance(behind(element, view))].sort((a, b) => a - b);
      const ratio = (pair[1] + 0.05) / (pair[0] + 0.05), kind = element.tagName.toLowerCase();
      contrast[kind] = Math.min(contrast[kind] || 99, ratio);
    }
    found[frame.dataset.name] = {
      client: root.clientWidth, scroll: root.scrollWidth, wide: wide, contrast: contrast,
      paper: luminance(view.getComputedStyle(page.body).backgroundColor),
      text: parseFloat(view.getComputedStyle(page.querySelector("p")).fontSize),
      tick: Math.min(...[...page.querySelectorAll("svg text")].map(
        x => x.getBoundingClientRect().height)),
      pictures: [...page.images].every(x => x.complete && x.naturalWidth > 0),
    };
  }
  document.body.innerHTML = "";
  document.body.textContent = "MEASURED" + JSON.stringify(found) + "MEASURED";
};
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Of a run and of a sweep."""
    caption = "a very long caption " * 12 + "without" * 30
    a_run = run.build(write(tmp_path_factory.mktemp("page") / "run", caption=caption))
    arms = {"base": {0: 0.1, 1: 0.2}, "a" + "long" * 30: {0: 0.3, 1: None}}
    a_sweep = write_sweep(tmp_path_factory.mktemp("sweep"), arms)
    write_report(a_sweep)
    return {"run": a_run, "sweep": (a_sweep / "report.html").read_text()}


@pytest.fixture(scope="module", params=["light", "dark"])
def measured(request, pages, tmp_path_factory):
    """(scheme, what was measured by page and width)."""
    folder = tmp_path_factory.mktemp("browser")
    frames = "".join(
        f'<iframe data-name="{name} {width}" style="width:{width}px;height:800px;border:0" '
        f'srcdoc="{html.escape(page)}"></iframe>'
        for name, page in pages.items()
        for width in WIDTHS
    )
    (folder / "measure.html").write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><script>{MEASURE}</script><body>{frames}'
    )
    command = [
        BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
        f"--user-data-dir={folder}/profile", "--window-size=1700,900", "--dump-dom",
        f"--blink-settings=preferredColorScheme={0 if request.param == 'dark' else 1}",
        f"file://{folder}/measure.html",
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    found = re.search(r"<body>MEASURED(.*)MEASURED</body>", done.stdout, re.DOTALL)
    assert found, done.stderr[-2000:]
    return request.param, json.loads(html.unescape(found[1]))


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_nothing_is_wider_than_the_screen(measured, name, width):
    found = measured[1][f"{name} {width}"]
    assert found["client"] == width
    assert found["scroll"] <= width and found["wide"] == []


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_every_text_can_be_read(measured, name, width):
    found = measured[1][f"{name} {width}"]
    kinds = {"p", "td", "text", "figcaption"} | ({"code"} if name == "run" else set())
    assert kinds - found["contrast"].keys() <= {"figcaption"}
    assert min(found["contrast"].values()) >= 4.5, found["contrast"]
    assert found["text"] >= 14 and found["tick"] >= 9  # pixels


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", PAGES)
def test_the_paper_is_that_of_the_scheme_and_pictures_are_there(measured, name, width):
    scheme, found = measured[0], measured[1][f"{name} {width}"]
    assert found["paper"] > 0.9 if scheme == "light" else found["paper"] < 0.05
    assert found["pictures"]
