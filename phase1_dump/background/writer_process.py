"""The child process as its parent sees it: started without the parent's modules, spoken to, ended.

Must not know what is written.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass

from .messages import Channel, Done, Failed, Freed, Message

ENDS_WITHIN_SECONDS = 10.0
# sent to a whole job: what becomes of it, the parent decides
LEFT_TO_THE_PARENT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# a program of its own: multiprocessing would import the training script, and with it torch, a second time
PROGRAM = """import sys; sys.path[:] = {path!r}
from shardmerge.phase1_dump.background.child import main; main({file}, {parent})"""


@dataclass(slots=True)
class WriterProcess:
    """A child process that writes ranks."""

    process: subprocess.Popen[bytes]
    channel: Channel

    @classmethod
    def started(cls) -> WriterProcess:
        """Start a process, which ends when this one has ended.

        Signals wait until it ignores them: one that came while its interpreter starts would end it.
        """
        ours, theirs = socket.socketpair()
        path = [entry for entry in sys.path if isinstance(entry, str)]
        program = PROGRAM.format(path=path, file=theirs.fileno(), parent=os.getpid())
        before = signal.pthread_sigmask(signal.SIG_BLOCK, LEFT_TO_THE_PARENT)
        try:
            with theirs:
                process = subprocess.Popen(
                    [sys.executable, "-c", program],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        return cls(process, Channel(ours))

    def runs(self) -> bool:
        """Whether it has not ended."""
        return self.process.poll() is None

    def send(self, message: Message, file: int | None = None) -> None:
        """Send a message, and a file descriptor beside it. Raises OSError if the process has ended."""
        self.channel.send(message, file)

    def answer(self, seconds: float | None) -> Freed | Done | Failed | None:
        """Return its next message, None if none came within so many seconds. Raises EOFError if it has ended.

        `seconds` is None to wait until there is one.
        """
        if seconds is not None and not self.channel.is_waiting(seconds):
            return None
        message, _ = self.channel.receive()
        assert isinstance(message, Freed | Done | Failed)
        return message

    def end(self) -> int:
        """Close the connection, which ends the process, and wait for that. Returns its exit code, or minus a signal."""
        self.channel.socket.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(ENDS_WITHIN_SECONDS)
        self.process.kill()
        return self.process.wait()
