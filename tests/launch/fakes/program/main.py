"""Stands in for main.py: steps with checkpoints, plans, and ways to end that a test chooses."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path


def say(*words):
    """One write a line: processes of a job share a file, and write it unbuffered."""
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


parser = argparse.ArgumentParser()
parser.add_argument("--config")
parser.add_argument("--workdir")
parser.add_argument("--mode", default="train")
parser.add_argument("--topology")
parser.add_argument("--config.steps", type=int, default=5, dest="steps")
parser.add_argument("--config.fail", default="", dest="fail", help="STEP:CODE:TIMES, 0: first")
parser.add_argument("--config.wait", type=int, default=0, dest="wait", help="for SIGTERM at step")
flags = parser.parse_args()

if flags.mode == "plan":
    say(f"plan of {flags.config} for {flags.topology}")
    sys.exit(int(os.environ.get("FAKE_PLAN", "0")))

folder = Path(os.environ["FAKE_CLOUD"]) / "bucket" / flags.workdir.replace("://", "/").lstrip("/")
folder.mkdir(parents=True, exist_ok=True)
index = os.environ.get("MM_PROCESS_ID") or os.environ.get("FAKE_WORKER", "0")
if "MM_PROCESS_ID" in os.environ:
    names = ("MM_PROCESS_ID", "MM_NUM_PROCESSES", "MM_COORDINATOR", "CUDA_VISIBLE_DEVICES")
    say("place", *(os.environ.get(name) for name in names))
if "://" in (cache := os.environ.get("JAX_COMPILATION_CACHE_DIR", "")):
    say("cache", cache)
checkpoint, failures = folder / f"step-{index}", folder / f"failures-{index}"
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
say(f"from step {begin}")
for step in range(begin + 1, flags.steps + 1):
    say(f"step {step}")
    checkpoint.write_text(str(step))
    if flags.fail:
        at, code, times = map(int, flags.fail.split(":"))
        failed = int(failures.read_text()) if failures.exists() else 0
        if step == (at or begin + 1) and failed < times:
            failures.write_text(str(failed + 1))
            sys.exit(code)
    if step == flags.wait:
        deadline = time.monotonic() + 120
        while not stopped and time.monotonic() < deadline:
            time.sleep(0.02)
    if stopped:
        say("saved")
        sys.exit(75)
