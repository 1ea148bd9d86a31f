"""Shows the progress of long work on stderr: a line that rewrites itself, or a plain line every 30 s.

Plain lines are for a stderr that is not a terminal. Nothing is printed for work that ends within two seconds.
Safe to call from several threads. What the bytes are is not known here.
"""

from __future__ import annotations

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
        if self.stream and self.shown and self.stream.isatty():
            self.stream.write("\n")
            self.stream.flush()

    def _interval(self) -> float:
        return TERMINAL_SECONDS if self.stream and self.stream.isatty() else PLAIN_SECONDS

    def _show(self, stream: TextIO, now: float) -> None:
        rate = self.done_bytes / (now - self.started)
        remaining = (self.total_bytes - self.done_bytes) / rate if rate else 0.0
        text = (
            f"{self.label}: {self.done_bytes / GB:.1f} of {self.total_bytes / GB:.1f} GB, "
            f"{rate / GB:.2f} GB/s, {remaining:.0f} s left"
        )
        stream.write(f"\r{text:<78}" if stream.isatty() else f"{text}\n")
        stream.flush()
