"""Computes names and shapes of the tensors that a quantized weight becomes, from the row of its format."""

from __future__ import annotations

from collections.abc import Iterator

from ..rectangle import Shape
from .rows import Companion, Format

SUFFIX = ".weight"


def module_of(tensor: str) -> str | None:
    """Return `a.q_proj` for `a.q_proj.weight`, or None for a tensor that is not a weight."""
    return tensor.removesuffix(SUFFIX) if tensor.endswith(SUFFIX) else None


def companion_shape(companion: Companion, shape: Shape) -> Shape:
    """Return the shape of a companion of a weight [N, K], whose last blocks may be incomplete."""
    if companion.divisors is None:
        return ()
    return in_blocks(shape, companion.divisors)


def in_blocks(shape: Shape, block: Shape) -> Shape:
    """Return how many blocks each dimension of `shape` has, counting an incomplete last one."""
    return tuple(-(-size // by) for size, by in zip(shape, block, strict=True))


def companions_of(module: str, shape: Shape, row: Format) -> Iterator[tuple[str, Shape, str]]:
    """Yield the tensors that a weight becomes.

    Args:
        module: the weight's name without its ending.
        shape: [N, K] of the weight.
        row: the format that it is stored in.

    Returns:
        (name, shape, dtype) of each, the packed weight first; a dtype is spelt as safetensors does.
    """
    for companion in row.companions:
        yield f"{module}.{companion.suffix}", companion_shape(companion, shape), companion.dtype


def scaled(size: int, by: int) -> int | None:
    """Return `size` in blocks of `by`, or None if it falls inside a block."""
    blocks, rest = divmod(size, by)
    return None if rest else blocks
