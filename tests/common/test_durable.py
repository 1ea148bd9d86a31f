"""Files appear whole or not at all."""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import random
from pathlib import Path

import pytest

from shardmerge.common import durable, places


def test_a_file_is_created_and_replaced_whole(tmp_path: Path) -> None:
    for data in (b"first", b"second"):
        durable.write_file(tmp_path / "x", data)
        assert (tmp_path / "x").read_bytes() == data
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize(
    "name",
    [b"pa\xffge.html", b"\xff" * 255, ("\u00e9" * 127).encode(), b"\xff" + ("\u4e16" * 84).encode()],
    ids=["short", "no text", "two bytes a character", "three bytes a character"],
)
def test_a_name_of_any_bytes_has_a_temporary_one_that_is_cut_between_characters(
    tmp_path: Path, name: bytes
) -> None:
    path = tmp_path / os.fsdecode(name)
    durable.write_file(path, b"data")
    assert path.read_bytes() == b"data"
    temporary = os.fsencode(places.temporary(path).name)
    begin = temporary.removeprefix(b".")[: -len(".0123456789abcdef.tmp")]
    assert len(temporary) <= 255
    assert name.startswith(begin)
    begin.replace(b"\xff", b"").decode()  # holds no half of a character


def test_a_failed_write_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    durable.write_file(tmp_path / "x", b"old")

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        durable.write_file(tmp_path / "x", b"new")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"x": b"old"}


def test_an_error_of_the_system_names_a_file_unless_it_does_already(tmp_path: Path) -> None:
    with (
        open("/dev/full", "wb", buffering=0) as file,
        pytest.raises(OSError, match=r"No space left on device: '.*/x'"),
        durable.naming(tmp_path / "x"),
    ):
        file.write(b"x")
    with pytest.raises(OSError, match="denied: '/y'"), durable.naming(tmp_path / "x"):
        raise PermissionError(13, "denied", "/y")


def test_data_and_folder_are_synced_before_and_after_the_rename(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, rename = os.fsync, Path.rename

    def syncing(file: int) -> None:
        steps.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "data")
        sync(file)

    def renaming(path: Path, target: Path) -> Path:
        steps.append("rename")
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "rename", renaming)
    durable.write_file(tmp_path / "x", b"data")
    assert steps == ["data", "rename", "folder"]


def test_file_modes_follow_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        durable.write_file(tmp_path / "x", b"data")
    finally:
        os.umask(before)
    assert (tmp_path / "x").stat().st_mode & 0o777 == 0o640


def test_everything_is_appended_in_order(tmp_path: Path) -> None:
    sizes = (3, durable.WRITE_BYTES - 1, 17, durable.WRITEBACK_BYTES + 1, 0, 5)
    pieces = [bytes([n]) * size for n, size in enumerate(sizes)]
    with open(tmp_path / "file", "wb", buffering=0) as file:
        end = durable.Appending(file.fileno())
        for piece in pieces:
            end.write(memoryview(piece))
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)


def test_the_kernel_is_asked_once_for_what_was_appended_since_it_was_asked_last(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    advise = os.posix_fadvise

    def advised(file: int, start: int, count: int, advice: int) -> None:
        asked.append((start, count))
        advise(file, start, count, advice)

    monkeypatch.setattr(os, "posix_fadvise", advised)
    with open(tmp_path / "file", "wb", buffering=0) as file:
        end = durable.Appending(file.fileno())
        for size in (100, durable.WRITEBACK_BYTES - 101, 2, durable.WRITEBACK_BYTES, 50):
            end.write(memoryview(bytes(size)))
    first = durable.WRITEBACK_BYTES + 1
    assert asked == [(0, first), (first, durable.WRITEBACK_BYTES)]


def test_whole_pages_pass_the_cache_wherever_they_can_and_every_byte_arrives_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From memory that begins on a page and from other, to places that do and to others."""
    page, seen, system = durable.PAGE, list[tuple[int, bool]](), os.write

    def written(file: int, data: memoryview) -> int:
        seen.append((len(data), bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)))
        return system(file, data)

    memory = mmap.mmap(-1, 40 * page)
    memory[:] = random.Random(1).randbytes(40 * page)
    pages = memoryview(memory)
    cuts = [0, 3, 3 + 2, 5 + 1]  # in pages, of memory that begins on one
    pieces = [
        pages[a * page : b * page] for a, b in itertools.pairwise(cuts)
    ]  # at places on pages: they pass
    pieces += [
        pages[10 : 10 + page],
        pages[7 * page : 7 * page + 17],
    ]  # memory between pages; less than a page
    pieces += [
        pages[8 * page : 10 * page],
        pages[10 * page : 11 * page - 17],
    ]  # a place between pages; less than one
    pieces += [pages[12 * page : 14 * page], memoryview(bytes(page)), pages[15 * page : 15 * page + 5]]
    monkeypatch.setattr(os, "write", written)
    with open(tmp_path / "file", "wb", buffering=0) as file:
        end = durable.Uncached(file.fileno())
        for piece in pieces:
            end.write(piece)
    monkeypatch.undo()
    assert (tmp_path / "file").read_bytes() == b"".join(pieces)
    passed = [(3 * page, True), (2 * page, True), (page, True), (page, False), (17, False)]
    passed += [(2 * page, False), (page - 17, False), (2 * page, True), (page, False), (5, False)]
    assert seen == passed
