"""A rectangle: the part of one Hugging Face tensor that one rank holds. Geometry only, no bytes.

`global_shape`, `global_offset` and `local_shape` mean what they mean in megatron-core's ShardedTensor
(megatron/core/dist_checkpointing/mapping.py), but of the Hugging Face tensor.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from .dtypes import byte_size
from .errors import BadInputError

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Rectangle:
    """A box inside tensor `name`. Raises BadInputError if it lies outside `global_shape`."""

    name: str
    dtype: str
    global_shape: Shape
    global_offset: Shape
    local_shape: Shape

    def __post_init__(self) -> None:
        ranks = {len(self.global_shape), len(self.global_offset), len(self.local_shape)}
        inside = len(ranks) == 1 and all(
            offset >= 0 and size >= 0 and offset + size <= whole
            for offset, size, whole in zip(
                self.global_offset, self.local_shape, self.global_shape, strict=True
            )
        )
        if not inside:
            raise BadInputError(
                f"{self.name}: rectangle {list(self.local_shape)} at {list(self.global_offset)} lies outside "
                f"{list(self.global_shape)}",
                "Compare the reference's config.json with the model.",
            )

    @property
    def is_whole(self) -> bool:
        """Whether it is the entire tensor."""
        return self.local_shape == self.global_shape

    @property
    def num_bytes(self) -> int:
        return byte_size(self.dtype, self.local_shape)

    @property
    def num_elements(self) -> int:
        return prod(self.local_shape)

    @property
    def fragment_key(self) -> str:
        return fragment_key(self.name, self.global_shape, self.global_offset, self.local_shape)


def fragment_key(name: str, global_shape: Shape, global_offset: Shape, local_shape: Shape) -> str:
    """Return the key of a rectangle in a fragment.

    Args:
        name: Hugging Face name of the tensor.
        global_shape: shape of the entire tensor.
        global_offset: where the rectangle begins in it.
        local_shape: shape of the rectangle.

    Returns:
        The tensor's name, and for a part of it `@` and the offsets joined by commas.
    """
    return name if local_shape == global_shape else f"{name}@{','.join(map(str, global_offset))}"


def place(offset: Shape, shape: Shape) -> str:
    """Return a box as messages show it, such as `[0:64, 32:48]`."""
    return "[" + ", ".join(f"{at}:{at + size}" for at, size in zip(offset, shape, strict=True)) + "]"


def intersect(a_offset: Shape, a_shape: Shape, b_offset: Shape, b_shape: Shape) -> tuple[Shape, Shape] | None:
    """Return what two boxes of the same number of dimensions share.

    Args:
        a_offset: where the first box begins.
        a_shape: its size.
        b_offset: where the second box begins.
        b_shape: its size.

    Returns:
        (offset, shape) of the box that both cover, None if they share no element.
    """
    low = tuple(map(max, a_offset, b_offset))
    high = tuple(min(a + m, b + n) for a, m, b, n in zip(a_offset, a_shape, b_offset, b_shape, strict=True))
    if any(end <= start for start, end in zip(low, high, strict=True)):
        return None
    return low, tuple(end - start for start, end in zip(low, high, strict=True))
