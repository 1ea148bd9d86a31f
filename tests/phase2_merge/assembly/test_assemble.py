"""One shard from pieces: every dtype and shape, small buffers, damage. Compared through the safetensors library."""

from __future__ import annotations

import os
import tracemalloc
from collections.abc import Sequence
from math import prod
from pathlib import Path

import numpy as np
import pytest
import safetensors
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.phase2_merge.assembly import assemble as module
from shardmerge.phase2_merge.assembly.assemble import assemble
from shardmerge.phase2_merge.assembly.pieces import bands
from shardmerge.phase2_merge.assembly.task import ShardTask, SourcePiece, TensorTask
from tests.dumps.dumps import SIZES, grid

Shape = tuple[int, ...]
Cells = Sequence[tuple[Shape, Shape]]


def tensor_task(folder: Path, name: str, dtype: str, shape: Shape, data: bytes, cells: Cells) -> TensorTask:
    """Each cell in a file of its own, behind seven bytes that are not its."""
    whole = np.frombuffer(data, np.uint8).reshape(*shape, SIZES[dtype])
    pieces = []
    for number, (offset, local) in enumerate(cells):
        box = tuple(slice(at, at + size) for at, size in zip(offset, local, strict=True))
        own = np.ascontiguousarray(whole[box]).tobytes()
        path = folder / f"{name}-{number}"
        path.write_bytes(b"strange" + own + b"more")
        pieces.append(SourcePiece(str(path), number, 7, offset, local, xxhash.xxh3_128_hexdigest(own)))
    return TensorTask(name, dtype, shape, tuple(pieces))


def bytes_of(count: int, seed: int = 1) -> bytes:
    return np.random.default_rng(seed).bytes(count)


def written(
    folder: Path, *tensors: TensorTask, staging_bytes: int = 64
) -> dict[str, tuple[str, Shape, bytes]]:
    assemble(ShardTask("shard", tensors, check=True), folder, staging_bytes)
    found = safetensors.deserialize((folder / "shard").read_bytes())
    return {name: (one["dtype"], tuple(one["shape"]), bytes(one["data"])) for name, one in found}


@pytest.mark.parametrize("dtype", ["BF16", "F32", "F64", "U8", "BOOL", "I64"])
@pytest.mark.parametrize("edges", [[[3], []], [[], [5]], [[2, 4], [1, 6]]], ids=["rows", "columns", "both"])
def test_matrices_cut_any_way_come_back(tmp_path: Path, dtype: str, edges: list[list[int]]) -> None:
    shape = (7, 8)
    data = bytes_of(56 * SIZES[dtype])
    task = tensor_task(tmp_path, "w", dtype, shape, data, grid(shape, edges))
    assert written(tmp_path, task) == {"w": (dtype, shape, data)}


def test_a_scalar_and_an_empty_tensor_come_back(tmp_path: Path) -> None:
    scalar = tensor_task(tmp_path, "scalar", "F32", (), b"\x01\x02\x03\x04", [((), ())])
    empty = tensor_task(tmp_path, "empty", "F32", (0, 4), b"", [((0, 0), (0, 4))])
    assert written(tmp_path, scalar, empty) == {
        "scalar": ("F32", (), b"\x01\x02\x03\x04"),
        "empty": ("F32", (0, 4), b""),
    }


def test_three_dimensions_cut_along_all(tmp_path: Path) -> None:
    shape = (4, 6, 5)
    data = bytes_of(prod(shape) * 2)
    task = tensor_task(tmp_path, "e", "BF16", shape, data, grid(shape, [[1, 2], [4], [3]]))
    assert written(tmp_path, task) == {"e": ("BF16", shape, data)}


@pytest.mark.parametrize("staging_bytes", [2, 6, 50, 1 << 20])
def test_a_tensor_larger_than_the_buffer_comes_back(tmp_path: Path, staging_bytes: int) -> None:
    shape = (3, 50)
    data = bytes_of(600)
    task = tensor_task(tmp_path, "w", "F32", shape, data, grid(shape, [[1], [20]]))
    assert written(tmp_path, task, staging_bytes=staging_bytes) == {"w": ("F32", shape, data)}


def test_packed_four_bit_elements_are_moved_by_whole_bytes(tmp_path: Path) -> None:
    left, right = bytes([0x12, 0x34, 0x56, 0x78]), bytes([0x9A, 0xBC])
    (tmp_path / "left").write_bytes(left)
    (tmp_path / "right").write_bytes(right)
    pieces = (
        SourcePiece(str(tmp_path / "left"), 0, 0, (0, 0), (2, 4), xxhash.xxh3_128_hexdigest(left)),
        SourcePiece(str(tmp_path / "right"), 1, 0, (0, 4), (2, 2), xxhash.xxh3_128_hexdigest(right)),
    )
    assemble(ShardTask("shard", (TensorTask("w", "F4", (2, 6), pieces),), check=True), tmp_path)
    assert (tmp_path / "shard").read_bytes()[-6:] == bytes([0x12, 0x34, 0x9A, 0x56, 0x78, 0xBC])


