"""Many small reads: in order, none lost, and at the same time only where each takes long."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from shardmerge.phase2_merge.disk.read_many import AT_ONCE, READERS, SLOW_S, announced, read_many

MANY = 3 * AT_ONCE + 5


def test_every_item_comes_with_what_was_read_of_it_in_order(tmp_path: Path) -> None:
    for number in range(MANY):
        (tmp_path / f"{number:04d}").write_text(f"content {number}")
    paths = sorted(tmp_path.iterdir())
    found = list(read_many(Path.read_text, paths, announced))
    assert found == [(path, f"content {number}") for number, path in enumerate(paths)]


def test_slow_reads_overlap() -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    told: list[int] = []

    def slowly(number: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(5 * SLOW_S)
        with lock:
            at_once -= 1
        return -number

    assert list(read_many(slowly, range(AT_ONCE), told.append)) == [
        (number, -number) for number in range(AT_ONCE)
    ]
    assert 1 < most <= READERS
    assert told == list(range(READERS))  # until they were seen to be slow


def test_what_a_read_raises_is_raised(tmp_path: Path) -> None:
    (tmp_path / "there").write_text("content")
    with pytest.raises(FileNotFoundError, match="absent"):
        list(read_many(Path.read_text, [tmp_path / "there", tmp_path / "absent"], announced))
    assert list(read_many(Path.read_text, [], announced)) == []
