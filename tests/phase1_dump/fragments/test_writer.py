"""Fragments on disk: the safetensors library reads back what went in, whatever the staging, and a full disk is told."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from megatron.core.models.gpt.gpt_model import GPTModel
from safetensors.torch import load_file, save_file

from shardmerge.phase1_dump import dump
from shardmerge.phase1_dump.fragments.plan import plan_fragments
from shardmerge.phase1_dump.fragments.writer import (
    IN_FLIGHT,
    JOINED_BYTES,
    SMALL_BYTES,
    WriteQueue,
    Written,
    write_fragment,
)
from shardmerge.phase1_dump.source import Holding
from shardmerge.phase1_dump.sources.host_memory.host_buffers import HostBuffers
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import GENERATION, dumped
from tests.phase1_dump.hand_made import Copying, in_parts, numbers, raw, source_of, whole
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE

FLOAT32 = torch.float32
TENSORS = {
    "matrix": numbers(37, 24),
    "transposed": numbers(30, 8, seed=1).t(),
    "vector": numbers(13, seed=2, dtype=FLOAT32),
    "empty": torch.empty(0, 4, dtype=torch.bfloat16),
    "scalar": torch.tensor(0.25, dtype=FLOAT32),
    "in parts": numbers(10, 6, seed=3),
}
HALVES = [((4, 0), TENSORS["in parts"][4:]), ((0, 0), TENSORS["in parts"][:4].clone())]


def holdings() -> list[Holding]:
    names = {torch.bfloat16: "BF16", FLOAT32: "F32"}
    plain = [whole(name, t, names[t.dtype]) for name, t in TENSORS.items() if name != "in parts"]
    return [*plain, in_parts("in parts", HALVES)]


def write(
    folder: Path, held: list[Holding], staging_bytes: int
) -> tuple[Path, dict[str, Written], list[int]]:
    """(the file, what was learnt by name, what progress was told)."""
    (fragment,) = plan_fragments(held, 1 << 30)
    told: list[int] = []
    learnt = write_fragment(folder, fragment, source_of(held, HostBuffers(staging_bytes)), told.append)
    names = [holding.rectangle.name for holding in fragment.holdings]
    return folder / fragment.name, dict(zip(names, learnt, strict=True)), told


@pytest.mark.parametrize("staging_bytes", [1, 70, 1000, 1 << 20])
def test_the_library_reads_back_and_saves_the_same_bytes(staging_bytes: int, tmp_path: Path) -> None:
    file, _, _ = write(tmp_path, holdings(), staging_bytes)

    loaded = load_file(file)
    save_file(loaded, tmp_path / "loaded.safetensors")
    save_file(
        {name: tensor.contiguous() for name, tensor in TENSORS.items()}, tmp_path / "direct.safetensors"
    )

    assert {name: tensor.dtype for name, tensor in loaded.items()} == {n: t.dtype for n, t in TENSORS.items()}
    assert (tmp_path / "loaded.safetensors").read_bytes() == (tmp_path / "direct.safetensors").read_bytes()


def test_data_follow_each_other_from_a_page_on(tmp_path: Path) -> None:
    file, _, told = write(tmp_path, holdings(), 1 << 20)

    data = file.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    assert header.pop("__metadata__") == {"format": "pt"}
    assert start % 4096 == 0
    assert len(data) - start == sum(told) == sum(t.numel() * t.itemsize for t in TENSORS.values())
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        assert data[start + begin : start + end] == raw(TENSORS[name])


@pytest.mark.parametrize("staging_bytes", [1, 100, 1 << 20])
def test_checksums_are_those_of_the_tensors_bytes(staging_bytes: int, tmp_path: Path) -> None:
    _, learnt, _ = write(tmp_path, holdings(), staging_bytes)

    assert {name: one.xxh3_128 for name, one in learnt.items()} == {
        name: xxhash.xxh3_128_hexdigest(raw(tensor)) for name, tensor in TENSORS.items()
    }


def test_narrowing_is_counted_in_the_part_that_is_written(tmp_path: Path) -> None:
    """A part of a larger live tensor: what lies outside of it does not count."""
    live = torch.ones(6, 4)
    live[0], live[5], live[2, 1] = 0.1, 0.1, 0.1
    pieces = [((0, 0), live[1:3]), ((2, 0), live[3:5])]

    _, learnt, _ = write(tmp_path, [in_parts("t", pieces)], 8)

    assert learnt["t"].seen.narrowed == 1


@pytest.fixture
def model() -> Iterator[GPTModel]:
    with fake_world(SINGLE, 0):
        yield build_model(by_name("qwen3_moe"), SINGLE)[0]


def test_staging_changes_nothing_but_memory(model: GPTModel, references: References, tmp_path: Path) -> None:
    found = [
        dumped(model, tmp_path / str(size), references.config("qwen3_moe"), staging_bytes=size)
        for size in (1, 5000, 64 << 20)
    ]

    assert found[0] == found[1] == found[2]


def test_fragments_stay_below_their_limit(model: GPTModel, references: References, tmp_path: Path) -> None:
    limit = 20_000
    found = dumped(model, tmp_path / "small", references.config("qwen3_moe"), max_fragment_bytes=limit)
    large = dumped(model, tmp_path / "large", references.config("qwen3_moe"))

    sizes = [file.num_bytes - file.header_bytes for file in found.files]
    per_file = [found.columns.file.count(number) for number in range(len(sizes))]
    assert max(sizes) > limit  # the embedding of 30,384 bytes
    assert all(size <= limit or count == 1 for size, count in zip(sizes, per_file, strict=True))
    assert [file.name for file in found.files[:2]] == ["whole-00001.safetensors", "whole-00002.safetensors"]
    checksums = [{(p.rectangle, p.xxh3_128) for p in manifest.placed()} for manifest in (found, large)]
    assert checksums[0] == checksums[1]


@contextmanager
def largest_file(num_bytes: int) -> Iterator[None]:
    """No file may grow beyond this; the kernel says so as it does when a quota is used up."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("num_bytes", [2000, 100_000])