def test_a_cut_inside_a_byte_is_refused(tmp_path: Path) -> None:
    task = TensorTask("w", "F4", (2, 4), (SourcePiece(str(tmp_path / "none"), 0, 0, (0, 1), (2, 3), ""),))
    with pytest.raises(BadInputError, match="inside a byte"):
        assemble(ShardTask("shard", (task,), check=True), tmp_path)


def test_a_flipped_bit_is_named_and_leaves_no_shard(tmp_path: Path) -> None:
    task = tensor_task(tmp_path, "w", "U8", (4, 4), bytes_of(16), grid((4, 4), [[2], []]))
    source = tmp_path / "w-1"
    data = bytearray(source.read_bytes())
    data[9] ^= 1
    source.write_bytes(data)
    with pytest.raises(CorruptFileError) as error:
        assemble(ShardTask("shard", (task,), check=True), tmp_path)
    assert error.value.path == str(source)
    assert error.value.rank == 1
    assert "w [2:4, 0:4]" in error.value.reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["w-0", "w-1"]


def test_without_check_nothing_is_compared(tmp_path: Path) -> None:
    task = tensor_task(tmp_path, "w", "U8", (2,), b"ab", [((0,), (2,))])
    (tmp_path / "w-0").write_bytes(b"strangeAB")
    assemble(ShardTask("shard", (task,), check=False), tmp_path)
    assert (tmp_path / "shard").read_bytes().endswith(b"AB")


def test_a_source_that_ends_early_is_named(tmp_path: Path) -> None:
    task = tensor_task(tmp_path, "w", "U8", (4, 4), bytes_of(16), grid((4, 4), [[2], []]))
    os.truncate(tmp_path / "w-0", 10)
    with pytest.raises(CorruptFileError, match="ends at byte 10"):
        assemble(ShardTask("shard", (task,), check=True), tmp_path)


def test_the_receipt_holds_the_checksum_of_every_tensor(tmp_path: Path) -> None:
    data = bytes_of(32)
    task = tensor_task(tmp_path, "w", "U8", (4, 8), data, grid((4, 8), [[], [3]]))
    receipt, _ = assemble(ShardTask("shard", (task,), check=True), tmp_path, 16)
    content = (tmp_path / "shard").read_bytes()
    assert receipt.tensors == {"w": xxhash.xxh3_128_hexdigest(data)}
    assert receipt.num_bytes == len(content)
    assert receipt.header_xxh3_128 == xxhash.xxh3_128_hexdigest(content[:-32])


def test_open_files_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "OPEN_FILES", 3)
    data = bytes_of(40)
    task = tensor_task(tmp_path, "w", "U8", (20, 2), data, grid((20, 2), [list(range(1, 20)), []]))
    before, most = len(os.listdir("/proc/self/fd")), 0
    opening = os.open

    def counting(*args: object, **kwargs: object) -> int:
        nonlocal most
        file = opening(*args, **kwargs)  # type: ignore[arg-type]
        most = max(most, len(os.listdir("/proc/self/fd")) - before)
        return file

    monkeypatch.setattr(os, "open", counting)
    assert written(tmp_path, task)["w"][2] == data
    assert most <= 4  # three sources and the output
    assert len(os.listdir("/proc/self/fd")) == before


def test_memory_is_that_of_the_buffers_whatever_the_tensor(tmp_path: Path) -> None:
    shape, staging_bytes = (64, 1 << 16), 1 << 17
    task = tensor_task(tmp_path, "w", "U8", shape, bytes_of(prod(shape)), grid(shape, [[], [1 << 15]]))
    tracemalloc.start()
    try:
        assemble(ShardTask("shard", (task,), check=True), tmp_path, staging_bytes)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert staging_bytes <= peak < 2 * staging_bytes < prod(shape)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.integers(1, 40))
def test_bands_cover_a_tensor_in_ascending_order(sizes: list[int], max_bytes: int) -> None:
    shape = tuple(sizes)
    order = np.arange(prod(shape)).reshape(shape)
    seen: list[int] = []
    for offset, size in bands(shape, max_bytes):
        part = order[tuple(slice(at, at + n) for at, n in zip(offset, size, strict=True))]
        assert part.size <= max_bytes
        seen += part.reshape(-1).tolist()
    assert seen == list(range(prod(shape)))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_any_cut_of_any_tensor_comes_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("cut")
    shape = tuple(data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4)))
    dtype = data.draw(st.sampled_from(sorted(SIZES)))
    edges = [sorted(data.draw(st.sets(st.integers(1, size), max_size=3))) for size in shape]
    content = bytes_of(prod(shape) * SIZES[dtype], data.draw(st.integers(0, 99)))
    cells = data.draw(st.permutations(grid(shape, edges)))
    task = tensor_task(folder, "t", dtype, shape, content, cells)
    got = written(folder, task, staging_bytes=data.draw(st.integers(2, 300)))
    assert got == {"t": (dtype, shape, content)}
