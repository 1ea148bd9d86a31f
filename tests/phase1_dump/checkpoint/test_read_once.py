"""The description of a large checkpoint is read by one process, in a child; all others read what that wrote down."""

from __future__ import annotations

import functools
import multiprocessing
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common import places, reference
from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import CorruptFileError, UnsupportedCheckpointError
from shardmerge.phase1_dump import dump_checkpoint, dump_torch_dist
from shardmerge.phase1_dump.checkpoint import contents_file
from shardmerge.phase1_dump.checkpoint.contents import Contents
from shardmerge.phase1_dump.checkpoint.plan import Options, Plan, plan_of, read_contents
from shardmerge.phase1_dump.rectangles.bound_table import bound_table
from shardmerge.phase1_dump.shares import read_once
from shardmerge.phase1_dump.torch_dist.folder import Folder, find
from shardmerge.phase2_merge import check
from tests.dumps import dumps, saved

READERS = "readers.txt"


@pytest.fixture(params=saved.VERSIONS)
def copies(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """A checkpoint and its reference."""
    return saved.copy(tmp_path, request.param)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take every description for a large one."""
    monkeypatch.setattr(
        dump_torch_dist, "reading_once", functools.partial(read_once.reading_once, large_bytes=0)
    )


def dump(copies: tuple[Path, Path], out: Path, **options: Any) -> dict[str, bytes]:
    """Dump, and return every file of the dump."""
    checkpoint, hf = copies
    dump_checkpoint(checkpoint, out, hf_reference=hf, run_id="run", max_share_bytes=1000, **options)
    return dumps.tree(out)


def plan(copies: tuple[Path, Path], out: Path) -> Plan:
    return plan_of(*copies, Options(), None, read_once.reading_once(out, large_bytes=0))


def contents(copies: tuple[Path, Path]) -> tuple[Contents, str]:
    """What the checkpoint holds, read from its description, and what that depends on."""
    checkpoint, hf = copies
    folder, bound = find(checkpoint), bound_table(reference.read(hf), None, None)
    return read_contents(folder, bound, Options()), identity(folder, bound)


def identity(folder: Folder, bound: Blueprint, *, drop_mtp: bool = False, drop_vision: bool = False) -> str:
    return contents_file.identity_of(folder, bound, drop_mtp=drop_mtp, drop_vision=drop_vision)


def said(held: Contents) -> list[object]:
    """Everything in contents, as values that compare."""
    table = held.table
    columns = [
        table.first,
        table.boxes,
        table.offset,
        table.size,
        table.path,
        table.begin,
        table.length,
        held.ends,
    ]
    plain = [table.keys, table.dtypes, table.shapes, table.paths, held.saved_as, held.quantizers]
    return [*plain, *(column.tolist() for column in columns)]


def counting(folder: Folder, bound: Blueprint, options: Options) -> Contents:
    """Read, and leave a line that says that somebody did, beside the checkpoint."""
    with open(folder.path.parent / READERS, "a", encoding="utf-8") as file:
        file.write(f"{os.getpid()}\n")
    return read_contents(folder, bound, options)


def killed(folder: Folder, bound: Blueprint, options: Options) -> Contents:
    """Be killed while reading, but for the process that all others are children of."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return read_contents(folder, bound, options)


def lines(copies: tuple[Path, Path]) -> list[str]:
    return (copies[0].parent / READERS).read_text(encoding="utf-8").splitlines()


@pytest.mark.usefixtures("always")
def test_the_dump_is_the_same_and_nothing_is_left(copies: tuple[Path, Path], tmp_path: Path) -> None:
    once = dump(copies, tmp_path / "once", workers=2)
    assert {path.partition("/")[0] for path in once} == {f"rank-{share:05d}" for share in range(4)}
    check([tmp_path / "once"], hf_reference=copies[1])

    dump_torch_dist.reading_once = read_once.reading_once  # type: ignore[attr-defined]
    assert dump(copies, tmp_path / "each") == once


def test_processes_that_start_together_read_the_description_once(
    copies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_once, "read_contents", counting)
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=plan, args=(copies, tmp_path / "dump")) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * 4
    assert len(lines(copies)) == 1
    assert int(lines(copies)[0]) not in {process.pid for process in processes}


