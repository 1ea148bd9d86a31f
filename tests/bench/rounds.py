"""Contestants that take turns: every round runs each of them once, warm or cold, and a ratio is the median of rounds.

Warm: its input was read just before. Cold: its input was dropped from the page cache, by POSIX_FADV_DONTNEED after
fsync, which needs no privilege (a file system may ignore it). What the machine does beside hits all contestants of a
round alike. Must not know what they do.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from .line import seconds
from .watching import Ran

ROUNDS = 3
WARM, COLD = "warm", "cold"
READ_BYTES = 1 << 20
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Contestant:
    """`work` gets a path that does not exist, to write to; `inputs` is the folder that it reads."""

    inputs: Path
    work: Callable[[Path], Ran]


@dataclass(frozen=True, slots=True)
class Turns:
    """What each contestant took, by name, a value a round."""

    runs: dict[str, list[Ran]]

    def seconds(self, name: str) -> float:
        """The median round."""
        return median(run.seconds for run in self.runs[name])

    def told(self, name: str) -> str:
        """By the clock, and of the processor where that was measured."""
        cpu = median(run.cpu_s for run in self.runs[name])
        return seconds(self.seconds(name)) + (f" ({seconds(cpu)} cpu)" if cpu else "")

    def ratio(self, name: str, peer: str, without: float = 0) -> float:
        """Seconds of one over those of another, `without` so many seconds of its own: the median round."""
        pairs = zip(self.runs[name], self.runs[peer], strict=True)
        return median((ours.seconds - without) / theirs.seconds for ours, theirs in pairs)

    def worker_peak(self, name: str) -> int:
        return max(run.worker_peak_bytes for run in self.runs[name])

    def parent_peak(self, name: str) -> int:
        return max(run.parent_peak_bytes for run in self.runs[name])

    def open_files(self, name: str) -> int:
        """Of that process, parent or worker, which had most at once."""
        return max(run.open_files for run in self.runs[name])


def take_turns(
    cache: str, scratch: Path, contestants: Mapping[str, Contestant], rounds: int = ROUNDS
) -> Turns:
    """Run all of them `rounds` times. `scratch` is an existing folder; what they write is removed each time."""
    runs: dict[str, list[Ran]] = {name: [] for name in contestants}
    for number in range(rounds):
        for name, one in rotated(list(contestants.items()), number):
            out = scratch / f"out-{number}"
            (drop if cache == COLD else warm)(one.inputs)
            os.sync()
            runs[name].append(one.work(out))
            remove(out)
    return Turns(runs)


def rotated(every: list[T], by: int) -> list[T]:
    """The first ones last: whoever comes after the same contestant each time might always find memory in one state."""
    at = by % len(every)
    return every[at:] + every[:at]


def remove(out: Path) -> None:
    """A file, a folder or nothing."""
    if out.is_dir():
        shutil.rmtree(out)
    else:
        out.unlink(missing_ok=True)


def files(folder: Path) -> Iterator[Path]:
    """All files below a folder."""
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def drop(folder: Path) -> None:
    """From the page cache."""
    for path in files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())  # dirty pages cannot be dropped
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def warm(folder: Path) -> None:
    """Read every file, so that it lies in the page cache if it fits. Holes of sparse files are left out."""
    buffer = bytearray(READ_BYTES)
    for path in files(folder):
        with open(path, "rb", buffering=0) as file:
            for begin, end in extents(file.fileno()):
                for at in range(begin, end, READ_BYTES):
                    os.preadv(file.fileno(), [buffer], at)


def extents(file: int) -> Iterator[tuple[int, int]]:
    """(begin, end) of what an open file holds between its holes."""
    at, size = 0, os.fstat(file).st_size
    while at < size:
        try:
            begin = os.lseek(file, at, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            return  # nothing but a hole is left
        at = os.lseek(file, begin, os.SEEK_HOLE)
        yield begin, at


def sync(folder: Path) -> None:
    """Fsync every file: a contestant that leaves that out does it here."""
    for path in files(folder):
        with open(path, "rb") as file:
            os.fsync(file.fileno())
