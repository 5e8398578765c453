"""What all launchers ask and check: flags, the command after --, a name, the plan."""

import argparse
import contextlib
import difflib
import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

from command_line import make_parser, split_overrides
from launch.revision import ROOT, Code
from launch.shell import FAILED, REFUSED, Failure, Interrupted, Shell, interruptible


class Run(NamedTuple):
    """The flags of main.py: all of them, and those that matter here."""

    flags: tuple[str, ...]
    config: str | None
    workdir: str | None
    mode: str
    overrides: tuple[str, ...]


class Parser(argparse.ArgumentParser):
    """Of a launcher: its flags, then `--` and those of main.py. docs/launch.md has them all."""

    def __init__(self, name: str, verbs: Sequence[str], description: str):
        super().__init__(
            prog=f"python -m launch.{name}",
            usage="%(prog)s [verb] [flags] -- --config=... --workdir=...",
            description=description,
            allow_abbrev=False,
        )
        self.add_argument("verb", nargs="?", default="run", choices=("run", *verbs))
        self.add_argument("--name", help="of the run (default: made of config and workdir)")
        self.add_argument(
            "--dry_run", action="store_true", help="print what would be done, do nothing"
        )
        self.add_argument(
            "--force",
            action="store_true",
            help="submit what does not fit, stop what is silent",
        )
        self.add_argument(
            "--code", type=Path, default=ROOT, help="the checkout to run (default: this one)"
        )
        self.add_argument(
            "--restarts", type=count, default=0, help="after a failure, at most (default 0)"
        )
        cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", "")
        self.add_argument(
            "--compilation_cache",
            default=cache if "://" in cache else None,
            help="a folder that runs share compiled programs in, as gs://bucket/cache (default: "
            "JAX_COMPILATION_CACHE_DIR, if it is such a folder)",
        )
        self.add_argument(
            "--poll_seconds", type=float, default=20.0, help="between looks at a state (default 20)"
        )

    def parse(self, arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Run]:
        """Exits with 2 when something is wrong or missing, as argparse does."""
        arguments = list(sys.argv[1:] if arguments is None else arguments)
        at = arguments.index("--") if "--" in arguments else len(arguments)
        flags = self.parse_args(arguments[:at])
        try:
            run = read_run(arguments[at + 1 :])
        except Failure as error:
            self.error(str(error))
        if flags.verb == "run" and run.config is None:
            self.error("no --config; put the flags of main.py after --, as -- --config=...")
        if flags.verb == "run" and run.workdir is None:
            self.error("no --workdir after --; it is where the run continues after a preemption")
        if flags.name is None and run.config is None:
            self.error(f"{flags.verb} needs --name=NAME, as the run printed it")
        flags.code = flags.code.resolve()
        flags.name = flags.name or default_name(run)
        if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", flags.name):
            self.error(
                f"--name={flags.name}: expected at most 40 of a-z, 0-9 and -, a letter first"
            )
        return flags, run


def count(text: str) -> int:
    """A number that is not negative, for argparse."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 on")
    return int(text)


def positive(text: str) -> int:
    """A number from 1 on, for argparse."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 1 on")
    return int(text)


def read_run(arguments: Sequence[str]) -> Run:
    """The flags of main.py; a `python main.py` before them is dropped.

    Raises Failure when they start another program, and for a flag of the launcher; exits with 2
    when main.py would for a flag.
    """
    arguments = list(arguments)
    if arguments and not arguments[0].startswith("-"):
        if len(arguments) < 2 or Path(arguments[1]).name != "main.py":
            raise Failure(
                f"{' '.join(arguments[:2])!r} after --: expected flags of main.py, "
                "or `python main.py` and its flags",
                REFUSED,
            )
        arguments = arguments[2:]
    overrides, rest = split_overrides(arguments)
    if "--dry_run" in rest:
        raise Failure("--dry_run after --: is a flag of the launcher, put it before --", REFUSED)
    flags = make_parser().parse_args(rest)
    overrides = tuple(f"--config.{key}={value}" for key, value in overrides)
    return Run(tuple(arguments), flags.config, flags.workdir, flags.mode, overrides)


