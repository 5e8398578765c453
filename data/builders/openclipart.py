"""Prepares the `openclipart` data set: clip art with titles and keywords, in the public domain.

`python -m data.builders.openclipart --data_dir=.data` gets Debian's package openclipart-svg by
apt-get and unpacks it; nothing is installed. `--path` is for where that cannot be done.
"""

import sys

from data.builders.preparation import main

PATH = dict(help="the unpacked package, or /usr/share/openclipart/svg; default: it is downloaded")

if __name__ == "__main__":
    sys.exit(main("openclipart", "data.builders.clipart:Openclipart", __doc__, path=PATH))
