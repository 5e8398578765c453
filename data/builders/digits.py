"""Prepares the `digits` data set: 1,797 handwritten digits from scikit-learn.

`python -m data.builders.digits --data_dir=.data`
"""

import sys

from data.builders.preparation import main

if __name__ == "__main__":
    sys.exit(main("digits", "data.builders.handwritten:Digits", __doc__))
