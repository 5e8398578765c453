"""Pictures beside files of JSON lines: {"image": "photos/1.jpg", "caption": "a red bicycle"}.

One object a line. A picture's path is relative to the file's folder, absolute, or remote. In memory
is only where each line begins, 8 bytes a line; lines and pictures are read when they are asked for.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from data import files
from data.sources import BadExample, Source
from data.sources.lines import Lines
from data.sources.table import feature_of, open_table
from mm import registry
from mm.config import BadInput


@registry.register("source", "jsonl")
def jsonl(
    *,
    path: str | Sequence[str],
    image_key: str | None = "image",
    caption_key: str | None = "caption",
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """The lines from the share `first` of all to the share `last`, as in last=0.99.

    first=0.99 then is the rest: no line is in both. Lines are taken in the files' order, so those
    that are sorted have to be shuffled before. path: files, or patterns such as "pairs/*.jsonl" or
    "{000..099}.jsonl". image_key, caption_key: the fields that become `image` (a picture's path)
    and `caption`; image_key=None: there are no pictures. The first line tells what the fields are:
    texts, lists of texts, numbers and lists of as many numbers; others are left out. Raises
    BadInput when a file or the share is empty or the first line is broken.
    """
    rows = _Json(files.expand(path))
    given = dict(image_key=image_key, caption_key=caption_key, first=first, last=last)
    return open_table(rows, **given)


class _Json(Lines):
    def __init__(self, paths: Sequence[str]):
        super().__init__(paths, "one JSON object a line")
        try:
            self.columns = {key: feature_of(value) for key, value in self.row(0).items()}
        except BadExample as error:
            raise BadInput(f"{error}; the first line tells what the fields are") from error

    def row(self, index: int, columns: Sequence[str] = ()) -> Mapping[str, Any]:
        text = self.text(index)
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            message = f"{self.where(index)}: is no JSON ({error})"
            raise BadExample(message, "line is no JSON") from error
        if not isinstance(record, dict):
            message = f'{self.where(index)}: is no object; expected {{"field": value, ...}}'
            raise BadExample(message, "line is no JSON")
        return record
