"""Writing past the page cache: the same bytes, where it is possible, where it is not, and where it stops being so."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from shardmerge.common import durable
from shardmerge.common.durable import PAGE
from shardmerge.phase2_merge.disk.uncached import aligned

PAGES = 3


@pytest.fixture
def data() -> bytes:
    return np.random.default_rng(0).bytes(PAGES * PAGE + 17)


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    opened = os.open(tmp_path / "file", os.O_WRONLY | os.O_CREAT)
    yield opened
    os.close(opened)


def write(file: int, data: bytes) -> bool:
    """Pages one way, the rest the other; whether the pages passed the cache."""
    memory = aligned(len(data))
    memory[:] = np.frombuffer(data, np.uint8)
    end, pages = durable.Uncached(file), len(data) // PAGE * PAGE
    end.write(memory[:PAGE].data)
    end.write(memory[PAGE:pages].data)
    passed = end.direct
    end.write(memory[pages:].data)
    return passed


def test_memory_begins_on_a_page() -> None:
    assert [aligned(size).ctypes.data % PAGE for size in (1, PAGE, 99_999)] == [0, 0, 0]
    assert len(aligned(99_999)) == 99_999


def test_pages_and_what_is_left_arrive(tmp_path: Path, file: int, data: bytes) -> None:
    write(file, data)
    assert (tmp_path / "file").read_bytes() == data
    assert not fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT


def test_a_file_system_that_cannot_gets_the_same_bytes_through_the_cache(
    tmp_path: Path, file: int, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    system = fcntl.fcntl

    def refuse(of: int, command: int, flags: int = 0) -> int:
        if command == fcntl.F_SETFL and flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system(of, command, flags)

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    assert not write(file, data)
    assert (tmp_path / "file").read_bytes() == data


def test_a_device_that_refuses_in_the_middle_gets_the_rest_through_the_cache(
    tmp_path: Path, file: int, data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one with blocks larger than a page: a first page is taken, then nothing while O_DIRECT is on."""
    system, calls = os.write, 0

    def refuse(to: int, of: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls > 1 and fcntl.fcntl(to, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "Invalid argument")
        return system(to, of)

    monkeypatch.setattr(os, "write", refuse)
    assert not write(file, data)
    assert (tmp_path / "file").read_bytes() == data


def test_a_full_disk_is_no_reason_to_try_another_way(file: int, data: bytes) -> None:
    """/dev/full: every write fails with ENOSPC."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        with pytest.raises(OSError, match="No space left"):
            write(full, data)
    finally:
        os.close(full)
