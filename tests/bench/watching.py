"""A process and its workers, watched while they run: seconds, the largest memory of each, open files.

Memory is VmHWM, the kernel's own high-water mark, so that sampling misses nothing but the last moments of a process.
A worker is a process that multiprocessing spawned, or forked from a server. Must not know what is run.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

INTERVAL_S = 0.02
WORKERS = (
    b"spawn_main",
    b"multiprocessing.forkserver",
)  # in the command line of a worker, and of their server
SHARDMERGE = [
    sys.executable,
    "-W",
    "ignore",
    "-c",
    "from shardmerge.common.command.group import main; main()",
]


@dataclass(frozen=True, slots=True)
class Ran:
    """`open_files`: the most that the parent or one of its workers had at a time; `cpu_s` is that of all of them."""

    seconds: float
    cpu_s: float = 0
    parent_peak_bytes: int = 0
    worker_peak_bytes: int = 0
    open_files: int = 0


def ran(command: Sequence[str | Path]) -> Ran:
    """Run to the end. Raises CalledProcessError if it fails, after showing its output."""
    with tempfile.TemporaryFile("w+") as output:
        began = time.perf_counter()
        process = subprocess.Popen([*map(str, command)], stdout=output, stderr=subprocess.STDOUT)
        with Watch(process.pid) as watch:
            _, status, used = os.wait4(process.pid, 0)
            seconds = time.perf_counter() - began
        code = process.returncode = os.waitstatus_to_exitcode(status)
        if code:
            output.seek(0)
            print(output.read(), file=sys.stderr)
            raise subprocess.CalledProcessError(code, command)
    cpu = used.ru_utime + used.ru_stime
    return Ran(seconds, cpu, watch.parent_peak_bytes, watch.worker_peak_bytes, watch.open_files)


def shardmerge(*arguments: str | Path) -> Ran:
    """The command, as a user starts it."""
    return ran([*SHARDMERGE, *arguments])


class Watch:
    """Samples a process and its children until the block ends."""

    def __init__(self, parent: int) -> None:
        self.parent_peak_bytes = self.worker_peak_bytes = self.open_files = 0
        self._parent = parent
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while not self._stop.wait(INTERVAL_S):
            self.parent_peak_bytes = max(self.parent_peak_bytes, self._look(self._parent))
            for child in children(self._parent):
                for worker in (child, *children(child)):
                    self.worker_peak_bytes = max(self.worker_peak_bytes, self._look(worker, WORKERS))

    def _look(self, pid: int, commands: Sequence[bytes] = (b"",)) -> int:
        """VmHWM of a process; 0 if it is gone, or another one: before its exec a child is a copy of its parent."""
        try:
            running = Path(f"/proc/{pid}/cmdline").read_bytes()
            if not any(command in running for command in commands):
                return 0
            self.open_files = max(self.open_files, len(os.listdir(f"/proc/{pid}/fd")))
            return high_water_bytes(pid)
        except (FileNotFoundError, ProcessLookupError):
            return 0


def children(pid: int) -> Iterator[int]:
    """Processes that any thread of `pid` started; none if it is gone."""
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            yield from map(int, (thread / "children").read_text().split())
    except (FileNotFoundError, ProcessLookupError):
        return


def high_water_bytes(pid: int) -> int:
    """VmHWM; 0 of a process that has ended and was not waited for."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
