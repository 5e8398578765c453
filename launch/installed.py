"""Ends the program with one line where the packages are not installed.

To be imported before all that needs them.
"""

import importlib.util
import sys

if missing := [name for name in ("jax", "ml_collections") if not importlib.util.find_spec(name)]:
    print(
        f"error: {sys.executable} has no {missing[0]}: activate the environment, as "
        "`. .venv/bin/activate` (`make quickstart` makes it)",
        file=sys.stderr,
    )
    sys.exit(2)
