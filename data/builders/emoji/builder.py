"""The TFDS builder of the `emoji` data set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import tensorflow_datasets as tfds

from data.builders.dataset import Dataset
from data.builders.emoji.catalogue import LANGUAGES, read_catalogue
from data.builders.emoji.icons import read_icon_set
from data.builders.emoji.selection import (
    OWN_NAMES,
    VALIDATION_VENDOR,
    VENDORS,
    Picture,
    Selection,
    report,
    select,
    vendor_ranges,
)
from data.builders.install import Packages, install
from data.builders.render import SIZE, png, svg
from mm.config import BadInput

HERE = Path(__file__).parent
# vendor -> author, licence (SPDX), licence text; compared with the packages' info.json.
LICENCES = {
    "noto": ("Google Inc", "Apache-2.0",
             "https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE"),
    "noto-v1": ("Google Inc", "Apache-2.0",
                "https://github.com/googlefonts/noto-emoji/blob/main/svg/LICENSE"),
    "fluent-emoji-flat": ("Microsoft Corporation", "MIT",
                          "https://github.com/microsoft/fluentui-emoji/blob/main/LICENSE"),
    "emojione": ("Emoji One", "CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
    "emojione-v1": ("Emoji One", "CC-BY-SA-4.0",
                    "https://creativecommons.org/licenses/by-sa/4.0/"),
    "fxemoji": ("Mozilla", "Apache-2.0", "https://mozilla.github.io/fxemoji/LICENSE.md"),
    "streamline-emojis": ("Streamline", "CC-BY-4.0",
                          "https://creativecommons.org/licenses/by/4.0/"),
    "twemoji": ("Twitter", "CC-BY-4.0", "https://creativecommons.org/licenses/by/4.0/"),
}  # fmt: skip
_EMOJIBASE_LICENCE = ("Miles Johnson", "MIT", "https://emojibase.dev")

_DESCRIPTION = f"""
Pictures of the same concepts (emoji without skin tones), drawn by eight vendors, {SIZE} x {SIZE}
pixels on white, with names, keywords, groups, and names in {len(LANGUAGES)} other languages.

`train` has seven vendors. `seen` and `unseen` have the eighth, {VALIDATION_VENDOR}: concepts that
`train` has, and about a tenth of all concepts that no vendor draws in `train`. Variants of one
concept (gender, direction, hair) are one `family` and fall on one side. Flags and skin tones are
only in `train`. `train` is sorted by vendor, and metadata.json has each vendor's range, so that
a training vendor can be held out as a slice; it also lists the icons that were not joined.

Licences:
""" + "\n".join(
    f"- {name}: {author}, {spdx}, {url}"
    for name, (author, spdx, url) in {**LICENCES, "names (emojibase)": _EMOJIBASE_LICENCE}.items()
)

_CITATION = "\n".join(
    f"@misc{{{name.replace('-', '_')}, author={{{author}}}, title={{{name}}}, "
    f"note={{npm package @iconify-json/{name}, {spdx}}}}}"
    for name, (author, spdx, _) in LICENCES.items()
)


class Emoji(Dataset):
    """Emoji of eight vendors with their names; see the description."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First version."}

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text()
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            citation=_CITATION,
            license="\n".join(f"{name}: {spdx}" for name, (_, spdx, _) in LICENCES.items()),
            homepage="https://icon-sets.iconify.design/?category=Emoji",
            features=tfds.features.FeaturesDict(
                {
                    "id": text,  # vendor/concept, and /2 for a vendor's second drawing of it
                    "image": tfds.features.Image(shape=(SIZE, SIZE, 3), encoding_format="png"),
                    "label": text,
                    "tags": tfds.features.Sequence(text),
                    "group": text,
                    "subgroup": text,
                    "concept": text,  # code points: the same for every vendor
                    "family": text,  # the same for variants of a concept
                    "vendor": text,
                    "labels": tfds.features.FeaturesDict(dict.fromkeys(LANGUAGES, text)),
                }
            ),  # fmt: skip
            disable_shuffling=True,  # keeps the order by vendor
            metadata=tfds.core.MetadataDict(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager):
        packages = install(Path(dl_manager.download_dir) / "emoji", HERE, self.log)
        selection = selected(packages)
        for line in report(selection):
            self.log(f"emoji: {line}")
        self.info.metadata.update(
            vendor_ranges={"train": vendor_ranges(selection.splits["train"])},
            not_joined={vendor: joined.unmatched for vendor, joined in selection.joined.items()},
        )
        self.log("emoji: every icon that was not joined is listed in metadata.json")
        return {name: self._generate_examples(p) for name, p in selection.splits.items()}

    def _generate_examples(self, pictures: list[Picture]) -> Iterator[tuple[int, dict]]:
        for position, picture in enumerate(pictures):
            concept = picture.concept
            yield (
                position,
                {
                    "id": picture.id,
                    "image": png(svg(picture.icon), picture.id),
                    "label": concept.label,
                    "tags": list(concept.tags),
                    "group": concept.group,
                    "subgroup": concept.subgroup,
                    "concept": concept.code,
                    "family": concept.family,
                    "vendor": picture.vendor,
                    "labels": dict(concept.labels),
                },
            )


def selected(packages: Packages) -> Selection:
    """What is drawn of the packages. Raises BadInput when one is damaged or has another licence."""
    check_licences(packages)
    icon_sets = {vendor: read_icon_set(packages, f"@iconify-json/{vendor}") for vendor in VENDORS}
    catalogue = read_catalogue(lambda file: packages.read("emojibase-data", file))
    return select(catalogue, icon_sets, OWN_NAMES)


def check_licences(packages: Packages) -> None:
    """Raises BadInput if a package's info.json and the description name different licences."""
    for vendor, (author, spdx, url) in LICENCES.items():
        package = f"@iconify-json/{vendor}"
        info = packages.read(package, "info.json")
        try:
            found = (info["author"]["name"], info["license"]["spdx"], info["license"]["url"])
        except (KeyError, TypeError) as error:
            raise BadInput(
                f"emoji: package {package} is damaged: {error!r} in info.json"
            ) from error
        if found != (author, spdx, url):
            raise BadInput(
                f"emoji: the licence of {package} is {found}, expected "
                f"{(author, spdx, url)}; correct LICENCES in {__file__}"
            )
