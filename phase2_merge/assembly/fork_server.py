"""The server that workers are forked from: spawned once, it has none of our threads and locks, and imports once.

A spawned worker takes a quarter of a second to import what it needs; a fork of a process that has it takes none.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext

PRELOADED = ["shardmerge.phase2_merge.assembly.workers", "shardmerge.common.command.group"]


def default_workers() -> int:
    """Return how many workers a merge has by default: as many as this process may use cores."""
    return len(os.sched_getaffinity(0))


def start() -> BaseContext:
    """Start the server, unless it runs. It imports in the background.

    Neither it nor a worker ever sees Ctrl-C, which a terminal sends to all: the parent alone decides what it means.
    The server listens on a socket in TMPDIR. Where that cannot be (a path of more than 80 characters), workers are
    spawned.

    Returns the multiprocessing context that forks from the server.
    """
    resource_tracker.ensure_running()  # it unblocks signals when it starts, so it must be running before
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.set_forkserver_preload(PRELOADED)
        forkserver.ensure_running()
    except OSError:  # whatever else the machine refuses, spawned workers meet it too, and say so
        return multiprocessing.get_context("spawn")
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")
