"""The C library that makes file-system calls go wrong: builds it, and speaks to it through one mapped file.

Must not know what is being tortured. The numbers are those of shim.c.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import mmap
import os
import shutil
import subprocess
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
CONTROL = "TORTURE_CONTROL"  # the variable by which processes that a command starts find the control file
ENTRIES, SHOWN_BYTES, ROOT_BYTES = 1 << 14, 240, 1024


class Kind(IntEnum):
    """What a call does."""

    OPEN = 0
    CREATE = 1
    READ = 2
    WRITE = 3
    COPY = 4
    SYNC = 5
    RENAME = 6
    LINK = 7
    UNLINK = 8
    MKDIR = 9
    RMDIR = 10
    TRUNCATE = 11
    LIST = 12
    STAT = 13
    LOCK = 14
    MODE = 15


class Act(IntEnum):
    """What happens to the call that is struck."""

    COUNT = 0  # nothing: calls are counted
    KILL = 1  # all processes of the command are killed before it
    KILL_ONE = 2  # only the process that makes it
    HALF = 3  # half of it is done, and all processes are killed
    FAIL = 4
    SHORT = 5  # half of it is done, which the caller is told
    PAUSE = 6  # it waits until the harness says go


IDLE, WAITING, GO = range(3)
CHANGING = frozenset(Kind) - {Kind.OPEN, Kind.READ, Kind.LIST, Kind.STAT, Kind.LOCK}
GROWING = frozenset({Kind.CREATE, Kind.WRITE, Kind.COPY, Kind.SYNC, Kind.RENAME, Kind.LINK, Kind.MKDIR})
PARTIAL = frozenset({Kind.READ, Kind.WRITE})
INTERRUPTIBLE = frozenset({Kind.OPEN, Kind.CREATE, Kind.READ, Kind.WRITE, Kind.LOCK})


@dataclass(frozen=True, slots=True)
class Strike:
    """What is done to a command: the first call of `kinds` from number `at` on is struck; 0 strikes none."""

    act: Act = Act.COUNT
    at: int = 0
    kinds: Collection[Kind] = tuple(Kind)
    error: int = errno.EIO
    sticky: bool = False
    link_error: int = 0
    lock_error: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """A call that was made: what it was, on which path below the root, and with how many bytes."""

    kind: Kind
    path: str
    size: int

    def __str__(self) -> str:
        return f"{self.kind.name.lower()} {self.path or '/'}"


class _Entry(ctypes.Structure):
    _fields_ = [
        ("kind", ctypes.c_uint32),
        ("process", ctypes.c_uint32),
        ("size", ctypes.c_uint64),
        ("path", ctypes.c_char * SHOWN_BYTES),
    ]


class _Control(ctypes.Structure):
    _fields_ = [
        ("calls", ctypes.c_uint64),
        ("target", ctypes.c_uint64),
        ("mode", ctypes.c_uint32),
        ("kinds", ctypes.c_uint32),
        ("error", ctypes.c_int32),
        ("sticky", ctypes.c_uint32),
        ("link_error", ctypes.c_int32),
        ("lock_error", ctypes.c_int32),
        ("state", ctypes.c_uint32),
        ("root_bytes", ctypes.c_uint32),
        ("struck", ctypes.c_uint64),
        ("root", ctypes.c_char * ROOT_BYTES),
        ("trace", _Entry * ENTRIES),
    ]


class Watch:
    """The file through which one command is watched and struck."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with open(path, "w+b") as file:
            file.truncate(ctypes.sizeof(_Control))
            self._control = _Control.from_buffer(mmap.mmap(file.fileno(), 0))

    def reset(self, root: Path, strike: Strike) -> None:
        """Prepare for the next command, of whose calls those below `root` count."""
        control = self._control
        control.calls = control.struck = control.state = 0
        control.root, control.root_bytes = os.fsencode(root), len(os.fsencode(root))
        control.kinds = sum(1 << kind for kind in strike.kinds)
        control.target, control.mode, control.error = strike.at, strike.act, strike.error
        control.sticky, control.link_error, control.lock_error = (
            strike.sticky,
            strike.link_error,
            strike.lock_error,
        )

    def is_waiting(self) -> bool:
        return bool(self._control.state == WAITING)

    def go(self) -> None:
        """Let the call that waits go on."""
        self._control.state = GO

    @property
    def num_calls(self) -> int:
        return int(self._control.calls)

    @property
    def struck(self) -> int:
        """The number of the call that was struck, 0 if none was."""
        return int(self._control.struck)

    def call(self, number: int) -> Call:
        """What call `number` was, counted from 1."""
        entry = self._control.trace[min(number, ENTRIES - 1)]
        return Call(Kind(entry.kind), entry.path.decode(errors="replace"), entry.size)

    def trace(self) -> Sequence[Call]:
        """All calls in order; the first has index 0."""
        return [self.call(number) for number in range(1, min(self.num_calls, ENTRIES - 1) + 1)]


def build(folder: Path) -> Path:
    """Compile the library into `folder`, unless it is there. Raises FileNotFoundError without a compiler."""
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]
    library = folder / f"shim-{digest}.so"
    if not library.exists():
        compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
        if compiler is None:
            raise FileNotFoundError("make torture needs a C compiler: cc, gcc and clang were not found")
        folder.mkdir(parents=True, exist_ok=True)
        temporary = library.with_suffix(f".{os.getpid()}")
        subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", temporary, SOURCE, "-ldl"], check=True)
        temporary.rename(library)
    return library


def arm(library: Path, watch: Path | None) -> None:
    """Have the library, which is preloaded, watch this process and all that it starts; None ends that."""
    armed = ctypes.CDLL(str(library)).torture_arm(os.fsencode(watch) if watch else None)
    if armed:
        raise OSError(f"{watch} cannot be mapped")


def require_layout(library: Path) -> None:
    """Raise RuntimeError if C and Python do not mean the same bytes."""
    size = ctypes.CDLL(str(library)).torture_control_bytes
    size.restype = ctypes.c_ulong
    if size() != ctypes.sizeof(_Control):
        raise RuntimeError(f"struct control has {size()} bytes in C, {ctypes.sizeof(_Control)} in Python")
