"""Implementations of `source.Source`: so far a live model of megatron-core (`live_model.py`).

Everything else here serves it. What a later source needs too is not here but in `rectangles/`.
"""
