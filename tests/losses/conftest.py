"""Dumps to be merged: `world`, and `one` whose output has shards of both kinds."""

from __future__ import annotations

import pytest

from tests.dumps.dumps import Topology, moe_config
from tests.dumps.worlds import MakeWorld, World, world

__all__ = ["world"]


@pytest.fixture
def one(world: MakeWorld) -> World:
    """A dump of four ranks. Merged, some of its shards are adopted, and others are assembled."""
    return world(Topology(tp=2, ep=2), moe_config()).write()
