"""Turns rectangles into files: who writes a rectangle, in which fragment, and the directory of a rank.

Knows a `source.Source` and nothing behind it, and imports no torch.
"""
