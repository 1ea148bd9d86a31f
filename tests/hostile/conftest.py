"""The dump, the reference and the output that are spoiled."""

from __future__ import annotations

import pytest

from tests.dumps.worlds import MakeWorld, World, world
from tests.hostile.running import merge, written

__all__ = ["world"]


@pytest.fixture
def merged(world: MakeWorld) -> World:
    """A dump and the output that was merged from it."""
    one = written(world)
    merge(one, codes=(0,))
    return one
