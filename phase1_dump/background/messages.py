"""What parent and child say to each other, and the socket through which they do.

Both run the same installation, so messages are pickled. Must not know what anybody does with them.
"""

from __future__ import annotations

import pickle
import select
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from shardmerge.common.manifest import Manifest

from ..fragments.write_rank import RankPlan
from ..generation import Generation
from ..source import ManifestFacts, Seen
from ..world import World

LENGTH = struct.Struct("<Q")


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """A rank to be written. The recipe of each holding of the plan is a `Spot`.

    `streams`: how many fragments may be written at once. `num_bytes`: how many bytes will come. `memory_bytes`: how
    much of the shared memory they pass through, from its beginning on.
    """

    world: World
    generation: Generation
    facts: ManifestFacts
    plan: RankPlan
    out: Path
    streams: int
    num_bytes: int
    memory_bytes: int
    quiet: bool = False


@dataclass(frozen=True, slots=True)
class Spot:
    """Where the bytes of a holding pass: from `begin` of all bytes of a job. It is holding `number` of them."""

    number: int
    begin: int


@dataclass(frozen=True, slots=True)
class Memory:
    """From here on this is the shared memory. Its file descriptor travels beside the message."""


@dataclass(frozen=True, slots=True, eq=False)
class Begin:
    job: Job


@dataclass(frozen=True, slots=True)
class Filled:
    """All bytes up to `end` of the sequence are there, and these are what was seen of the holdings that follow."""

    end: int
    seen: tuple[Seen, ...] = ()


@dataclass(frozen=True, slots=True)
class Complete:
    """Nothing will come any more. `statistics` go into the manifest."""

    statistics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Abandon:
    """The rest will not come: the parent failed, and has recorded why."""


@dataclass(frozen=True, slots=True)
class Freed:
    """The memory of all bytes up to `end` of the sequence may be used again."""

    end: int


@dataclass(frozen=True, slots=True, eq=False)
class Done:
    """The rank is complete, and this is its manifest."""

    manifest: Manifest


@dataclass(frozen=True, slots=True, eq=False)
class Failed:
    """The rank failed, which is recorded in the dump."""

    error: Exception


Message: TypeAlias = Memory | Begin | Filled | Complete | Abandon | Freed | Done | Failed


@dataclass(slots=True)
class Channel:
    """One end of the connection. One thread sends at a time, and one receives."""

    socket: socket.socket

    def send(self, message: Message, file: int | None = None) -> None:
        """Send a message, and a file descriptor beside it. Raises OSError if the other process has ended.

        If the sending is interrupted, as by Ctrl-C, the connection ends: what came after half a message would be lost.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        head = LENGTH.pack(len(data))
        try:
            if file is None:
                self.socket.sendall(head)
            else:
                socket.send_fds(self.socket, [head], [file])
            self.socket.sendall(data)
        except BaseException:
            with suppress(OSError):  # it has ended already
                self.socket.shutdown(socket.SHUT_RDWR)
            raise

    def receive(self) -> tuple[Any, int | None]:
        """Return the next message, and the file descriptor that came with it. Raises EOFError if there will be none."""
        try:
            head, files, _, _ = socket.recv_fds(self.socket, LENGTH.size, 1)
            head += self._exactly(LENGTH.size - len(head)) if head else b""
            if not head:
                raise EOFError
            data = self._exactly(LENGTH.unpack(head)[0])
        except ConnectionError as error:
            raise EOFError from error
        return pickle.loads(data), files[0] if files else None

    def is_waiting(self, seconds: float) -> bool:
        """Whether a message, or the end of the connection, is there within so many seconds."""
        poll = select.poll()  # select() takes no more than the first 1024 descriptors of a process
        poll.register(self.socket, select.POLLIN)
        return bool(poll.poll(round(seconds * 1000)))

    def _exactly(self, num_bytes: int) -> bytes:
        data = bytearray()
        while len(data) < num_bytes:
            more = self.socket.recv(min(num_bytes - len(data), 1 << 20))
            if not more:
                raise EOFError
            data += more
        return bytes(data)