def test_a_write_that_the_kernel_refuses_leaves_no_rank(
    num_bytes: int, model: GPTModel, references: References, tmp_path: Path
) -> None:
    """In the header, and in the data, where another thread writes."""
    with largest_file(num_bytes), pytest.raises(OSError, match="too large") as caught:
        dumped(model, tmp_path, references.config("qwen3_moe"), staging_bytes=10_000)

    assert caught.value.errno == errno.EFBIG
    assert [path.name for path in tmp_path.iterdir()] == ["rank-00000.failed.json"]
    assert json.loads((tmp_path / "rank-00000.failed.json").read_text())["failure"]["error"] == "OSError"


@pytest.mark.parametrize("call", range(9))
def test_an_error_of_one_write_among_many_is_never_lost(
    call: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A header and eight blocks of a matrix; only one of the nine writes fails."""
    calls, real = iter(range(100)), os.write

    def write_but_once(file: int, data: memoryview) -> int:
        if next(calls) == call:
            raise OSError(errno.EIO, "Input/output error")
        return real(file, data)

    monkeypatch.setattr(os, "write", write_but_once)

    with pytest.raises(OSError, match="Input/output error"):
        write(tmp_path, [whole("t", numbers(8, 4000))], staging_bytes=16_000)


def test_a_write_of_half_the_bytes_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Linux does with more than 2 GiB, and any file system near a quota."""
    real, tensor = os.write, numbers(8, 10)
    monkeypatch.setattr(os, "write", lambda file, data: real(file, data[: max(1, len(data) // 2)]))

    file, _, _ = write(tmp_path, [whole("t", tensor)], staging_bytes=1 << 20)

    assert raw(load_file(file)["t"]) == raw(tensor)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("only root may mount")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk_leaves_no_rank_and_is_emptied_again(
    model: GPTModel, references: References, small_disk: Path
) -> None:
    reference = references.config("qwen3_moe")

    assert dump(model, small_disk / "out", hf_reference=reference, on_error="record", **GENERATION) is None

    (failure,) = (small_disk / "out").iterdir()
    record = json.loads(failure.read_text())
    assert failure.name == "rank-00000.failed.json"
    assert "No space left on device" in record["failure"]["message"]
    assert shutil.disk_usage(small_disk).used < 16_384


def test_a_staging_buffer_is_never_filled_again_before_it_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pieces that are joined and pieces that are not follow each other in every way, on a slow disk."""
    real = os.write

    def write_slowly(file: int, data: memoryview) -> int:
        time.sleep(0.002)
        return real(file, data)

    monkeypatch.setattr(os, "write", write_slowly)
    sizes = [1024, 9216, 1024, 1024, 17_408, 9216, 1024, 9216, 3, 5, 70_000, 1, 9000, 2]
    tensors = {f"t{n:02}": numbers(size, 2, seed=n) for n, size in enumerate(sizes)}
    held = [whole(name, tensor) for name, tensor in tensors.items()]
    (fragment,) = plan_fragments(held, 1 << 30)
    write_fragment(tmp_path, fragment, source_of(held, Copying(100_000)), lambda _: None)
    found = load_file(tmp_path / fragment.name)
    assert [name for name in tensors if raw(found[name]) != raw(tensors[name])] == []


def test_past_the_page_cache_go_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of whole pages pass, those of the last, smaller tensors do not."""
    held = [whole(f"t{n}", numbers(rows, 2048, seed=n)) for n, rows in enumerate((7, 8, 3))]
    held += [whole("small", numbers(3, 5000)), whole("vector", numbers(13))]
    (fragment,) = plan_fragments(held, 1 << 30)
    passed, real = dict[bool, int](), os.write

    def write(file: int, data: memoryview) -> int:
        direct = bool(fcntl.fcntl(file, fcntl.F_GETFL) & os.O_DIRECT)
        passed[direct] = passed.get(direct, 0) + len(data)
        return real(file, data)

    monkeypatch.setattr(os, "write", write)
    found = []
    for past_the_cache in (True, False):
        folder = tmp_path / str(past_the_cache)
        folder.mkdir()
        source = source_of(held, Copying(4 * 4096))
        learnt = write_fragment(folder, fragment, source, lambda _: None, past_the_cache=past_the_cache)
        found.append((learnt, (folder / fragment.name).read_bytes()))
    assert found[0] == found[1]
    assert passed[True] == 16 * 4096  # a page alone, at the end of two tensors, is small, and joined
    assert sum(passed.values()) == 2 * len(found[0][1])


class InTurn(Executor):
    """Runs what is submitted only when somebody waits for it, as the slowest of disks would."""

    def __init__(self) -> None:
        self.waiting: list[Late] = []

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Any:
        self.waiting.append(Late(self, partial(fn, *args, **kwargs)))
        return self.waiting[-1]


class Late(Future[None]):
    """What `InTurn` gives: asking for the result runs this and everything before it."""

    def __init__(self, executor: InTurn, work: Callable[[], None]) -> None:
        super().__init__()
        self.executor, self.work = executor, work

    def result(self, timeout: float | None = None) -> None:
        while self in self.executor.waiting:
            self.executor.waiting.pop(0).work()


def queue_to(handed: list[bytes]) -> tuple[WriteQueue, InTurn]:
    thread = InTurn()
    return WriteQueue(lambda data: handed.append(bytes(data)), thread, lambda _: None), thread


def test_small_blocks_are_joined_and_large_ones_keep_their_place() -> None:
    handed: list[bytes] = []
    queue, _ = queue_to(handed)
    blocks = [b"ab", b"cd", b"E" * (SMALL_BYTES + 1), b"fg", b"h" * SMALL_BYTES]
    for block in blocks:
        queue.add(memoryview(block))
    queue.flush()
    queue.drain()
    assert handed == [b"abcd", blocks[2], b"fg" + blocks[4]]


def test_what_is_joined_stays_bounded() -> None:
    handed: list[bytes] = []
    queue, thread = queue_to(handed)
    for _ in range(4 * JOINED_BYTES // SMALL_BYTES):
        queue.add(memoryview(bytes(SMALL_BYTES)))
        assert len(queue.joined) < JOINED_BYTES
        assert len(thread.waiting) <= IN_FLIGHT
    queue.flush()
    queue.drain()
    assert list(map(len, handed)) == [JOINED_BYTES] * 4


def test_the_memory_of_a_block_is_free_when_the_block_after_it_was_taken() -> None:
    """Whatever is large or small: of the two buffers of a source, the one it will fill next is never waited for."""
    handed: list[bytes] = []
    queue, _ = queue_to(handed)
    buffers, sizes = [bytearray(9000), bytearray(9000)], [8000, 3, 8001, 8002, 4, 5, 8003, 6, 8004]
    expected = b"".join(bytes([number]) * size for number, size in enumerate(sizes))
    for number, size in enumerate(sizes):
        buffers[number % 2][:size] = bytes([number]) * size
        queue.add(memoryview(buffers[number % 2])[:size])
    queue.flush()
    queue.drain()
    assert b"".join(handed) == expected
