"""The server that workers are forked from: spawned once, it has none of our threads and locks, and imports once.

A spawned worker takes a quarter of a second to import what it needs; a fork of a process that has it takes none. They
need nothing of the program that calls us, and do not import its main module, as multiprocessing would have them do:
a script may call `merge` at its top level. Ctrl-C and SIGTERM wait while a worker is started: one that the server was
asked for, and that nobody knows yet, could not be ended, and would find the pool gone.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import (
    BaseContext,
    ForkServerContext,
    ForkServerProcess,
    SpawnContext,
    SpawnProcess,
)
from types import FrameType

PRELOADED = ["shardmerge.phase2_merge.assembly.workers", "shardmerge.common.command.group"]


class ForkedWorker(ForkServerProcess):
    """A process that the server forks."""

    def start(self) -> None:
        with _uninterrupted(), _main_without_a_place():
            super().start()


class SpawnedWorker(SpawnProcess):
    """A process that is spawned where there can be no server."""

    def start(self) -> None:
        with _uninterrupted(), _main_without_a_place():
            super().start()


class _Forking(ForkServerContext):
    Process = ForkedWorker


class _Spawning(SpawnContext):
    Process = SpawnedWorker


@contextmanager
def _main_without_a_place() -> Iterator[None]:
    """Hide where the main module comes from while a process is started, which would import it again.

    Source: multiprocessing/spawn.py, get_preparation_data.
    """
    main = sys.modules["__main__"].__dict__
    kept: dict[str, object] = {name: main[name] for name in ("__spec__", "__file__") if name in main}
    main.pop("__file__", None)
    main["__spec__"] = None
    try:
        yield
    finally:
        main.update(kept)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Let Ctrl-C or SIGTERM wait for the end of the block, where Python handles them. A second one does not wait."""
    if threading.current_thread() is not threading.main_thread():  # no handler runs here
        yield
        return
    found = {one: signal.getsignal(one) for one in (signal.SIGINT, signal.SIGTERM)}
    handlers = {one: handler for one, handler in found.items() if callable(handler)}
    came: list[int] = []

    def wait(number: int, frame: FrameType | None) -> None:
        came.append(number)
        if len(came) > 1:
            handlers[signal.Signals(number)](number, frame)

    try:
        for one in handlers:
            signal.signal(one, wait)
        yield
    finally:
        for one, handler in handlers.items():
            signal.signal(one, handler)
        if came:
            signal.raise_signal(came[0])


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
        return _Spawning()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return _Forking()
