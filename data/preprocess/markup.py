"""Takes the text out of HTML, by the standard library's parser."""

import html.parser

from data.sources import BadExample

# Tags inside of words and sentences leave nothing behind, others a space.
_INLINE = frozenset(
    "a abbr b bdi bdo big cite code em font i mark q s small span strong sub sup u".split()
)
_UNSEEN = frozenset(("script", "style"))
# The parser may look at the rest of the text at each "<": 0.7 s for this many steps.
_MOST_STEPS = 30_000_000


def strip(text: str) -> str:
    """Without tags, comments, scripts and styles, with entities resolved.

    Raises BadExample for a text that has so many tags for its length that it is none.
    """
    count = text.count("<")
    if count * len(text) > _MOST_STEPS:
        raise BadExample(f"has {count:,} tags in {len(text):,} characters", "text is all markup")
    parser = _Parser()
    # HTML takes "<![" for the start of a comment, as it does "<!"; older Pythons raise.
    parser.feed(text.replace("<![", "<! ["))
    parser.close()
    return "".join(parser.found)


class _Parser(html.parser.HTMLParser):
    """Collects what a reader sees."""

    def __init__(self):
        super().__init__(convert_charrefs=True)
        self.found: list[str] = []
        self._unseen = False

    def handle_starttag(self, tag: str, attrs: list) -> None:
        self._unseen = tag in _UNSEEN
        self._space(tag)

    def handle_endtag(self, tag: str) -> None:
        self._unseen = False
        self._space(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self._space(tag)

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.found.append(data)

    def _space(self, tag: str) -> None:
        if tag not in _INLINE:
            self.found.append(" ")
