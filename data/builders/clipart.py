"""The TFDS builder of the `openclipart` data set, from Debian's package openclipart-svg.

Drawings of the Open Clip Art Library, SVG with titles, keywords and authors in their metadata.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

import tensorflow_datasets as tfds

from data.builders.dataset import Dataset
from data.builders.holdout import held_out
from data.builders.icons.names import concept
from data.builders.render import SIZE, png, svg
from data.sources import BadExample
from mm.config import BadInput

PACKAGE = "openclipart-svg"
_INSIDE = "usr/share/openclipart/svg"  # of the package
_DC = "{http://purl.org/dc/elements/1.1/}"
_PUBLIC_DOMAIN = re.compile("public-?domain", re.I)
# A title that more drawings have is that of a collection: "Lemon SVG theme", "Various Cliparts".
_SAME_TITLE = 8
_SIGNED = re.compile(r"clip ?art by [\w ]+ - ", re.I)
_NO_KEYWORDS = ("hash", "unsorted")  # left by the tools that wrote the metadata
_LENGTH = re.compile(r"\s*(\d+\.?\d*|\.\d+)\s*(px|pt|pc|mm|cm|in)?\s*")
_PIXELS = {"px": 1, "pt": 4 / 3, "pc": 16, "mm": 96 / 25.4, "cm": 96 / 2.54, "in": 96, None: 1}
_BLANK = png(svg({"body": "", "width": 1, "height": 1}), "nothing")


class Openclipart(Dataset):
    """Drawings with titles and keywords; see the description."""

    VERSION = tfds.core.Version("1.0.0")

    def __init__(self, *, path: str | None = None, **kwargs):
        """path: the folder of drawings, or that of the unpacked package; None: it is got."""
        self.path = path
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"Drawings of the Open Clip Art Library, {SIZE} x {SIZE} pixels on white, "
            f"from Debian's package {PACKAGE}: title (label), keywords (tags), author, the folder "
            "that they lie in (category). `held_out` has a tenth of the titles, none in `train`. "
            "Left out are drawings whose title is that of a collection, or that are not dedicated "
            "to the public domain by their own metadata. Licence: public domain.",
            license="public domain (Creative Commons Public Domain Dedication)",
            homepage="https://openclipart.org",
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": text,
                    "tags": tfds.features.Sequence(text),
                    "concept": text,  # the words of the title, sorted
                    "category": text,
                    "author": text,
                    "name": text,  # the file
                }
            ),
            disable_shuffling=True,
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        folder = Path(self.path or unpacked(Path(dl_manager.download_dir) / PACKAGE, self.log))
        clips, left_out = read_folder(folder)
        found: dict[bytes, dict] = {}  # a drawing comes under several titles, on both sides
        for clip in clips:
            try:
                example = clip.example()
            except BadExample as error:
                left_out[error.reason] += 1
                continue
            if found.setdefault(example["image"], example) is not example:
                left_out["same picture as another"] += 1
        examples = list(found.values())
        for reason, count in left_out.most_common():
            self.log(f"openclipart: left out {count:,}: {reason}")
        self.info.metadata.update(left_out=dict(left_out))
        splits: dict[str, list] = {"train": [], "held_out": []}
        for example in examples:
            splits["held_out" if held_out(example["concept"]) else "train"].append(example)
        for name, part in splits.items():
            if not part:
                raise BadInput(f"{folder}: {len(examples)} drawings are left, none for {name}")
        return {name: self._generate_examples(part) for name, part in splits.items()}

    def _generate_examples(self, examples: list[dict]) -> Iterator[tuple[int, dict]]:
        yield from enumerate(examples)


class Clip(NamedTuple):
    """A drawing and what its metadata say."""

    name: str
    title: str
    keywords: tuple[str, ...]
    author: str
    root: ElementTree.Element

    def example(self) -> dict:
        """Raises BadExample if it cannot be drawn, or is all white."""
        picture = png(square(self.root), self.name)
        if picture == _BLANK:
            raise BadExample(f"the picture {self.name} is all white", "picture is all white")
        return {
            "image": picture,
            "label": self.title,
            "tags": list(self.keywords),
            "concept": concept(self.title),
            "category": self.name.partition("/")[0],
            "author": self.author,
            "name": self.name,
        }


def read_folder(path: Path) -> tuple[list[Clip], Counter[str]]:
    """The drawings in a folder, by name, and how many were left out for what reason.

    Raises BadInput where there is none.
    """
    root = path / _INSIDE if (path / _INSIDE).is_dir() else path
    paths = [one for one in sorted(root.rglob("*.svg")) if not one.is_symlink()]
    if not paths:
        raise BadInput(f"{path}: has no SVG in it; expected the unpacked package {PACKAGE}")
    left_out: Counter[str] = Counter()
    clips = []
    for one in paths:
        found = _read(one, str(one.relative_to(root)))
        if isinstance(found, Clip):
            clips.append(found)
        else:
            left_out[found] += 1
    titles = Counter(clip.title.lower() for clip in clips)
    kept = [clip for clip in clips if titles[clip.title.lower()] <= _SAME_TITLE]
    left_out[f"title of more than {_SAME_TITLE} drawings"] += len(clips) - len(kept)
    return kept, +left_out


def _read(path: Path, name: str) -> Clip | str:
    """A drawing, or why it is none that can be taken."""
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except ElementTree.ParseError:
        return "file is no XML"
    work = next((node for node in root.iter() if node.tag.endswith("}Work")), None)
    if work is None:
        return "no metadata"
    licences = [node for node in work if node.tag.endswith("}license")]
    if not any(_PUBLIC_DOMAIN.search(value) for one in licences for value in one.attrib.values()):
        return "not said to be in the public domain"
    title = _SIGNED.sub("", _text(work.find(f"{_DC}title")).replace("_", " ")).strip()
    if not concept(title):
        return "no title"
    keywords = [_text(node) for node in work.iter() if node.tag.endswith("}li")]
    keywords = [word.lower().replace("_", " ") for word in keywords if word]
    author = _text(work.find(f"{_DC}creator//{_DC}title"))
    kept = dict.fromkeys(word for word in keywords if word not in _NO_KEYWORDS)
    return Clip(name, title, tuple(kept), author, root)


def _text(node: ElementTree.Element | None) -> str:
    return " ".join((node.text or "").split()) if node is not None else ""


def square(root: ElementTree.Element) -> str:
    """The document, scaled to SIZE x SIZE pixels with its ratio kept, in the middle."""
    sides = [_pixels(root.get(side, "")) for side in ("width", "height")]
    if "viewBox" not in root.attrib and all(sides):
        root.set("viewBox", "0 0 {:g} {:g}".format(*sides))
    root.attrib.pop("preserveAspectRatio", None)
    root.set("width", str(SIZE))
    root.set("height", str(SIZE))
    return ElementTree.tostring(root, encoding="unicode")


def _pixels(length: str) -> float | None:
    """Of "2in", 192; None for what depends on the page, as "100%"."""
    found = _LENGTH.fullmatch(length)
    return float(found[1]) * _PIXELS[found[2]] if found else None


def unpacked(folder: Path, log: Callable[[str], None] = print) -> Path:
    """Where the package of Debian is, got by apt-get and unpacked unless it is there.

    Raises BadInput where that cannot be done.
    """
    if folder.exists():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    log(f"openclipart: getting Debian's package {PACKAGE}")
    work = Path(tempfile.mkdtemp(prefix="incomplete.", dir=folder.parent))
    try:
        _run(["apt-get", "download", PACKAGE], work)
        (archive,) = work.glob("*.deb")
        _run(["dpkg-deb", "--extract", archive.name, "all"], work)
        (work / "all").rename(folder)
    finally:
        shutil.rmtree(work)
    return folder


def _run(command: list[str], folder: Path) -> None:
    instead = f"unpack {PACKAGE} of Debian yourself and give --path"
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except OSError as error:
        raise BadInput(f"openclipart: cannot start {command[0]} ({error}); {instead}") from error
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise BadInput(f"openclipart: {' '.join(command)} failed ({last}); {instead}")
