"""Trains and evaluates image-text models.

  python main.py --config=configs/quickstart.py --workdir=workdirs/quickstart

Every key of a config can be set: `--config.optimizer.learning_rate=3e-4`.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

# Flags that go with some modes only.
_OF = {
    "step": ("eval", "embed", "export"),
    "source": ("embed",),
    "preprocess": ("embed", "export"),
    "output": ("embed", "export"),
    "format": ("embed", "export"),
    "weights": ("export",),
    "licence": ("export",),
    "data_note": ("export",),
    "topology": ("plan",),
    "sweep": ("plan",),
}


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Parses the flags, runs a mode, exits (with 2 when the input was wrong)."""
    import launch.installed  # noqa: F401
    from command_line import make_parser, split_overrides

    parser = make_parser()
    overrides, rest = split_overrides(sys.argv[1:] if arguments is None else arguments)
    flags = parser.parse_args(rest)
    if not flags.config and flags.mode != "export":
        parser.error("the following arguments are required: --config")

    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax reports each of its decisions
    if flags.mode in ("plan", "export"):  # for what is not here, and with nothing that is
        os.environ["JAX_PLATFORMS"] = "cpu"
    # A second less of each start: TensorFlow, which reads and resizes, would import Keras, and that
    # matplotlib. The old Keras is looked for when it is used. Not in mm: a notebook may want one.
    os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")
    import jax

    from mm.config import BadInput, load, override, plain
    from mm.runtime import distributed

    try:
        for name, modes in _OF.items():
            if (value := getattr(flags, name)) is not None and flags.mode not in modes:
                wanted = " or ".join(modes)
                raise BadInput(f"--{name}={value}: goes with --mode={wanted}, not {flags.mode}")
        if flags.mode == "plan":
            flags.workdir = flags.workdir or "plans"
        if not flags.workdir:
            raise BadInput(f"--mode={flags.mode} needs --workdir=PATH, where the run lives")
        config, flags.origin = load(flags.config) if flags.config else None, None
        if config is None and overrides:
            raise BadInput(f"--config.{overrides[0][0]}: goes with --config, which is not given")
        if config is not None:
            # Of a config.json nothing is kept: the run whose it is says what it came from.
            if flags.config.partition(":")[0].endswith(".py"):
                flags.origin = {"name": flags.config, "config": plain(config)}
            override(config, overrides)
        if flags.mode not in ("plan", "export"):
            distributed.start()
        code = run(flags, config)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(
            f"error: out of memory ({str(error).splitlines()[0]}); lower config.global_batch_size, "
            "set config.model.image.remat=full, or use more devices",
            file=sys.stderr,
        )
        code = 1
    except (BadInput, FloatingPointError) as error:
        print(f"error: {error}", file=sys.stderr)
        code = 2 if isinstance(error, BadInput) else 1
    distributed.leave(code)


def run(flags: argparse.Namespace, config) -> int:
    """Runs one mode; the imports are here so that a wrong flag is answered at once."""
    if flags.mode == "train":
        from mm.train import train

        return train(config, flags.workdir, flags.origin)
    if flags.mode == "plan":
        from mm.plan import plan, plan_variants

        if flags.sweep is not None:
            return plan_variants(config, flags.workdir, flags.topology, flags.sweep.split(","))
        return plan(config, flags.workdir, flags.topology)
    if flags.mode == "export":
        from mm.export import export

        names = ("output", "step", "weights", "preprocess", "licence", "data_note")
        given = {name: getattr(flags, name) for name in names}
        return export(flags.workdir, format=flags.format or "npz", config=config, **given)
    if flags.mode == "embed":
        from mm.embed import embed

        given = flags.source, flags.preprocess, flags.output
        return embed(
            config, flags.workdir, flags.step or "latest", *given, flags.format or "parquet"
        )
    from mm.evaluate import evaluate

    return evaluate(config, flags.workdir, flags.step or "latest")


if __name__ == "__main__":
    main()