def test_what_was_written_down_is_what_was_read(copies: tuple[Path, Path], tmp_path: Path) -> None:
    held, own = contents(copies)
    contents_file.write(tmp_path / "file", held, own)

    found = contents_file.read(tmp_path / "file", tmp_path, own)
    assert found is not None
    assert said(found) == said(held)
    assert contents_file.read(tmp_path / "file", tmp_path, own[::-1]) is None
    assert contents_file.read(tmp_path / "none", tmp_path, own) is None


def test_contents_depend_on_what_is_left_out(copies: tuple[Path, Path]) -> None:
    """Without steps of multi-token prediction a checkpoint may have no quantizers, and with them some."""
    folder, bound = find(copies[0]), bound_table(reference.read(copies[1]), None, None)
    left_out: tuple[dict[str, bool], ...] = ({}, {"drop_mtp": True}, {"drop_vision": True})
    assert len({identity(folder, bound, **options) for options in left_out}) == 3


SPOILED: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda data: data[: len(data) // 2],
    "a bit": lambda data: data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
    "empty": lambda _: b"",
    "of zeros": lambda data: bytes(len(data)),
}


@pytest.mark.parametrize("how", SPOILED)
def test_a_torn_file_is_made_anew(
    copies: tuple[Path, Path], how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_once, "read_contents", counting)
    first = plan(copies, tmp_path / "dump")
    (path,) = (tmp_path / "dump").glob(".contents-*")
    data = path.read_bytes()
    path.write_bytes(SPOILED[how](data))

    again = plan(copies, tmp_path / "dump")
    assert path.read_bytes() == data
    assert again.digest == first.digest
    assert len(lines(copies)) == 2


def test_another_checkpoint_has_a_file_of_its_own(copies: tuple[Path, Path], tmp_path: Path) -> None:
    plan(copies, tmp_path / "dump")
    metadata = copies[0] / ".metadata"
    metadata.write_bytes(metadata.read_bytes().replace(b"iter_0000007", b"iter_0000008"))
    plan(copies, tmp_path / "dump")

    assert len(list((tmp_path / "dump").glob(".contents-*"))) == 2
    read_once.forget(tmp_path / "dump")
    assert list((tmp_path / "dump").iterdir()) == []


def test_what_is_wrong_is_told_as_if_it_had_been_read_here(copies: tuple[Path, Path], tmp_path: Path) -> None:
    metadata = copies[0] / ".metadata"
    data = metadata.read_bytes()
    metadata.write_bytes(data[: len(data) - 9])
    with pytest.raises(CorruptFileError, match="as a pickle it makes no sense"):
        plan(copies, tmp_path / "dump")

    metadata.write_bytes(data.replace(b"self_attention", b"ab.lora.abcdef"))
    with pytest.raises(UnsupportedCheckpointError, match="LoRA"):
        plan(copies, tmp_path / "dump")


def test_where_the_child_is_killed_the_description_is_read_here(
    copies: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(read_once, "read_contents", killed)

    assert plan(copies, tmp_path / "dump").shares
    assert [path.name for path in (tmp_path / "dump").iterdir()] == [places.contents_lock(tmp_path).name]


def test_numbers_that_refer_to_nothing_are_no_contents(copies: tuple[Path, Path], tmp_path: Path) -> None:
    """Under a digest that fits."""
    held, own = contents(copies)
    for name in ("offset", "size", "path", "begin", "length"):
        column = getattr(held.table, name)
        sound = int(column[3])
        for wrong in (-1, *((1 << 40,) if name in ("offset", "size", "path") else ())):
            column[3] = wrong
            contents_file.write(tmp_path / "file", held, own)
            assert contents_file.read(tmp_path / "file", tmp_path, own) is None
        column[3] = sound
    contents_file.write(tmp_path / "file", held, own)
    assert contents_file.read(tmp_path / "file", tmp_path, own) is not None
