"""A slice of TPUs as a queued resource: every call of gcloud, and nothing that decides.

What runs on its hosts is launch/worker.sh. States: cloud.google.com/tpu/docs/queued-resources.
"""

import argparse
import re
import shlex
import time
from collections.abc import Sequence
from typing import NamedTuple

from launch.accelerators import Slice
from launch.request import folder_of
from launch.revision import ARCHIVE
from launch.shell import EXISTS, NO_MACHINES, NOT_PREPARED, PREEMPTED, Done, Failure, Shell

ACTIVE, UNKNOWN, NOT_FOUND = "ACTIVE", "UNKNOWN", "NOT_FOUND"
DELETED = ("DELETING", NOT_FOUND)  # by somebody: a preempted one stays, SUSPENDED
_LOST = ("SUSPENDING", "SUSPENDED", "FAILED", *DELETED)
_TRIES = 3
_SILENT_SECONDS = 3600.0  # in which nothing is heard of a run; it may do well all the same
_DELETE_TRIES = 15  # while it is SUSPENDING it cannot be deleted
# ssh gives up on a host that has gone, after two minutes
_SSH_FLAGS = ("--ssh-flag=-oServerAliveInterval=30", "--ssh-flag=-oServerAliveCountMax=4")
_SCRIPT = "mm/code/launch/worker.sh"
_WORKER = f"bash {_SCRIPT}"
_ANSWER = f"if [ -e {_SCRIPT} ]; then {_WORKER} answer; else echo prepared - 0; fi"


class Gone(Exception):
    """The machines were taken away. state: why; in DELETED if somebody wanted it."""

    def __init__(self, state: str):
        super().__init__(state)
        self.state = state


class Silent(Exception):
    """Neither gcloud nor worker 0 could say for an hour what became of the run."""


class Answer(NamedTuple):
    """What a host says of main.py. state: prepared (or not even that: no attempt was made),
    running, ended, stopped (by `stop`); code: None for the first two.
    """

    state: str
    code: int | None
    attempt: int


