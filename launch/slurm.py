"""Submits main.py to SLURM: several nodes of GPUs, one process a GPU or a node.

  python -m launch.slurm --nodes=8 --gpus_per_node=8 --accelerator=h100 --partition=gpu \
    -- --config=configs/siglip.py --workdir=/shared/run

The code as it is goes into launches/NAME/code, so the nodes must see this folder; a job that is
requeued runs the same code. Before its time is up, or when it is preempted, the run gets SIGTERM,
saves, and is requeued. docs/launch.md has flags and exit codes.
"""

import argparse
import io
import shlex
import shutil
import sys
import tarfile
import time
from collections.abc import Sequence
from pathlib import Path

from launch.accelerators import GPUS
from launch.request import Parser, Run, check_plan, count, entry, folder_of, positive, telling
from launch.revision import ROOT, Code, snapshot
from launch.shell import EXISTS, FAILED, NO_MACHINES, Failure, Interrupted, Shell, uninterrupted

NAME = "slurm"
_FIRST_PORT, _PORTS = 20_000, 10_000  # of the coordinator: below those that Linux hands out


def work(arguments: Sequence[str] | None = None) -> int:
    """Parses, does what the verb says, returns the exit code."""
    flags, run = read_flags(arguments)
    shell = Shell(NAME, flags.dry_run)
    folder = folder_of(flags)
    with telling(flags):
        if flags.verb == "run":
            return submit(shell, flags, run, folder)
        job = read_job(shell, folder)
        if flags.verb == "status":
            return status(shell, folder, job)
        if flags.verb == "logs":
            return follow(shell, flags, folder, job)
        return stop(shell, flags, folder, job)


def read_flags(arguments: Sequence[str] | None) -> tuple[argparse.Namespace, Run]:
    parser = Parser(NAME, ("status", "logs", "stop"), __doc__.splitlines()[0])
    parser.add_argument("--nodes", type=positive, default=1)
    parser.add_argument("--gpus_per_node", type=count, default=8, help="0: CPUs only (default 8)")
    parser.add_argument(
        "--per", choices=("gpu", "node"), default="gpu", help="one process for each"
    )
    parser.add_argument("--accelerator", choices=sorted(GPUS), help="which GPU, for the plan")
    parser.add_argument("--partition")
    parser.add_argument("--account")
    parser.add_argument(
        "--time", help="as 24:00:00; SIGTERM comes before (default: the partition's)"
    )
    parser.add_argument(
        "--cpus_per_task", type=positive, help="of a process (default: nodes for this job alone)"
    )
    parser.add_argument(
        "--sbatch_flag", action="append", default=[], help="more, as --sbatch_flag=--qos=high"
    )
    parser.add_argument("--python", default=sys.executable, help="on the nodes (default: this one)")
    parser.add_argument(
        "--grace_seconds", type=positive, default=300, help="from SIGTERM to the end of the time"
    )
    parser.add_argument(
        "--preemptions", type=count, default=100, help="to go on after, at most (default 100)"
    )
    parser.add_argument("--wait", action="store_true", help="show the log and wait for the end")
    flags, run = parser.parse(arguments)
    workdir = run.workdir or ""
    if flags.verb == "run" and not (workdir.startswith("/") or "://" in workdir):
        parser.error(f"--workdir={workdir}: expected an absolute path; the nodes run a copy")
    if flags.verb == "run" and flags.per == "gpu" and not flags.gpus_per_node:
        parser.error("--gpus_per_node=0 goes with --per=node")
    if flags.verb == "run" and flags.gpus_per_node and not flags.accelerator and not flags.force:
        parser.error(f"--accelerator={{{','.join(sorted(GPUS))}}} is missing (--force: no plan)")
    return flags, run


