"""Plans every recipe for its pod and writes its row in docs/plans.md: `make plan-all`.

  python -m bench.plans siglip clip      # only recipes whose name begins so; others keep their row

One process a recipe: a compiler that runs out of memory takes only its own row with it.
"""

import argparse
import json
import re
import subprocess
import sys
from pathlib import Path

from mm.config import load
from tests.resolved import cases

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "docs/plans.md"
COLUMNS = (
    "recipe", "pod", "batch a chip", "GiB a chip", "step", "MFU", "wire MiB (least)",
    "chip-hours", "compile",
)  # fmt: skip
HEAD = f"| {' | '.join(COLUMNS)} |\n{'|---' * len(COLUMNS)}|\n"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plans")
    parser.add_argument("only", nargs="*", help="beginnings of names, as siglip or clip-B-16")
    only = tuple(parser.parse_args().only)
    text, head, written = TABLE.read_text().partition(HEAD)
    if not head:
        sys.exit(
            f"error: {TABLE} has no table that begins with {HEAD.splitlines()[0]!r}; put it back"
        )
    rows = {match[1]: match[0] for match in re.finditer(r"^\| `([^`]+)`.*\|$", written, re.M)}
    failed = []
    for name, config in cases().items():
        if not load(config).get("pod") or (only and not name.startswith(only)):
            continue
        print(f"{name} ...", flush=True)
        workdir = ROOT / "plans" / name
        command = [sys.executable, "main.py", "--mode=plan", f"--config={config}"]
        done = subprocess.run([*command, f"--workdir={workdir}"], cwd=ROOT)
        if done.returncode > 1:
            failed.append(name)
            continue
        rows[name] = row(name, json.loads((workdir / "plan.json").read_text()))
        TABLE.write_text(
            text + HEAD + "\n".join(rows[key] for key in cases() if key in rows) + "\n"
        )
    print(f"table: {TABLE}")
    if failed:
        sys.exit(f"not planned: {', '.join(failed)}")


def row(name: str, plan: dict) -> str:
    """A line of the table."""
    gib, per_chip = 2**30, plan["global_batch_size"] / plan["chips"]
    memory = f"{plan['bytes_per_chip'] / gib:.1f} of {plan['memory_per_chip'] / gib:.2f}"
    cells = [f"`{name}`", plan["topology"], f"{per_chip:g}", memory]
    if plan["fits"]:
        wire = sum(plan["collective_bytes_per_chip"].values()) / 2**20
        cells += [
            f"{plan['estimated_step_seconds'] * 1e3:.0f} ms",
            f"{plan['estimated_mfu']:.0%}",
            f"{wire:,.0f} ({plan['minimal_collective_bytes_per_chip'] / 2**20:,.0f})",
            f"{plan['chip_hours']:,.0f}",
        ]
    else:
        cells += ["does not fit", "", "", ""]
    return "| " + " | ".join([*cells, f"{plan['compile_seconds']:.0f} s"]) + " |"


if __name__ == "__main__":
    main()
