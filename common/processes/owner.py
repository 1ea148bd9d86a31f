"""Who is writing something: a record that another process, perhaps on another host, can judge.

A lock of the kernel ends with its process, but it may not exist on a file system, or hold on one node only. A record
holds everywhere, but outlives its process. So both are kept, and this module says whether the process of a record
still runs. Must not know what is being written.
"""

from __future__ import annotations

import os
import socket
import time
from dataclasses import asdict, dataclass, fields, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

from .. import canonical_json, plausible_sizes, regular_files
from ..errors import CorruptFileError
from ..places import new_token

# in place of when a process started: there is one, but of another user, and the kernel shows no more
HIDDEN = -1
MAX_PROCESS = 1 << 22  # PID_MAX_LIMIT of Linux
START_TIME = 19  # field 22 of /proc/PID/stat, counted behind the name of the program; see proc(5)


class State(Enum):
    """Whether the process of a record still runs, as far as this process can tell."""

    RUNS = "runs"
    ENDED = "ended"
    # it is on another host, in another container, or the kernel hides it (hidepid, proc(5))
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Owner:
    """A process that writes.

    Attributes:
        token: Random, so that no two owners are taken for each other.
        host: Its name.
        machine: /etc/machine-id, empty where there is none.
        boot: The kernel's id of this start of the machine, empty where it does not tell.
        namespace: Of process ids: containers of one host count processes anew.
        process: Its id.
        started: When the process started, in ticks of the kernel: ids are used again. 0 where it does not tell.
        since: When the record was made, in words.
        task: What it is doing, in words for a message.
        subject: What it works on. Owners of one subject may share; empty for one that never shares.
    """

    token: str
    host: str
    machine: str
    boot: str
    namespace: str
    process: int
    started: int
    since: str
    task: str
    subject: str = ""

    def __str__(self) -> str:
        return f"{self.task} (process {self.process} on {self.host}, since {self.since})"

    def state(self) -> State:
        """Return whether its process still runs."""
        me = here("")
        if (self.host, self.machine) != (me.host, me.machine):
            return State.UNKNOWN
        if self.boot != me.boot:  # started again, or another container host where both bear one name
            return State.ENDED if self.machine else State.UNKNOWN
        if self.namespace != me.namespace:
            return State.UNKNOWN
        started = _started(self.process)
        if started == HIDDEN:
            return State.UNKNOWN
        return State.RUNS if started == self.started else State.ENDED

    def is_this_process(self) -> bool:
        """Whether it is the process that asks."""
        me = here("")
        return replace(self, token="", since="", task="", subject="") == replace(
            me, token="", since="", task=""
        )

    def on_this_kernel(self) -> bool:
        """Whether its process runs, or ran, under the kernel that runs this one: a lock of the kernel reaches it."""
        return bool(self.boot) and self.boot == here("").boot

    def as_json(self) -> dict[str, Any]:
        """Return what a record holds."""
        return asdict(self)


def here(task: str, subject: str = "") -> Owner:
    """Return a new owner: this process.

    Args:
        task: What it is doing, in words for a message.
        subject: What it works on, for owners that may share.

    Returns:
        An owner with a token of its own.
    """
    return Owner(
        token=new_token(),
        host=socket.gethostname(),
        machine=_text(Path("/etc/machine-id")),
        boot=_text(Path("/proc/sys/kernel/random/boot_id")),
        namespace=_namespace(),
        process=os.getpid(),
        started=_started(os.getpid()) or 0,
        since=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime()),
        task=task,
        subject=subject,
    )


def of_json(value: Any) -> Owner:
    """Return the owner that a record holds. Raises ValueError if it holds anything else.

    A later version may record more, which is passed over: its owner must not be taken for one that ended.
    """
    kinds = {one.name: int if one.name in ("process", "started") else str for one in fields(Owner)}
    if not isinstance(value, dict) or not value.keys() >= kinds.keys():
        raise ValueError("it is not the record of an owner")
    known = {name: value[name] for name in kinds}
    for name, held in known.items():
        if type(held) is not kinds[name] or (isinstance(held, str) and not held.isprintable()):
            raise ValueError(f"{name} of an owner is {held!r:.60}")
    return Owner(**known)


def read(path: Path, root: Path) -> Owner | None:
    """Return the owner of a record, None for one that is not whole, or gone.

    Args:
        path: The record.
        root: The folder of whoever is asked about, below which it lies.

    Returns:
        The owner.

    Raises:
        OSError: It cannot be read, which says nothing about its owner.
    """
    try:
        return of_json(
            canonical_json.decode(regular_files.read(path, root, plausible_sizes.OWNER.limit(path)))
        )
    except (ValueError, CorruptFileError, FileNotFoundError):
        return None


@cache
def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:  # no such file: a container may have none, and other systems than Linux have neither
        return ""


def _namespace() -> str:
    try:
        return os.readlink("/proc/self/ns/pid")
    except OSError:  # as above
        return ""


def _started(process: int) -> int | None:
    """Return when a process started, in ticks of the kernel. None if there is none, or only what is left of one.

    HIDDEN if there is one that the kernel does not show. 0 for one that exists, where it never tells.
    """
    try:
        after_name = (
            Path(f"/proc/{process}/stat")
            .read_text(encoding="ascii", errors="replace")
            .rpartition(")")[2]
            .split()
        )
    except OSError:
        if not _exists(process):
            return None
        return HIDDEN if os.path.isdir("/proc/self") else 0
    return None if after_name[0] in "ZX" else int(after_name[START_TIME])


def _exists(process: int) -> bool:
    """Whether there is a process of this id, whoever it belongs to."""
    if not 0 < process <= MAX_PROCESS:
        return False
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