def submit(shell: Shell, flags: argparse.Namespace, run: Run, folder: Path) -> int:
    """Plan, code, script, sbatch; with --wait the log until the end."""
    check_ended(shell, flags.name, folder)
    code = snapshot(flags.code)
    shell.say(code.describe())
    gpus = flags.nodes * flags.gpus_per_node
    topology = f"{flags.accelerator}:{gpus}" if flags.accelerator else None
    check_plan(shell, flags, run, code, topology, shared=True)
    check_ended(shell, flags.name, folder)  # in these minutes another may have submitted it
    unpack(shell, code, folder)
    script = folder / "job.sh"
    shell.write(script, make_script(flags, run, folder), mode=0o755)
    with uninterrupted():  # or there would be a job that nobody knows
        done = shell.run(["sbatch", "--parsable", str(script)], assume="JOB")
        if done.code:
            raise Failure(f"not submitted: {done.reason}", NO_MACHINES)
        job = done.output.strip().partition(";")[0]  # a cluster's name may follow
        shell.write(folder / "job_id", f"{job}\n")
    shell.say(f"{flags.name} is job {job}; its log: {folder / 'log.txt'}")
    if not flags.wait:
        return 0
    try:
        return follow(shell, flags, folder, job)
    except Interrupted as error:
        shell.say(f"{error}")
        command = f"python -m launch.{NAME} stop --name={flags.name}"
        if flags.code != ROOT:
            command += f" --code={shlex.quote(str(flags.code))}"
        shell.left(f"job {job} goes on without me. To end it:", command)
        return error.code


def check_ended(shell: Shell, name: str, folder: Path) -> None:
    """Raises Failure while a job of that name is in the queue."""
    if not (folder / "job_id").exists():
        return
    job = read_job(shell, folder)
    if state := job_state(shell, job):
        raise Failure(f"{name} is job {job} already, and {state}; stop it first", EXISTS)


def unpack(shell: Shell, code: Code, folder: Path) -> None:
    """The code into `folder`, in the place of that of a submission before."""
    if shell.dry_run:
        shell.say(f"unpack the code into {folder / 'code'}, in the place of what is there")
        return
    shutil.rmtree(folder / "code", ignore_errors=True)
    for name in ("stop", "exit_code", "preemptions", "failures"):
        (folder / name).unlink(missing_ok=True)
    with tarfile.open(fileobj=io.BytesIO(code.archive)) as archive:
        archive.extractall(folder / "code", filter="data")


def make_script(flags: argparse.Namespace, run: Run, folder: Path) -> str:
    """What sbatch gets. The three MM_ variables are those of mm/runtime/distributed.py."""
    per_node = flags.gpus_per_node if flags.per == "gpu" else 1
    asked = {
        "job-name": flags.name,
        "nodes": flags.nodes,
        "ntasks": flags.nodes * per_node,
        "ntasks-per-node": per_node,
        "gres": f"gpu:{flags.gpus_per_node}" if flags.gpus_per_node else None,
        "cpus-per-task": flags.cpus_per_task,
        "partition": flags.partition,
        "account": flags.account,
        "time": flags.time,
        "output": str(folder / "log.txt").replace("%", "%%"),  # a sign of sbatch's
        "open-mode": "append",
        "signal": f"TERM@{flags.grace_seconds}",
    }
    options = [
        f"--{key}={shlex.quote(str(value))}" for key, value in asked.items() if value is not None
    ]
    options += ["--requeue", *([] if flags.cpus_per_task else ["--exclusive"]), *flags.sbatch_flag]
    cache = flags.compilation_cache
    one_gpu = _ONE_GPU.format(last=flags.gpus_per_node - 1) if flags.per == "gpu" else ""
    return _SCRIPT.format(
        options="\n".join(f"#SBATCH {option}" for option in options),
        folder=shlex.quote(str(folder)),
        first_port=_FIRST_PORT,
        ports=_PORTS,
        processes=flags.nodes * per_node,
        cpus=f"--cpus-per-task={flags.cpus_per_task} " if flags.cpus_per_task else "",
        wait=flags.grace_seconds,
        one_gpu=one_gpu,
        cache=f"export JAX_COMPILATION_CACHE_DIR={shlex.quote(cache)}\n" if cache else "",
        python=shlex.quote(flags.python),
        arguments=shlex.join(run.flags),
        preemptions=flags.preemptions,
        restarts=flags.restarts,
    )


_ONE_GPU = """
  IFS=, read -ra gpus <<<"${{CUDA_VISIBLE_DEVICES:-$(seq -s, 0 {last})}}"
  export CUDA_VISIBLE_DEVICES=${{gpus[SLURM_LOCALID]}}"""