class Machine:
    """The queued resource `flags.name`, with a slice or several."""

    def __init__(self, shell: Shell, flags: argparse.Namespace, slice_: Slice | None):
        self.shell, self.flags, self.slice = shell, flags, slice_
        self.place = [f"--zone={flags.zone}"]
        if flags.project:
            self.place.append(f"--project={flags.project}")
        self.shown = 0  # bytes of the log of worker 0

    def create(self) -> None:
        """Asks for it; raises Failure with the reason."""
        flags, name = self.flags, self.flags.name
        nodes = [f"--node-id={name}"]
        if flags.slices > 1:
            nodes = [f"--node-count={flags.slices}", f"--node-prefix={name}"]
        done = self._gcloud(
            "create",
            f"--accelerator-type={flags.accelerator}",
            f"--runtime-version={flags.runtime_version or self.slice.runtime_version}",
            *nodes,
            *(["--spot"] if flags.spot else []),
            *(["--reserved"] if flags.reserved else []),
            f"--valid-until-duration={flags.wait_minutes}m",
            *flags.create_flag,
        )
        if not done.code:
            return
        if "ALREADY_EXISTS" in done.error:
            raise Failure(f"{name} exists already, and is left alone: {done.reason}", EXISTS)
        cause = "quota" if "quota" in done.error.lower() else "not created"
        raise Failure(f"{cause}: {done.reason}", NO_MACHINES)

    def state(self, assume: str = ACTIVE) -> tuple[str, str]:
        """One of gcloud's states, or UNKNOWN or NOT_FOUND; and why, if it says so."""
        wanted = "--format=value(state.state,state.failedData.error.message)"
        done = self._gcloud("describe", wanted, assume=assume)
        if done.code:
            return (NOT_FOUND if "NOT_FOUND" in done.error else UNKNOWN), done.reason
        state, _, message = done.output.strip().partition("\t")
        return state or UNKNOWN, message

    def wait(self) -> None:
        """Until it is ACTIVE; raises Failure when it will not be, Gone when it was and is not."""
        deadline = time.monotonic() + 60 * self.flags.wait_minutes
        last = ""
        while (found := self.state())[0] != ACTIVE:
            state, message = found
            if state != last:
                self.shell.say(f"{self.flags.name} is {state}{f': {message}' if message else ''}")
                last = state
            if state == "FAILED":
                raise Failure(f"no machines: {message or 'the request FAILED'}", NO_MACHINES)
            if state in DELETED or state == "SUSPENDED":
                raise Gone(state)
            if time.monotonic() > deadline:
                waited = f"still {state} after {self.flags.wait_minutes} minutes"
                raise Failure(f"no machines: {waited} (--wait_minutes)", NO_MACHINES)
            time.sleep(self.flags.poll_seconds)
        self.shell.say(f"{self.flags.name} is {ACTIVE}, and costs money from now on")

    def settled_state(self) -> str:
        """Asks several times; raises Failure when gcloud does not answer."""
        for _ in range(_TRIES):
            state, message = self.state()
            if state != UNKNOWN:
                return state
            time.sleep(self.flags.poll_seconds)
        raise Failure(f"gcloud does not answer, nothing was done: {message}", NO_MACHINES)

    def prepare(self) -> None:
        """Code, as `folder_of` has it, and packages onto all hosts; raises Failure, or Gone."""
        archive = folder_of(self.flags) / ARCHIVE
        everywhere = ("--node=all", "--worker=all")
        self._insist("the code was not copied", "scp", str(archive), f"{self.flags.name}:",
                     *everywhere)  # fmt: skip
        unpack = f"rm -rf mm/code && mkdir -p mm/code && tar -xzf {ARCHIVE} -C mm/code"
        self._insist_on_all("the code was not unpacked", unpack)
        self.shell.say("installing requirements.txt and requirements-tpu.txt on all workers")
        self._insist_on_all("the packages were not installed", f"{_WORKER} install", "installed on")

    def start(self, attempt: int, arguments: Sequence[str]) -> None:
        """main.py on all hosts; raises Failure, or Gone."""
        cache = self.flags.compilation_cache
        given = f"JAX_COMPILATION_CACHE_DIR={shlex.quote(cache)} " if cache else ""
        command = f"{given}{_WORKER} start {attempt} {shlex.join(arguments)}"
        self._insist_on_all("main.py was not started", command)
        self.shell.say(f"main.py is started, attempt {attempt}")

    def follow(self) -> Answer:
        """Shows the log of worker 0 until main.py has ended; raises Gone, or Silent."""
        silent_since = None
        while True:
            command = self._command("ssh", *self._on(f"{_WORKER} follow {self.shown + 1}"))
            code, shown = self.shell.stream(command)
            self.shown += shown
            answer = self.ask()
            if shown or answer is not None:
                silent_since = None
            elif silent_since is None:
                silent_since = time.monotonic()
            elif time.monotonic() > silent_since + _SILENT_SECONDS:
                raise Silent
            if answer is not None and answer.state != "running":
                if code:  # the end of the log went missing
                    rest = self._ssh(f"tail --bytes=+{self.shown + 1} mm/log.txt").output
                    self.shown += len(rest.encode())
                    print(rest, end="", flush=True)
                return answer
            self.check_present()
            what = "does not answer" if answer is None else "goes on, the connection broke"
            self.shell.say(f"worker 0 {what}; following again")
            time.sleep(self.flags.poll_seconds)

    def ask(self) -> Answer | None:
        """What worker 0 says of main.py; None if it does not answer."""
        done = self._ssh(_ANSWER, assume="ended 0 1")
        found = re.search(r"^(\w+) (-|\d+) (\d+)$", done.output, re.MULTILINE)
        if done.code or not found:
            return None
        state, code, attempt = found.groups()
        return Answer(state, None if code == "-" else int(code), int(attempt))

    def insist_on_answer(self) -> Answer | None:
        """Asks several times."""
        for _ in range(_TRIES):
            if (answer := self.ask()) is not None:
                return answer
            time.sleep(self.flags.poll_seconds)
        return None

    def was_stopped(self) -> bool:
        """Whether main.py of any host was, or ended with its host: those of others fail by that.

        Raises Gone when the machines were taken away, one host before the other.
        """
        for _ in range(_TRIES):
            done = self._ssh(_ANSWER, all_hosts=True)
            if re.search(rf"^ended {PREEMPTED} ", done.output, re.MULTILINE):
                return True
            if not done.code:
                break  # all have answered
            self.check_present()
            time.sleep(self.flags.poll_seconds)
        return False

    def stop(self) -> Done:
        """SIGTERM to main.py on all hosts."""
        return self._ssh(f"{_WORKER} stop", all_hosts=True)

    def delete(self) -> bool:
        """Deletes it with its nodes; whether it is gone."""
        for _ in range(_DELETE_TRIES):
            done = self._gcloud("delete", "--force")
            if not done.code or "NOT_FOUND" in done.error:
                return True
            time.sleep(self.flags.poll_seconds)
        return False

    def delete_command(self) -> str:
        return shlex.join(self._command("delete", self.flags.name, *self.place, "--force"))

    def check_present(self) -> None:
        """Raises Gone when the machines were taken away."""
        deadline = time.monotonic() + _SILENT_SECONDS
        while (state := self.state()[0]) == "SUSPENDING":  # by preemption, or on its way out
            if time.monotonic() > deadline:
                break
            time.sleep(self.flags.poll_seconds)
        if state in _LOST:
            raise Gone(state)

    def _insist(self, wrong: str, verb: str, *arguments: str, mark: str = "") -> None:
        """Tries several times; a host that just came may not answer yet."""
        for left in reversed(range(_TRIES)):
            done = self.shell.run(self._command(verb, *arguments, *self.place, "--quiet"))
            if not done.code:
                return
            self.check_present()
            if left:
                self.shell.say(f"{wrong} ({done.reason}); trying again")
                time.sleep(self.flags.poll_seconds)
        there = f" (on {done.output.count(mark)} of {self._hosts()} workers)" if mark else ""
        raise Failure(f"{wrong}{there}: {done.reason}", NOT_PREPARED)

    def _insist_on_all(self, wrong: str, command: str, mark: str = "") -> None:
        self._insist(wrong, "ssh", self.flags.name, "--node=all", "--worker=all",
                     f"--command={command}", *_SSH_FLAGS, mark=mark)  # fmt: skip

    def _hosts(self) -> int:
        return self.slice.hosts * self.flags.slices

    def _gcloud(self, verb: str, *arguments: str, assume: str = "") -> Done:
        command = self._command(verb, self.flags.name, *self.place, *arguments, "--quiet")
        return self.shell.run(command, assume=assume)

    def _ssh(self, command: str, *, all_hosts: bool = False, assume: str = "") -> Done:
        on = self._on(command, "all" if all_hosts else "0")
        return self.shell.run(self._command("ssh", *on), assume=assume)

    def _on(self, command: str, which: str = "0") -> list[str]:
        hosts = [f"--node={which}", f"--worker={which}", f"--command={command}"]
        return [self.flags.name, *hosts, *_SSH_FLAGS, *self.place, "--quiet"]

    def _command(self, verb: str, *arguments: str) -> list[str]:
        return ["gcloud", "compute", "tpus", "queued-resources", verb, *arguments]
