"""Prepares the `emoji` data set: `python -m data.builders.emoji --data_dir=.data`."""

import sys

from data.builders.preparation import main

if __name__ == "__main__":
    sys.exit(main("emoji", "data.builders.emoji.builder:Emoji", __doc__))
