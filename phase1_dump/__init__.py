"""Phase one: every rank writes the rectangles it owns, without entering a collective."""

from .dump import dump

__all__ = ["dump"]
