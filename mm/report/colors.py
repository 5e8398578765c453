"""The colours of a page and its charts, on light and on dark paper."""

# Each name is a custom property of the page, `--ink`. Text has a contrast of 4.5 to the paper in
# both (WCAG 2, level AA), lines of 3.
LIGHT = {
    "paper": "#ffffff",
    "sheet": "#f4f6f8",  # behind tables and boxes
    "ink": "#1b1f24",
    "quiet": "#59636e",
    "rule": "#d5dae0",
    "link": "#0b57a4",
    "right": "#1a7d3c",
    "wrong": "#c92a2a",
}
DARK = {
    "paper": "#14171a",
    "sheet": "#1e2227",
    "ink": "#e6e8ea",
    "quiet": "#a0a9b3",
    "rule": "#3a414a",
    "link": "#8ec2f5",
    "right": "#5fd083",
    "wrong": "#ff8787",
}
# Of lines in a chart, the first for the first: `--line-0`.
SERIES_LIGHT = (
    "#1f6fb4", "#c2570c", "#2b8a3e", "#c92a2b", "#7048b8", "#8a5a2b", "#c2408a", "#5f6770",
)  # fmt: skip
SERIES_DARK = (
    "#74b3f0", "#ffa25c", "#69c97d", "#ff8788", "#b197fc", "#d2a679", "#f58ac2", "#aab2bb",
)  # fmt: skip
LIGHT |= {f"line-{i}": color for i, color in enumerate(SERIES_LIGHT)}
DARK |= {f"line-{i}": color for i, color in enumerate(SERIES_DARK)}
