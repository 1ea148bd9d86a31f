"""Processes that are killed in the middle of a dump, as the kernel kills one that is out of memory.

`python -m tests.phase1_dump.killing OUT REFERENCE` builds a model and forks a child for every moment, which dumps to
OUT/MOMENT and dies there. A process of its own, with one thread: only then is a fork of it sound.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any
from unittest import mock

FAMILY = "qwen3_moe"

# moment: (function of os, how many calls of it succeed)
MOMENTS = {
    "in the first file": ("write", 0),
    "between two tensors": ("write", 3),
    "in a later file": ("write", 40),
    "before a file is durable": ("fsync", 2),
    "before the manifest has its name": ("rename", 0),
    "before the directory has its name": ("rename", 1),
}
LAST = "before the rename is durable"


def main(out: Path, reference: Path) -> None:
    """Print which signal ended each child, as JSON."""
    from tests.phase1_dump.dumped import dumped, single_model
    from tests.worlds.fake import fake_world
    from tests.worlds.families import by_name
    from tests.worlds.topology import SINGLE

    with fake_world(SINGLE, 0):
        model = single_model(by_name(FAMILY))

        def dump_to(name: str) -> None:
            dumped(model, out / name, reference, max_fragment_bytes=100_000)

        with mock.patch.object(os, "fsync", wraps=os.fsync) as fsync:
            dump_to("counted")
        moments = MOMENTS | {LAST: ("fsync", fsync.call_count - 1)}
        print(json.dumps({name: _killed(name, dump_to, *moment) for name, moment in moments.items()}))


def _killed(name: str, dump_to: Any, function: str, calls: int) -> int:
    child = os.fork()
    if not child:
        with mock.patch.object(os, function, _deadly(getattr(os, function), calls)):
            dump_to(name)
        os._exit(0)
    return os.WTERMSIG(os.waitpid(child, 0)[1])


def _deadly(real: Any, calls: int) -> Any:
    left = iter(range(calls))

    def call(*arguments: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    return call


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
