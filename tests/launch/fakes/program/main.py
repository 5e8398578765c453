"""Stands in for main.py: steps with checkpoints, plans, and ways to end that a test chooses."""

import argparse
import os
import signal
import sys
import time
from pathlib import Path

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
    print(f"plan of {flags.config} for {flags.topology}", flush=True)
    sys.exit(int(os.environ.get("FAKE_PLAN", "0")))

folder = Path(os.environ["FAKE_CLOUD"]) / "bucket" / flags.workdir.replace("://", "/").lstrip("/")
folder.mkdir(parents=True, exist_ok=True)
index = os.environ.get("MM_PROCESS_ID") or os.environ.get("FAKE_WORKER", "0")
if "MM_PROCESS_ID" in os.environ:
    names = ("MM_PROCESS_ID", "MM_NUM_PROCESSES", "MM_COORDINATOR", "CUDA_VISIBLE_DEVICES")
    print("place", *(os.environ.get(name) for name in names), flush=True)
if "://" in (cache := os.environ.get("JAX_COMPILATION_CACHE_DIR", "")):
    print("cache", cache, flush=True)
checkpoint, failures = folder / f"step-{index}", folder / f"failures-{index}"
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
begin = int(checkpoint.read_text()) if checkpoint.exists() else 0
print(f"from step {begin}", flush=True)
for step in range(begin + 1, flags.steps + 1):
    print(f"step {step}", flush=True)
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
        print("saved", flush=True)
        sys.exit(75)
