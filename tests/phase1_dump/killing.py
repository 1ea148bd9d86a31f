"""A process that is killed in the middle of a dump, as the kernel kills one that is out of memory."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any
from unittest import mock


def dump_and_die(out: Path, reference: Path, function: str, calls: int) -> int:
    """In a child: dump, and SIGKILL at that call of os.`function`. Returns which signal ended the child."""
    from tests.phase1_dump.dumped import dumped, single_model
    from tests.worlds.fake import fake_world
    from tests.worlds.families import by_name
    from tests.worlds.topology import SINGLE

    with fake_world(SINGLE, 0):
        model = single_model(by_name("qwen3_moe"))
        child = os.fork()
        if not child:
            with mock.patch.object(os, function, _deadly(getattr(os, function), calls)):
                dumped(model, out, reference, max_fragment_bytes=100_000)
            os._exit(0)
        _, status = os.waitpid(child, 0)
    return os.WTERMSIG(status)


def _deadly(real: Any, calls: int) -> Any:
    left = iter(range(calls))

    def call(*arguments: Any) -> Any:
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*arguments)

    return call


def count_fsyncs(out: Path, reference: Path) -> int:
    """How often the same dump calls os.fsync if nobody ends it."""
    from tests.phase1_dump.dumped import dumped, single_model
    from tests.worlds.fake import fake_world
    from tests.worlds.families import by_name
    from tests.worlds.topology import SINGLE

    with fake_world(SINGLE, 0), mock.patch.object(os, "fsync", wraps=os.fsync) as fsync:
        dumped(single_model(by_name("qwen3_moe")), out, reference, max_fragment_bytes=100_000)
    return fsync.call_count
