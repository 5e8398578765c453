"""SIGTERM and Ctrl-C: finish the step, save, exit with a code of its own.

One process: a flag. Several: all must stop after the same step, or the next collective hangs.
JAX's preemption service agrees on that step in the background (it takes SIGTERM itself, and the
coordinator picks the largest step that any process has reached, plus one), so asking costs a look
at local memory. An all-reduce of a flag would put a collective and a wait for the device into
every step instead.
"""

import os
import signal
import socket
import threading

import jax
from jax.experimental import multihost_utils

PREEMPTED = os.EX_TEMPFAIL  # 75: saved, run the same command again. Used by launch too.
INTERRUPTED = 128 + signal.SIGINT  # killed by a second Ctrl-C: nothing was saved


class StopSignals:
    """Listens from construction to `close`; construct on the main thread after distributed.start.

    Python runs a handler only between bytecodes of the main thread, so a compilation of minutes
    would hold up the second Ctrl-C. A thread that reads the wake-up descriptor sees it at once.
    The handlers do the same work, because an event loop on the main thread (orbax has uvloop's)
    may take the descriptor away.
    """

    def __init__(self):
        self._flag = threading.Event()
        self._several = jax.process_count() > 1
        # with several processes SIGTERM stays with JAX's service, which installed its handler
        numbers = [signal.SIGINT] if self._several else [signal.SIGINT, signal.SIGTERM]
        self._ours, self._theirs = socket.socketpair()
        self._theirs.setblocking(False)
        self._old_descriptor = signal.set_wakeup_fd(
            self._theirs.fileno(), warn_on_full_buffer=False
        )
        self._interrupts_handled = 0
        self._old_handlers = {number: signal.signal(number, self._handle) for number in numbers}
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()

    def stop_requested(self, step: int) -> bool:
        """Whether to save and stop after `step`: the same answer on every process.

        Call it once a step on every process, `step` growing by one.
        """
        if self._several:
            return multihost_utils.reached_preemption_sync_point(step)
        return self._flag.is_set()

    def close(self) -> None:
        """Gives the signals back."""
        for number, handler in self._old_handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_descriptor)
        self._theirs.close()
        self._thread.join()
        self._ours.close()

    def _listen(self) -> None:
        interrupts = 0
        while received := self._ours.recv(64):
            interrupts += received.count(signal.SIGINT)
            self._stop(interrupts)

    def _handle(self, number: int, frame: object) -> None:
        self._interrupts_handled += number == signal.SIGINT
        self._stop(self._interrupts_handled)

    def _stop(self, interrupts: int) -> None:
        if interrupts > 1:
            os._exit(INTERRUPTED)
        if self._flag.is_set():
            return
        self._flag.set()
        # straight to the descriptor: the signal may have interrupted a print
        os.write(
            2,
            b"\nstopping after this step, then saving; Ctrl-C again kills at once\n"
            if interrupts
            else b"\nSIGTERM: stopping after this step, then saving\n",
        )
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)  # JAX's service tells the other processes
