"""Sizes as people write them."""

from __future__ import annotations

import pytest

from shardmerge.common.command import byte_count
from shardmerge.common.errors import BadInputError


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("5GB", 5_000_000_000),
        ("5 GiB", 5_368_709_120),
        ("1.5kb", 1500),
        ("7B", 7),
        (" 2B ", 2),
        ("1TB", 10**12),
    ],
)
def test_decimal_and_binary_units_differ(text: str, count: int) -> None:
    assert byte_count.parse(text) == count


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "0", "1 XB", "1e9", "nan"])
def test_anything_else_is_refused(text: str) -> None:
    with pytest.raises(BadInputError, match="is not a size"):
        byte_count.parse(text)


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1500, "1.5 KB"), (61_000_000_000, "61.0 GB"), (2 * 10**15, "2,000.0 TB")],
)
def test_sizes_are_shown_with_one_decimal(count: int, text: str) -> None:
    assert byte_count.show(count) == text
