"""Writes the different values of a field as JSON, for `label(FIELD, classes="classes.json")`.

  python -m data.classes photos/ --field=label --output=classes.json
  python -m data.classes '{"name": "tfds", "dataset": "emoji", "split": "seen", ...}' --field=label

Sorted, so that the order of a source does not matter. Write it once and use it everywhere: classes
are numbered by their place in it. `--most=3129` takes the most frequent ones alone.
"""

import argparse
import collections
import json
import os
import sys
from collections.abc import Sequence

import numpy as np

from data import files
from data.sources import BadExample, Feature, open_source, read_each
from data.sources.guess import parse_source
from mm.config import BadInput, suggest

_AT_ONCE = 1024  # records read
_TEXTS = (Feature("text"), Feature("text", ragged=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the flags, writes, says how many; returns 0, or 2 when the input was wrong."""
    parser = argparse.ArgumentParser(prog="python -m data.classes", allow_abbrev=False)
    parser.add_argument("source", help="a file, a folder, or a source as in a config")
    parser.add_argument("--field", required=True, help="of texts, or of lists of texts")
    parser.add_argument("--output", default="classes.json", help="the file; default: classes.json")
    parser.add_argument("--most", type=int, help="so many of the most frequent; default: all")
    flags = parser.parse_args(arguments)
    try:
        found = classes(flags.source, flags.field, flags.most)
        text = json.dumps(found, ensure_ascii=False, indent=0) + "\n"
        files.write(os.path.expanduser(flags.output), text.encode())
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(found):,} classes in {flags.output}")
    return 0


def classes(text: str, field: str, most: int | None = None) -> list[str]:
    """The different values of a field, sorted; the `most` frequent, each counted once an example.

    Raises BadInput where there is no such field.
    """
    if most is not None and most < 1:
        raise BadInput(f"--most={most}: expected at least 1")
    source = open_source(parse_source(text, "SOURCE"), "SOURCE")
    have = [name for name, feature in source.features.items() if feature in _TEXTS]
    if field not in have:
        raise BadInput(
            f"--field={field}: the source has no such texts{suggest(field, have)} (have {have})"
        )
    found: collections.Counter[str] = collections.Counter()
    for start in range(0, len(source), _AT_ONCE):
        ids = np.arange(start, min(start + _AT_ONCE, len(source)))
        for record in read_each(source, ids, (field,)):
            if not isinstance(record, BadExample):
                value = record[field]
                found.update({value} if isinstance(value, str) else {*value})
    if not found:
        raise BadInput(f"--field={field}: no example has a value")
    often = sorted(found, key=lambda value: (-found[value], value))  # of as many, by the alphabet
    return sorted(often[:most])


if __name__ == "__main__":
    sys.exit(main())