# The batch shell has no trap: scancel ends it, so what a user cancels is never requeued.
_SCRIPT = """\
#!/usr/bin/env bash
{options}
set -u
folder={folder}
cd "$folder/code" || exit
rm -f ../exit_code
echo "launch: job $SLURM_JOB_ID on $SLURM_JOB_NODELIST, $(cat revision.json)"

{cache}export MM_NUM_PROCESSES={processes} PYTHONUNBUFFERED=1
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export MM_COORDINATOR="$first:$(({first_port} + SLURM_JOB_ID % {ports}))"
srun {cpus}--cpu-bind=none --kill-on-bad-exit=0 --wait={wait} bash -c '
  export MM_PROCESS_ID=$SLURM_PROCID{one_gpu}
  exec "$@"' task {python} main.py {arguments}
code=$?

again() {{ # COUNTER LIMIT: one more, if there may be
  number=$(($(cat "$folder/$1" 2>/dev/null || echo 0) + 1))
  [[ ! -e $folder/stop && $number -le $2 ]] && echo "$number" >"$folder/$1"
}}
counter=failures limit={restarts}
[[ $code == 75 ]] && counter=preemptions limit={preemptions} # saved after SIGTERM
if [[ $code != 0 && $code != 2 ]] && again "$counter" "$limit"; then
  echo "launch: exit code $code; requeued ($counter: $number of $limit)"
  scontrol requeue "$SLURM_JOB_ID" && exit "$code"
  echo "launch: scontrol could not requeue"
fi
echo "launch: main.py ended with exit code $code"
echo "$code" >"$folder/exit_code"
exit "$code"
"""


def read_job(shell: Shell, folder: Path) -> str:
    """The job of that folder; raises Failure if none was submitted."""
    path = folder / "job_id"
    if shell.dry_run and not path.exists():
        return "JOB"
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        wrong = f"there is no {folder.name}: no job was submitted from {folder}"
        raise Failure(wrong, NO_MACHINES) from None


def job_state(shell: Shell, job: str) -> str:
    """SLURM's word, or "" when the job is not in the queue any more."""
    done = shell.run(["squeue", "--noheader", f"--jobs={job}", "--format=%T"])
    if done.code and "Invalid job id" not in done.error:
        return "UNKNOWN"  # the controller does not answer
    return done.output.strip()


def exit_code(folder: Path) -> int | None:
    path = folder / "exit_code"
    return int(path.read_text()) if path.exists() else None


def status(shell: Shell, folder: Path, job: str) -> int:
    """The job's state and how main.py ended."""
    state, code = job_state(shell, job), exit_code(folder)
    if shell.dry_run:
        return 0
    ended = "" if code is None else f", main.py ended with exit code {code}"
    print(f"{folder.name}: job {job}, {state or 'not in the queue'}{ended}")
    return 0


def follow(shell: Shell, flags: argparse.Namespace, folder: Path, job: str) -> int:
    """Shows the log until the job has left the queue; returns main.py's exit code."""
    log, shown = folder / "log.txt", 0
    if shell.dry_run:
        shell.say(f"show {log} as it grows, until the job has left the queue:")
        job_state(shell, job)
        return 0
    while True:
        state = job_state(shell, job)
        if log.exists():
            with open(log, "rb") as file:
                file.seek(shown)
                new = file.read()
            shown += len(new)
            sys.stdout.buffer.write(new)
            sys.stdout.buffer.flush()
        if not state:
            break
        time.sleep(flags.poll_seconds)
    if (code := exit_code(folder)) is None:
        raise Failure(f"job {job} was cancelled or killed before main.py had ended", FAILED)
    return code


def stop(shell: Shell, flags: argparse.Namespace, folder: Path, job: str) -> int:
    """Lets main.py save, and cancels the job."""
    shell.write(folder / "stop", "")  # the script does not requeue then
    save, cancel = ["scancel", "--signal=TERM", job], ["scancel", job]
    if shell.dry_run:
        shell.run(save)
        shell.say(f"wait until it has left the queue, {flags.grace_seconds} s at most; then")
        shell.run(cancel)
        return 0
    if job_state(shell, job) == "RUNNING":
        shell.run(save)
        deadline = time.monotonic() + flags.grace_seconds
        while job_state(shell, job) and time.monotonic() < deadline:
            time.sleep(flags.poll_seconds)
    if job_state(shell, job) and (done := shell.run(cancel)).code:
        raise Failure(f"job {job} could not be cancelled: {done.reason}", FAILED)
    code = exit_code(folder)
    shell.say(f"job {job} has ended{'' if code is None else f', main.py with exit code {code}'}")
    return 0


if __name__ == "__main__":
    entry(NAME, work)
