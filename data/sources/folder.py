"""Pictures in folders: by class as ImageNet has them, with a file of labels, or beside captions.

In memory are the names, each as long as its UTF-8 and 8 bytes, and 4 bytes for the class; pictures
and captions are read when they are asked for.
"""

import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from data import files
from data.sources import BadExample, Feature, Source
from data.sources.arrow import Groups, strings
from data.sources.imagenet import read_labels
from data.sources.table import open_table
from mm import registry
from mm.config import BadInput

_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp")

log = logging.getLogger(__name__)


@registry.register("source", "folder")
def folder(
    *, path: str, labels: str | None = None, first: float = 0.0, last: float = 1.0
) -> Source:
    """`image` and `file_name`, sorted by name, from the share `first` of all to `last`.

    And `label` if every picture is in a subfolder of `path`: the name of the first one on the way
    to it; and `caption` if there is a .txt beside any, of the same name: the text in it. Names that
    begin with a dot are left out. labels: a file that says the label of each instead, as that of
    ImageNet's validation, whose pictures are in one folder: see `data.sources.imagenet`. Raises
    BadInput when there is no picture, or one has no label in the file.
    """
    names = files.walk(path)
    pictures = [name for name in names if name.lower().endswith(_ENDINGS)]
    if not pictures:
        raise BadInput(f"{path}: has no picture among {len(names):,} files ({', '.join(_ENDINGS)})")
    texts = {name for name in names if name.endswith(".txt")}
    log.info("%s: %d pictures among %d files", path, len(pictures), len(names))
    captioned = any(_text_name(name) in texts for name in pictures)
    if labels is not None:
        of_each = read_labels(labels, pictures)
    else:
        in_folders = all("/" in name for name in pictures)
        of_each = [name.partition("/")[0] for name in pictures] if in_folders else None
    rows = _Pictures(os.path.expanduser(path), pictures, of_each, captioned)
    return open_table(rows, image_key="image", first=first, last=last)


class _Pictures(Groups):
    def __init__(
        self, path: str, names: Sequence[str], labels: Sequence[str] | None, captioned: bool
    ):
        column = strings(names)
        columns = {"image": column, "file_name": column}
        if labels is not None:
            columns["label"] = strings(labels).dictionary_encode()
        table = pa.table(columns)
        super().__init__(table.schema, [len(names)], lambda *_: table, [path], lambda _: path)
        if captioned:
            self.columns["caption"] = Feature("text")
        self._path = path

    def row(self, index: int, columns: Sequence[str]) -> Mapping[str, Any]:
        stored = super().row(index, [name for name in {*columns, "image"} if name != "caption"])
        return (
            stored | {"caption": self._caption(stored["image"])} if "caption" in columns else stored
        )

    def where(self, index: int) -> str:
        return files.join(self._path, self._name_of(index))

    def _name_of(self, index: int) -> str:
        return super().row(index, ("image",))["image"]

    def _caption(self, name: str) -> str:
        text = files.join(self._path, _text_name(name))
        try:
            return files.read(text).decode().rstrip("\r\n")
        except files.MissingError as error:
            raise BadExample(f"caption is missing: {error}", "field is missing") from error
        except UnicodeDecodeError as error:
            message = f"{text}: is no UTF-8 ({error.reason} at byte {error.start})"
            raise BadExample(message, "text is no UTF-8") from error


def _text_name(picture: str) -> str:
    return os.path.splitext(picture)[0] + ".txt"
