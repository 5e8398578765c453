"""Pictures with several captions each: the files of COCO, of Karpathy's splits and of Flickr30k.

In memory are the names of pictures and the captions, each as long as its UTF-8 and 8 bytes: about
500 bytes a picture of COCO's, with five captions. Pictures are read when they are asked for.
"""

import collections
import json
import logging
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from data import files
from data.sources import Source
from data.sources.arrow import Groups, lists, strings
from data.sources.table import open_table
from mm import registry
from mm.config import BadInput, suggest

_FLICKR = re.compile(r"(?P<name>[^#|]+)(?:#\d+\t|\| *\d+\| *)(?P<caption>.*)")
_FLICKR_HEADER = "image_name| comment_number| comment"
_FLICKR_FOLDERS = ("flickr30k-images", "flickr30k_images")

log = logging.getLogger(__name__)


class _Picture(NamedTuple):
    path: str  # in the folder of pictures
    captions: Sequence[str | None]
    number: int | None


@registry.register("source", "coco")
def coco(
    *,
    path: str,
    images: str | None = None,
    split: str | None = None,
    each_caption: bool = False,
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """One example a picture: `image`, `captions` (all), `caption` (the first), `file_name` and
    `image_id`, from the share `first` of all to `last`, in the order of the file.

    path: captions_*.json as COCO has them (Chen et al. 2015), or a dataset_*.json of Karpathy and
    Fei-Fei (2015), of whose splits `split` names one, or several as in "train+restval". images: the
    folder of pictures; None is where COCO puts them, train2017/ beside annotations/, or the file's
    own folder. each_caption: one example a caption instead, as R@K is defined by (`retrieval` with
    image_id="image_id"), without `captions`. Pictures without a caption are left out, with a note
    of how many. Raises BadInput when the file, the folder or the split is not there.
    """
    path = os.path.expanduser(path)
    found = _json(path)
    try:
        if "annotations" in found:
            if split is not None:
                raise BadInput(f"{path}: has no splits; leave split={split!r} out")
            pictures = _annotated(path, found)
        else:
            pictures = _karpathy(path, found, split)
    except (KeyError, TypeError, AttributeError) as error:
        raise BadInput(
            f"{path}: is no file of captions as COCO or Karpathy write it ({error!r})"
        ) from error
    return _source(path, pictures, images or _beside(path), each_caption, first, last)


@registry.register("source", "flickr30k")
def flickr30k(
    *,
    path: str,
    images: str | None = None,
    each_caption: bool = False,
    first: float = 0.0,
    last: float = 1.0,
) -> Source:
    """As `coco`, without `image_id` (take `file_name`), of Flickr30k (Young et al. 2014).

    path: results_20130124.token, its lines "1.jpg#0<tab>A dog .", or Kaggle's results.csv, its
    lines "1.jpg| 0| A dog .". images: the folder of pictures; None is flickr30k-images/ or
    flickr30k_images/ beside the file.
    """
    path = os.path.expanduser(path)
    captions: dict[str, list[str]] = collections.defaultdict(list)
    try:
        lines = files.read(path).decode("utf-8-sig").replace("\r\n", "\n").split("\n")
    except UnicodeDecodeError as error:
        raise BadInput(f"{path}: is no UTF-8 ({error.reason} at byte {error.start})") from error
    found = [_FLICKR.fullmatch(line) for line in lines if line and line != _FLICKR_HEADER]
    for match in filter(None, found):
        captions[match["name"]].append(match["caption"])
    if not captions:
        raise BadInput(f"{path}: has no line as Flickr30k's files have, '1.jpg#0\\tA dog .'")
    if broken := len(found) - sum(map(len, captions.values())):
        log.warning("%s: %d lines are no captions and left out", path, broken)
    pictures = [_Picture(name, texts, None) for name, texts in captions.items()]
    beside = [files.join(files.parent(path), name) for name in _FLICKR_FOLDERS]
    return _source(path, pictures, images or _first_folder(beside), each_caption, first, last)


def _source(
    path: str,
    pictures: Sequence[_Picture],
    folder: str,
    each_caption: bool,
    first: float,
    last: float,
) -> Source:
    folder = os.path.expanduser(folder)
    if not files.is_remote(folder) and not os.path.isdir(folder):
        raise BadInput(f"{path}: no folder of pictures {folder}; set images to where they are")
    kept = [picture for picture in pictures if picture.captions]
    if len(kept) < len(pictures):
        without = len(pictures) - len(kept)
        log.warning(
            "%s: %d of %d pictures have no caption and are left out", path, without, len(pictures)
        )
    if not kept:
        raise BadInput(f"{path}: has no picture with a caption")
    if each_caption:
        kept = [picture._replace(captions=[text]) for picture in kept for text in picture.captions]
    names = strings(picture.path for picture in kept)
    columns = {
        "image": names,
        "file_name": names,
        "caption": strings(picture.captions[0] for picture in kept),
    }
    if not each_caption:
        columns["captions"] = lists([picture.captions for picture in kept])
    if kept[0].number is not None:
        columns["image_id"] = pa.array([picture.number for picture in kept], pa.int64())
    table = pa.table(columns)
    rows = Groups(table.schema, [len(kept)], lambda *_: table, [path], lambda _: folder)
    return open_table(rows, image_key="image", caption_key="caption", first=first, last=last)


def _annotated(path: str, found: Mapping[str, Any]) -> list[_Picture]:
    """COCO's own layout: a list of pictures and one of captions."""
    captions: dict[int, list[str]] = {image["id"]: [] for image in found["images"]}
    lost = 0
    for annotation in found["annotations"]:
        texts = captions.get(annotation["image_id"])
        if texts is None:
            lost += 1
        else:
            texts.append(annotation["caption"])
    if lost:
        log.warning("%s: %d captions are of no picture in it", path, lost)
    return [_Picture(i["file_name"], captions[i["id"]], i["id"]) for i in found["images"]]


def _karpathy(path: str, found: Mapping[str, Any], split: str | None) -> list[_Picture]:
    """Karpathy's layout: captions within the pictures, each of which is in a split."""
    have = sorted({image["split"] for image in found["images"]})
    wanted = have if split is None else split.split("+")
    if unknown := next((name for name in wanted if name not in have), None):
        raise BadInput(
            f"{path}: split={split!r}: no split {unknown!r}{suggest(unknown, have)} (have {have})"
        )
    return [
        _Picture(
            "/".join(filter(None, (image.get("filepath"), image["filename"]))),
            [sentence["raw"] for sentence in image["sentences"]],
            image.get("cocoid", image["imgid"]),
        )
        for image in found["images"]
        if image["split"] in wanted
    ]


def _json(path: str) -> Mapping[str, Any]:
    try:
        found = json.loads(files.read(path))
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path}: is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path}: is no JSON object, as files of captions are")
    return found


def _beside(path: str) -> str:
    """Where COCO puts pictures: of annotations/captions_train2017.json, train2017/."""
    folder = files.parent(path)
    name = os.path.basename(path).removesuffix(".json").partition("captions_")[2]
    return files.join(files.parent(folder), name) if name else folder


def _first_folder(folders: Sequence[str]) -> str:
    return next((folder for folder in folders if os.path.isdir(folder)), folders[0])
