"""Host memory of this process, watched by another: how far it rises, and what of it stays.

Anonymous and shared memory count; page cache of written files does not.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Self

WATCHER = """
import sys, time
from tests.gpu.memory import held
peak = 0
while not sys.stdin in __import__("select").select([sys.stdin], [], [], 0.005)[0]:
    peak = max(peak, held(int(sys.argv[1])))
print(peak)
"""


def held(process: int | str = "self") -> int:
    """RssAnon and RssShmem of a process, in bytes."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon", "RssShmem")))


class Watched:
    """`above`: bytes above what was held before, at most; `kept`: what was still held at the end of the block."""

    above = kept = 0

    def __enter__(self) -> Self:
        self._before = held()
        self._watcher = subprocess.Popen(
            [sys.executable, "-c", WATCHER, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def __exit__(self, *_: object) -> None:
        self.kept = held() - self._before
        peak, _errors = self._watcher.communicate("end\n")
        self.above = max(int(peak or 0) - self._before, 0)
