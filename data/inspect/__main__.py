"""Shows what is in a source: fields, sizes, captions, what is broken, and a sheet of pictures.

  python -m data.inspect pairs.jsonl --sheet=sheet.png
  python -m data.inspect '{"name": "tfds", "dataset": "emoji", "split": "train", ...}'

Looks at 1,000 examples spread over all of it, or as many as --num_examples says (0: all); writes
nothing but the sheet.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from mm.config import BadInput


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the flags, prints; returns 0, or 2 when the input was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m data.inspect",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", help="a file, a folder, or a source as in a config")
    parser.add_argument("--num_examples", type=int, default=1000, help="how many; 0 is all")
    parser.add_argument("--seed", type=int, default=0, help="another draws other examples")
    parser.add_argument("--image_key", help="the pictures' field; default: the first there is")
    parser.add_argument("--caption_key", help="the captions' field; default: the likeliest")
    parser.add_argument("--tokenizer", help="a tokenizer.json: counts tokens, too")
    parser.add_argument("--sheet", help="writes some pictures with their captions here, a .png")
    parser.add_argument("--num_threads", type=int, default=os.cpu_count(), help="that read")
    flags = parser.parse_args(arguments)
    try:
        print(_inspected(flags))
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _inspected(flags: argparse.Namespace) -> str:
    """The whole text; draws the sheet."""
    for name, least in (("num_examples", 0), ("num_threads", 1)):
        if getattr(flags, name) < least:
            raise BadInput(f"--{name}={getattr(flags, name)}: expected at least {least}")
    if flags.sheet and not flags.sheet.endswith(".png"):
        raise BadInput(f"--sheet={flags.sheet}: expected a file that ends in .png")
    from data.inspect.examine import choose_fields, examine, sample
    from data.inspect.sheet import draw
    from data.inspect.text import describe
    from data.sources import open_source
    from data.sources.guess import parse_source

    image = flags.image_key
    spec = parse_source(flags.source, "SOURCE", **({"image_key": image} if image else {}))
    source = open_source(spec, "SOURCE")
    if spec.get("image_key") == image:  # that column is the field `image`
        image = None
    fields = choose_fields(source.features, image, flags.caption_key)
    ids = sample(len(source), flags.num_examples, flags.seed)
    found = examine(source, ids, fields, flags.num_threads, flags.tokenizer)
    lines = describe(spec, source, fields, found)
    if flags.sheet:
        if fields.image is None:
            raise BadInput(f"--sheet={flags.sheet}: the source has no pictures")
        sheet = draw(source, ids, fields)
        try:
            sheet.save(flags.sheet)
        except OSError as error:
            raise BadInput(
                f"--sheet={flags.sheet}: cannot be written ({error.strerror})"
            ) from error
        lines += ["", f"sheet of pictures: {flags.sheet}"]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
