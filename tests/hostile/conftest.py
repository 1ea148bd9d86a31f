"""The dump, the reference and the output that are spoiled."""

from tests.dumps.worlds import world

__all__ = ["world"]
