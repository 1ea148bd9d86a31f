"""Pickles are read without being executed: what is not known is refused by name, in little time and memory."""

from __future__ import annotations

import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)

from shardmerge.common.errors import CorruptFileError, ShardmergeError, UnknownInPickleError
from shardmerge.phase1_dump.torch_dist import opcodes
from shardmerge.phase1_dump.torch_dist.metadata import Described, read_metadata
from shardmerge.phase1_dump.torch_dist.names import OF_METADATA
from shardmerge.phase1_dump.torch_dist.pickles import Unpickler
from tests.phase1_dump.torch_dist.hostile import HOSTILE

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | st.text(max_size=300),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=9), inner, max_size=5)
    | st.tuples(inner) | st.tuples(inner, inner, inner, inner),
    max_leaves=40,
)  # fmt: skip


def load(data: bytes, **options: Any) -> Any:
    """The value of a pickle, with the stand-ins of `.metadata`."""
    return Unpickler(io.BytesIO(data).read, OF_METADATA, "FILE", **options).load()


def described(data: bytes) -> Described:
    return read_metadata(lambda: io.BytesIO(data), len(data), "FILE")  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("read", [load, described])
def test_hostile_pickles_are_refused_and_not_executed(
    what: str, read: Callable[[bytes], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises((UnknownInPickleError, CorruptFileError)):
        read(HOSTILE[what])
    assert list(tmp_path.iterdir()) == []


def test_what_is_refused_is_named() -> None:
    with pytest.raises(UnknownInPickleError, match=r"FILE names posix\.system, which no checkpoint"):
        load(HOSTILE["os.system"])
    assert UnknownInPickleError("FILE", "x").exit_code == 5


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@given(value=PLAIN)
@settings(max_examples=60, deadline=None)
def test_plain_values_are_what_python_reads(protocol: int, value: Any) -> None:
    data = pickle.dumps(value, protocol)

    assert load(data) == value
    assert load(data, asked_for=opcodes.asked_for(io.BytesIO(data).read, len(data))) == value


@given(data=st.binary(max_size=60), at=st.integers(0, 200), cut=st.integers(0, 400))
@settings(max_examples=300, deadline=None)
def test_damaged_pickles_are_read_or_refused(data: bytes, at: int, cut: int) -> None:
    sound = pickle.dumps(small(), 4)

    damaged = sound[:at] + data + sound[at + len(data) :]
    for tried in (damaged, sound[:cut]):
        try:
            described(tried)
        except ShardmergeError as error:
            assert isinstance(error, UnknownInPickleError | CorruptFileError)  # noqa: PT017


def small() -> Metadata:
    """A checkpoint with a tensor of two chunks, described by torch's own classes."""
    chunks = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([2, 3])) for row in (0, 2)]
    tensor = TensorStorageMetadata(TensorProperties(dtype=torch.bfloat16), torch.Size([4, 3]), chunks)
    storage = {
        MetadataIndex("a", chunk.offsets): _StorageInfo("__0_0.distcp", 100 * place, 90)
        for place, chunk in enumerate(chunks)
    }
    return Metadata({"a": tensor}, storage_data=storage)


def many(chunks: int) -> bytes:
    """A checkpoint with a tensor of so many chunks, whose windows end in the middle of everything."""
    rows = [ChunkStorageMetadata(torch.Size([row, 0]), torch.Size([1, 3])) for row in range(chunks)]
    tensor = TensorStorageMetadata(TensorProperties(dtype=torch.float32), torch.Size([chunks, 3]), rows)
    storage = {
        MetadataIndex("a", chunk.offsets): _StorageInfo(f"__{place % 7}_0.distcp", 100 * place, 90)
        for place, chunk in enumerate(rows)
    }
    return pickle.dumps(Metadata({"a": tensor}, storage_data=storage))


@pytest.mark.parametrize("window", [1 << 16, 100_003, 1 << 20])
def test_all_chunks_are_found_wherever_a_window_ends(window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opcodes, "WINDOW_BYTES", window)
    data = many(9000)
    assert len(data) > 1_000_000

    found = described(data)
    assert found.tensors["a"].shape == (9000, 3)
    assert found.tensors["a"].chunks == range(9000)
    shapes = found.columns.shapes.values()
    assert [shapes[number] for number in found.columns.chunk_offset] == [(row, 0) for row in range(9000)]
    assert [shapes[number] for number in found.columns.offset] == [(row, 0) for row in range(9000)]
    assert list(found.columns.begin) == [100 * row for row in range(9000)]
    assert found.columns.paths.values() == [f"__{number}_0.distcp" for number in range(7)]