def default_name(run: Run) -> str:
    """The same for the same workdir, so that one workdir has one run."""
    stem = Path((run.config or "").partition(":")[0]).stem.lower()
    stem = re.sub(r"[^a-z0-9]+", "-", stem).strip("-")[:24].rstrip("-")
    return f"mm-{stem}-{hashlib.sha256((run.workdir or '').encode()).hexdigest()[:6]}"


def folder_of(flags: argparse.Namespace) -> Path:
    """What a launch writes here: its plan, and the code that it sent. In each zone another."""
    zone = getattr(flags, "zone", None)
    return flags.code / "launches" / (f"{flags.name}.{zone}" if zone else flags.name)


def check_plan(
    shell: Shell,
    flags: argparse.Namespace,
    run: Run,
    code: Code,
    topology: str | None,
    *,
    shared: bool = False,
) -> None:
    """Shows the plan of the config on `topology`; raises Failure if it does not fit.

    With --force what does not fit, or cannot be planned, is submitted all the same. A config that
    is not in `code`, which is sent, is a Failure also in a dry run, and without a plan. shared:
    absolute paths are the same where it runs.
    """
    _check_config(flags.code, run.config, code, shared)
    if topology is None or run.mode != "train":
        shell.say(f"no plan: {'CPUs' if topology is None else f'--mode={run.mode}'}")
        return
    command = [
        *(sys.executable if not shell.dry_run else "python", "main.py", "--mode=plan"),
        *(f"--config={run.config}", *run.overrides),
        *(f"--topology={topology}", f"--workdir={folder_of(flags)}"),
    ]
    shell.say(f"the plan for {topology}, compiled here (minutes)")
    ended, _ = shell.stream(command, folder=flags.code)
    if ended == 0:
        return
    wrong = (
        f"the config does not fit {topology}"
        if ended == FAILED
        else f"the plan ended with exit code {ended} (see above)"
    )
    if not flags.force:
        raise Failure(f"{wrong}; not submitted (--force submits it all the same)", REFUSED)
    shell.say(f"{wrong}; submitted all the same: --force")


def _check_config(folder: Path, config: str, code: Code, shared: bool) -> None:
    file, colon, arg = config.partition(":")
    name = os.path.normpath(file)
    path = folder / name
    if not path.is_file():
        near = difflib.get_close_matches(path.name, [one.name for one in path.parent.glob("*.py")])
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise Failure(f"--config={config}: no such file in {folder}{hint}", REFUSED)
    if os.path.isabs(name) and not shared and path.is_relative_to(folder):
        raise Failure(
            f"--config={config}: is a path of this machine; give the one below {folder}: "
            f"--config={path.relative_to(folder)}{colon}{arg}",
            REFUSED,
        )
    if name not in code.names() and not (shared and os.path.isabs(name)):
        raise Failure(
            f"--config={config}: is not in the code that is sent (it is not below {folder}, or "
            f".gitignore names it, or its folder is left out); copy it to configs, say, and give "
            f"--config=configs/{path.name}",
            REFUSED,
        )


@contextlib.contextmanager
def telling(flags: argparse.Namespace) -> Iterator[None]:
    """What one reads after Ctrl-C in a verb."""
    try:
        yield
    except Interrupted as error:
        if flags.verb == "stop":
            error.left = f"{flags.name} may still be there, and run: stop it again"
        elif flags.verb != "run":
            error.left = "nothing was changed"
        raise


def entry(name: str, work: Callable[[Sequence[str] | None], int]) -> NoReturn:
    """Runs a launcher's `work` and exits; failures are one line."""
    try:
        with interruptible():
            code = work(None)
    except Failure as error:
        print(f"launch.{name}: error: {error}", file=sys.stderr, flush=True)
        code = error.code
    except Interrupted as error:
        print(f"launch.{name}: {error}; {error.left}", file=sys.stderr, flush=True)
        code = error.code
    sys.exit(code)
