"""Shows the progress of long work on stderr: a line that rewrites itself, or a plain line every 30 s.

Plain lines are for a stderr that is not a terminal, or one that says TERM=dumb. Nothing is printed for work that ends
within two seconds, and a stream that takes nothing, as on a full disk, does not end the work. Safe to call from several
threads. What the bytes are is not known here.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from dataclasses import dataclass, field
from typing import TextIO

QUIET_SECONDS = 2.0
TERMINAL_SECONDS = 0.2
PLAIN_SECONDS = 30.0
GB = 1e9


@dataclass(slots=True)
class Progress:
    """Counts the bytes done of `total_bytes`. With `stream=None` it is silent, as on all but a node's first rank."""

    label: str
    total_bytes: int
    stream: TextIO | None = field(default_factory=lambda: sys.stderr)
    done_bytes: int = 0
    started: float = field(default_factory=time.monotonic)
    shown: float = 0.0
    lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def advance(self, num_bytes: int) -> None:
        """Count bytes, and show the progress when it is time."""
        with self.lock:
            self.done_bytes += num_bytes
            now = time.monotonic()
            if self.stream and now - self.started > QUIET_SECONDS and now - self.shown > self._interval():
                self.shown = now
                self._show(self.stream, now)

    def close(self) -> None:
        """End the line on a terminal."""
        if self.stream and self.shown and rewrites_lines(self.stream):
            _write(self.stream, "\n")

    def _interval(self) -> float:
        return TERMINAL_SECONDS if self.stream and rewrites_lines(self.stream) else PLAIN_SECONDS

    def _show(self, stream: TextIO, now: float) -> None:
        rate = self.done_bytes / (now - self.started)
        left = f", {max(0, self.total_bytes - self.done_bytes) / rate:.0f} s left" if rate else ""
        text = (
            f"{self.label}: {self.done_bytes / GB:.1f} of {self.total_bytes / GB:.1f} GB, "
            f"{rate / GB:.2f} GB/s{left}"
        )
        _write(stream, f"\r{text:<78}" if rewrites_lines(stream) else f"{text}\n")


def rewrites_lines(stream: TextIO) -> bool:
    """Whether what reads a stream is a terminal that can go back to the begin of a line."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def _write(stream: TextIO, text: str) -> None:
    with contextlib.suppress(OSError):
        stream.write(text)
        stream.flush()
