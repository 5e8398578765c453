"""Prepares a data set: drops what is broken, bad or twice there, and writes shards and a report.

  python -m data.prepare --config=configs/prepare.py:pairs.jsonl --output=/data/pairs

reads any source and writes into the folder --output, nowhere else, a data set of TFDS (ArrayRecord)
or WebDataset (tar), with manifest.json, report.json and report.md. Every key of the config can be
set: `--config.rules.size.min_side=64`. A killed run, started again, goes on where it was.

Runs in threads of this process, as many as there are cores, unless Apache Beam's own flags say
otherwise: --runner=DataflowRunner --project=...; any flag of Beam's may be given.
"""

import argparse
import os
import sys
from collections.abc import Sequence

from command_line import split_overrides
from mm.config import BadInput, load, override, plain


def main(arguments: Sequence[str] | None = None) -> int:
    """Parses the flags, prepares; returns 0, or 2 when the input was wrong."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help="configs/NAME.py or configs/NAME.py:ARG")
    parser.add_argument("--output", required=True, help="the folder of the new data set")
    parser.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="set any key, as --config.caption_key=text"
    )
    overrides, rest = split_overrides(sys.argv[1:] if arguments is None else arguments)
    flags, beam_flags = parser.parse_known_args(rest)
    try:
        from data.prepare.run import prepare

        config = load(flags.config)
        override(config, overrides)
        prepare(plain(config), os.path.expanduser(flags.output), beam_flags)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
