"""A dump and its reference, ready to be merged or spoiled: `world`."""

from tests.dumps.worlds import world

__all__ = ["world"]
