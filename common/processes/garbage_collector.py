"""Pauses Python's garbage collector where it costs more than it finds.

Millions of objects of which none is part of a cycle take a tenth longer with it, and it can keep a process that trains
for a third of a second. What the objects are is not known here.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def paused() -> Iterator[None]:
    """Pause the collector inside the block, and leave it afterwards as it was before."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
