"""Pauses Python's garbage collector while millions of objects are made, none of which is part of a cycle.

The collector would otherwise take a tenth of the time. What the objects are is not known here.
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
