"""The command line of main.py, which launchers read, too.

Standard library alone, and nothing of mm: importing that sets XLA_FLAGS.
"""

import argparse
from collections.abc import Sequence

MODES = ("train", "eval", "embed", "plan", "export")


def make_parser() -> argparse.ArgumentParser:
    """Of all flags but those of the config."""
    parser = argparse.ArgumentParser(
        prog="main.py",
        description="Trains and evaluates image-text models.",
        allow_abbrev=False,
        formatter_class=argparse.HelpFormatter,
    )
    parser.add_argument(
        "--config", help="configs/NAME.py or configs/NAME.py:ARG (for export: default, the run's)"
    )
    parser.add_argument("--workdir", help="where the run lives (gs:// works too), or its plan")
    parser.add_argument("--mode", default="train", choices=MODES)
    parser.add_argument(
        "--step", help="for eval, embed, export: the checkpoint: a number, latest (default) or best"
    )
    parser.add_argument(
        "--source", help="for embed: a path or a source's spec (default: config.input.source)"
    )
    parser.add_argument(
        "--preprocess", help="for embed, export: ops (default: those of the retrieval)"
    )
    parser.add_argument("--output", help="for embed, export: a folder (default: in --workdir)")
    parser.add_argument(
        "--format",
        help="for export: npz (default), hf, open_clip, stablehlo, saved_model, onnx, big_vision; "
        "for embed: parquet (default) or npy",
    )
    parser.add_argument(
        "--weights", help="for export: trained, or average (default: what the run evaluates)"
    )
    parser.add_argument("--licence", help="for export: of the weights, such as apache-2.0")
    parser.add_argument("--data_note", help="for export: a sentence on the data, for the card")
    parser.add_argument(
        "--topology",
        help="for plan: TPUs to compile for, as v5e:16x16 or 2*v5e:16x16 (two slices), or h100:64",
    )
    parser.add_argument(
        "--sweep",
        nargs="?",
        const="batch,remat,mesh",
        help="for plan: try several of these (default: of all three) and print a table",
    )
    parser.add_argument(
        "--config.KEY",
        metavar="VALUE",
        dest="_",
        help="set any key of the config, e.g. --config.seed=1",
    )
    return parser


def split_overrides(arguments: Sequence[str]) -> tuple[list[tuple[str, str]], list[str]]:
    """Takes `--config.key=value` and `--config.key value` out of the command line."""
    overrides, rest, arguments = [], [], list(arguments)
    while arguments:
        argument = arguments.pop(0)
        if not argument.startswith("--config."):
            rest.append(argument)
            continue
        key, equals, value = argument.removeprefix("--config.").partition("=")
        if not equals and arguments and not arguments[0].startswith("--"):
            value = arguments.pop(0)
        overrides.append((key, value))
    return overrides, rest
