"""Prepares the `emoji` data set: `python -m data.builders.emoji --data_dir=.data`."""

import argparse
import sys

from data.builders.emoji.preparation import prepare
from mm.config import BadInput


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m data.builders.emoji", description=__doc__)
    parser.add_argument(
        "--data_dir",
        help="where data sets are kept; default: $TFDS_DATA_DIR, else ~/tensorflow_datasets",
    )
    try:
        prepare(parser.parse_args().data_dir)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
