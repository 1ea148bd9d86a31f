"""SIGTERM as an exception, as Python has it for Ctrl-C: a command that a scheduler ends can say what it leaves.

Must not know any command, nor its exit code.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class TerminatedError(KeyboardInterrupt):
    """Somebody asked this process to end."""


@contextmanager
def raising() -> Iterator[None]:
    """Raise TerminatedError in the block when SIGTERM comes. Only the main thread of a process can ask for that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _raise)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _raise(_signal: int, _frame: Any) -> None:
    raise TerminatedError
