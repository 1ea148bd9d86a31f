"""Dumps beside training, as tests begin them and look at them."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from threading import Timer
from typing import Any

from shardmerge.common.manifest import Manifest
from shardmerge.phase1_dump import Dumping, dump_async
from shardmerge.phase1_dump.background.writer_process import WriterProcess
from shardmerge.phase1_dump.dump_in_background import background_of
from tests.phase1_dump.dumped import GENERATION

FAILED = "rank-00000.failed.json"
PATIENCE_S = 60


def begin(model: Any, out: Path, reference: Path, **options: Any) -> Dumping:
    """Begin a dump."""
    return dump_async(model, out, hf_reference=reference, **(GENERATION | options))


def written(dumping: Dumping) -> Manifest:
    """What was written, without the time that it took."""
    manifest = dumping.wait()
    assert manifest is not None
    kept = {name: held for name, held in manifest.statistics.items() if not name.startswith("seconds_")}
    assert len(manifest.statistics) == len(kept) + 2
    return replace(manifest, statistics=kept)


def writer() -> WriterProcess:
    """The process that writes the dumps of this one."""
    found = background_of(os.getpid()).writer
    assert found is not None
    return found


def child() -> int:
    """Its process id."""
    return writer().process.pid


@contextmanager
def patience() -> Iterator[None]:
    """Kill the writer if the block takes too long, and fail: whoever waits for it then goes on."""
    timer = Timer(PATIENCE_S, writer().process.kill)
    timer.start()
    try:
        yield
        assert timer.is_alive(), f"it took more than {PATIENCE_S} seconds"
    finally:
        timer.cancel()
        timer.join()


@contextmanager
def stopped() -> Iterator[int]:
    """Stop the writer for the time of the block, unless that kills it. Yields its process id."""
    found = writer()
    os.kill(found.process.pid, signal.SIGSTOP)
    try:
        yield found.process.pid
    finally:
        if found.runs():
            found.process.send_signal(signal.SIGCONT)
