"""Names and shapes of the tensors that a quantized weight becomes: arithmetic on a row of the table of formats."""

from __future__ import annotations

from collections.abc import Iterator

from ..rectangle import Shape
from .rows import Companion, Format

SUFFIX = ".weight"


def module_of(tensor: str) -> str | None:
    """`a.q_proj` of `a.q_proj.weight`; None for a tensor that is not a weight."""
    return tensor.removesuffix(SUFFIX) if tensor.endswith(SUFFIX) else None


def companion_shape(companion: Companion, shape: Shape) -> Shape:
    """Shape of a companion of a weight [N, K]: at the end a block may be incomplete."""
    if companion.divisors is None:
        return ()
    return tuple(-(-size // by) for size, by in zip(shape, companion.divisors, strict=True))


def companions_of(module: str, shape: Shape, row: Format) -> Iterator[tuple[str, Shape, str]]:
    """The tensors that a weight becomes.

    Args:
        module: the weight's name without its ending.
        shape: [N, K] of the weight.
        row: the format that it is stored in.

    Returns:
        (name, shape, dtype) of each, the packed weight first; a dtype is spelt as safetensors does.
    """
    for one in row.companions:
        yield f"{module}.{one.suffix}", companion_shape(one, shape), one.dtype


def scaled(size: int, by: int) -> int | None:
    """`size` in blocks of `by`, None if it falls inside a block."""
    blocks, rest = divmod(size, by)
    return None if rest else blocks
