import re
import subprocess
import sys

from mm.report import html
from mm.report.colors import DARK, LIGHT

HOSTILE = '<script>alert("1")</script>'


def test_no_builder_lets_markup_through():
    built = html.join(
        [
            HOSTILE,
            html.paragraph(HOSTILE),
            html.table([[HOSTILE]], [HOSTILE], HOSTILE),
            html.facts({HOSTILE: HOSTILE}),
            html.tiles({HOSTILE: HOSTILE}),
            html.picture(b"", HOSTILE, caption=HOSTILE),
            html.details(HOSTILE, HOSTILE),
            html.preformatted(HOSTILE),
        ]
    )
    page = html.page(HOSTILE, [(HOSTILE, built)], below=HOSTILE)
    assert "<script" not in page and '"1"' not in page
    assert page.count("&lt;script&gt;") == 18


def test_markup_goes_in_as_it_is():
    assert html.paragraph(html.element("b", "a & b")) == "<p><b>a &amp; b</b></p>"


def test_a_page_is_one_file_without_scripts_or_addresses():
    page = html.page("title", [("one", html.picture(b"\x89PNG", "a picture")), ("two", "text")])
    assert not re.search(r"<script|<link|@import|https?:", page)
    assert set(re.findall(r'(?:src|href)="([^:"]*)', page)) == {"data", "#section-0", "#section-1"}
    assert 'id="section-1"' in page and "width=device-width" in page


def test_numbers_stand_to_the_right_and_words_do_not():
    table = html.table([["a", "12.3%", "1e-3"], ["b", "1,479", ""]], ["name", "share", "rate"])
    assert table.count('<td class="number">') == 4 and table.count('<th class="number">') == 2


def test_both_palettes_name_the_same_colors_and_are_readable():
    assert LIGHT.keys() == DARK.keys()
    for colors in (LIGHT, DARK):
        for name in set(colors) - {"paper", "sheet", "rule"}:
            for behind in ("paper", "sheet"):
                wanted = 3.0 if name.startswith("line-") else 4.5
                found = contrast(colors[name], colors[behind])
                assert found >= wanted, (name, behind, found)


def contrast(one: str, other: str) -> float:
    """That of WCAG 2.1, 1 to 21."""

    def luminance(color: str) -> float:
        parts = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_report_loads_no_jax():
    code = (
        "import pkgutil, importlib, sys, mm.report\n"
        "for found in pkgutil.iter_modules(mm.report.__path__, 'mm.report.'):\n"
        "    importlib.import_module(found.name)\n"
        "print({'jax', 'tensorflow', 'matplotlib.pyplot'} & sys.modules.keys() or 'none')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.stdout.strip() == "none", run.stderr
