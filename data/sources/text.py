"""Plain text, one example a line.

In memory is only where each line begins, 8 bytes a line; lines are read when they are asked for.
"""

from collections.abc import Mapping, Sequence

from data import files
from data.sources import Feature, Source
from data.sources.lines import Lines
from data.sources.table import open_table
from mm import registry


@registry.register("source", "text")
def text(*, path: str | Sequence[str], first: float = 0.0, last: float = 1.0) -> Source:
    """`text`: the lines that are not blank, from the share `first` to `last`, as in `jsonl`.

    path: files or patterns. Raises BadInput when a file is not there or all are empty.
    """
    return open_table(_Text(files.expand(path), "one text a line"), first=first, last=last)


class _Text(Lines):
    columns = {"text": Feature("text")}

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, str]:
        return {"text": self.text(index).rstrip("\r\n")}
