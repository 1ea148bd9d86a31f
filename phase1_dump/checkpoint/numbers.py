"""Casts and inspects numbers by their bits, with numpy, which has no bfloat16: what torch does for a live model.

Knows the four kinds of floating point that Megatron trains in. Must not know where numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Bits: TypeAlias = npt.NDArray[Any]
BF16_NAN = 0x7FC0
ROUND = np.uint32(0x7FFF)  # half of the bits that are cut off, less one: ties go to even


@dataclass(frozen=True, slots=True)
class Kind:
    """How the bits of a floating point number are read.

    unsigned, signed: integers of its size, as numpy calls them.
    infinity: its bits; whatever is larger without the sign is NaN.
    holds: names of the kinds whose numbers it holds without loss.
    """

    unsigned: str
    signed: str
    infinity: int
    holds: tuple[str, ...]

    @property
    def itemsize(self) -> int:
        """Bytes of a number."""
        return int(self.unsigned[-1])


KINDS = {
    "BF16": Kind("<u2", "<i2", 0x7F80, ("BF16",)),
    "F16": Kind("<u2", "<i2", 0x7C00, ("F16",)),
    "F32": Kind("<u4", "<i4", 0x7F800000, ("BF16", "F16", "F32")),
    "F64": Kind("<u8", "<i8", 0x7FF0000000000000, ("BF16", "F16", "F32", "F64")),
}
FLOATS = {"F16": "<f2", "F32": "<f4", "F64": "<f8"}


def cast(bits: Bits, source: str, target: str) -> Bits:
    """Return the bits of numbers in another kind, rounded to the nearest, ties to even.

    Args:
        bits: Unsigned integers.
        source: Kind of the numbers.
        target: Kind that they are to have.

    Returns:
        Unsigned integers; the same array if the kinds are the same.
    """
    if source == target:
        return bits
    floats = _floats(bits, source)
    if target == "BF16":
        return _rounded(floats.astype("<f4"))
    with np.errstate(over="ignore", invalid="ignore"):
        narrow: Bits = floats.astype(FLOATS[target]).view(KINDS[target].unsigned)
    return narrow


def plus(bits: Bits, source: str, added: int) -> Bits:
    """Add an integer to numbers in float32, where that costs bfloat16 nothing.

    Args:
        bits: Unsigned integers.
        source: Kind of the numbers.
        added: The integer.

    Returns:
        The bits of the sums, as unsigned integers of float32.
    """
    wide = _floats(cast(bits, source, "F32"), "F32")
    sums: Bits = (wide + np.float32(added)).view(KINDS["F32"].unsigned)
    return sums


def count_narrowed(bits: Bits, source: str, target: str) -> int:
    """Return how many numbers a cast changes. NaN that stays NaN is not a change.

    Args:
        bits: Unsigned integers.
        source: Kind of the numbers.
        target: Kind that they are cast to.

    Returns:
        The number.
    """
    if source in KINDS[target].holds:
        return 0
    before = _floats(bits, source)
    after = _floats(cast(bits, source, target), target).astype(before.dtype)
    return int(((after != before) & ~(np.isnan(after) & np.isnan(before))).sum())


def largest_magnitude(bits: Bits, kind: str) -> int:
    """Return the largest bits of a number without its sign, 0 for no numbers.

    Positive numbers are ordered as signed integers are, negative ones the other way round as unsigned ones are.
    """
    if not bits.size:
        return 0
    sign = 1 << (8 * KINDS[kind].itemsize - 1)
    positive = int(bits.view(KINDS[kind].signed).max())
    unsigned = int(bits.max())
    return max(positive, unsigned - sign if unsigned >= sign else 0)


def count_nonfinite(bits: Bits, kind: str) -> tuple[int, int]:
    """Return the number of (NaN, infinite) elements."""
    infinity = KINDS[kind].infinity
    magnitudes = bits & np.array((1 << (8 * KINDS[kind].itemsize - 1)) - 1, bits.dtype)
    return int((magnitudes > infinity).sum()), int((magnitudes == infinity).sum())


def _floats(bits: Bits, kind: str) -> Bits:
    if kind == "BF16":
        return (bits.astype("<u4") << np.uint32(16)).view("<f4")
    return bits.view(FLOATS[kind])


def _rounded(floats: Bits) -> Bits:
    """Return the bits of float32 numbers as bfloat16."""
    wide = floats.view("<u4")
    odd = (wide >> np.uint32(16)) & np.uint32(1)
    rounded: Bits = ((wide + (ROUND + odd)) >> np.uint32(16)).astype("<u2")
    rounded[np.isnan(floats)] = BF16_NAN
    return rounded
