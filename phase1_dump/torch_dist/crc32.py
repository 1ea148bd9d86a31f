"""Checks the CRC-32 of bytes that are read in runs, in whatever order: the checksums of runs are put together.

Source: zlib, crc32.c (`crc32_combine`): appending n bytes multiplies a checksum by x^(8 n) modulo the polynomial.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from isal import isal_zlib

POLYNOMIAL = 0xEDB88320  # bits reversed: the highest bit is x^0
ONE = 1 << 31


class Runs:
    """The checksums of those bytes of something that were read. Runs that follow each other become one."""

    __slots__ = ("_runs",)

    def __init__(self) -> None:
        self._runs: list[tuple[int, int, int]] = []  # begin, end, CRC-32

    def add(self, begin: int, data: memoryview) -> None:
        """Take bytes that begin at `begin`. Those that overlap what was taken before are passed over."""
        end = begin + len(data)
        if begin == end:
            return
        if self._runs and self._runs[-1][1] == begin:
            first, _, crc = self._runs[-1]
            if not any(first < other[1] and other[0] < end for other in self._runs[:-1]):
                self._runs[-1] = (first, end, isal_zlib.crc32(data, crc))
            return
        if not any(begin < run[1] and run[0] < end for run in self._runs):
            self._runs.append((begin, end, isal_zlib.crc32(data)))

    def gaps(self, num_bytes: int) -> Iterator[tuple[int, int]]:
        """Yield (begin, end) of what was not taken of so many bytes."""
        at = 0
        for begin, end, _ in sorted(self._runs):
            if at < begin:
                yield at, begin
            at = end
        if at < num_bytes:
            yield at, num_bytes

    def total(self) -> int:
        """Return the CRC-32 of all bytes, of which no gap is left."""
        total = 0
        for begin, end, crc in sorted(self._runs):
            total = combined(total, crc, end - begin)
        return total


def combined(first: int, second: int, second_bytes: int) -> int:
    """Return the CRC-32 of two runs one after the other.

    Args:
        first: Of the first run.
        second: Of the second.
        second_bytes: How long that is.

    Returns:
        Of both.
    """
    return _product(_power(second_bytes), first) ^ second


def _product(a: int, b: int) -> int:
    """Return the product of two polynomials modulo the polynomial."""
    product, bit = 0, ONE
    while a:
        if a & bit:
            product ^= b
            a ^= bit
        bit >>= 1
        b = b >> 1 ^ (POLYNOMIAL if b & 1 else 0)
    return product


@lru_cache(maxsize=64)
def _square(number: int) -> int:
    """Return x^(2^number) modulo the polynomial."""
    return ONE >> 1 if number == 0 else _product(_square(number - 1), _square(number - 1))


@lru_cache(maxsize=4096)
def _power(num_bytes: int) -> int:
    """Return x^(8 num_bytes) modulo the polynomial."""
    power, number = ONE, 3
    while num_bytes:
        if num_bytes & 1:
            power = _product(_square(number), power)
        num_bytes >>= 1
        number += 1
    return power
