"""A merge, a check and their peer `cp`, each as a process: seconds until everything is on the disk, and memory.

`cp` is followed by an fsync of every file it wrote, as a merge does.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

ROUNDS = 3
SHARDMERGE = [sys.executable, "-W", "ignore", "-c", "from shardmerge.common.cli import main; main()"]


@dataclass(frozen=True, slots=True)
class Ran:
    """One process and its children: seconds, and the largest resident memory of any one of them."""

    seconds: float
    peak_bytes: int


def ran(command: Sequence[str]) -> Ran:
    """Run to the end. Raises CalledProcessError if it fails, after showing its output."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    output = process.stdout.read()
    _, status, usage = os.wait4(process.pid, 0)
    code = process.returncode = os.waitstatus_to_exitcode(status)
    if code:
        print(output, file=sys.stderr)
        raise subprocess.CalledProcessError(code, command)
    return Ran(time.perf_counter() - began, usage.ru_maxrss * 1024)


def copied(dump: Path, out: Path) -> Ran:
    """`cp -r` and an fsync of each file."""
    began = time.perf_counter()
    found = ran(["cp", "-r", str(dump), str(out)])
    for path in out.rglob("*"):
        if path.is_file():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    return Ran(time.perf_counter() - began, found.peak_bytes)


def merged(dump: Path, out: Path, reference: Path, *options: str) -> Ran:
    """`shardmerge merge`."""
    return ran([*SHARDMERGE, "merge", str(dump), str(out), "--hf-reference", str(reference), *options])


def rounds(work: Callable[[Path], Ran], scratch: Path) -> list[Ran]:
    """The work several times, into an empty directory each time."""
    found = []
    for number in range(ROUNDS):
        out = scratch / f"round-{number}"
        os.sync()
        found.append(work(out))
        shutil.rmtree(out)
    return found
