"""Installs the icon sets and says what is in them: `python -m data.builders.icons`."""

import argparse
import sys

from data.builders.icons import DATASETS, HERE, PACKAGE, cache, source
from data.builders.install import install
from data.sources.iconify import iconify
from mm.config import BadInput


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m data.builders.icons", description=__doc__)
    parser.add_argument("--data_dir", default=".data", help="where data sets are kept: %(default)s")
    data_dir = parser.parse_args(arguments).data_dir
    try:
        install(cache(data_dir), HERE).check(PACKAGE)
        for line in report(data_dir):
            print(line)
    except BadInput as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def report(data_dir: str) -> list[str]:
    """What is in each split, what is in none, and the commands that prepare them."""
    lines, commands = [f"{'split':<14}{'icons':>9}{'sets':>6}"], []
    for split, (dataset, _) in DATASETS.items():
        spec = source(split, data_dir)
        del spec["name"]
        icons = iconify(**spec)
        lines.append(f"{split:<14}{len(icons):>9,}{len(icons.shards):>6}")
        lines += [
            f"    {count:>9,}      left out: {reason}"
            for reason, count in icons.left_out.most_common()
            if split == "train" or not reason.startswith(("license", "set"))
        ]
        argument = f"data/builders/icons/prepare.py:split={split},data_dir={data_dir}"
        commands.append(
            f"  python -m data.prepare --config={argument} --output={data_dir}/{dataset}"
        )
    tokenizer = f"  python -m data.tokenizers.train --dataset=icons --data_dir={data_dir}"
    return [*lines, "prepare them with", *commands, tokenizer]


if __name__ == "__main__":
    sys.exit(main())
