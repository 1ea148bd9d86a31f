"""Archives that torch.save writes: where their numbers lie, whatever view of a storage was saved; and damaged ones."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from shardmerge.common.errors import ShardmergeError
from shardmerge.phase1_dump.torch_dist.archives import StoredTensor, read_tensor

BASE = torch.arange(240, dtype=torch.float32).reshape(4, 6, 10)
VIEWS = {
    "whole": BASE,
    "a part of a larger storage": BASE[1:3],
    "transposed": BASE[0].T,
    "columns": BASE[2][:, 3:7],
    "in bfloat16": BASE.to(torch.bfloat16),
    "in float16": BASE.half()[1].T,
    "a parameter": torch.nn.Parameter(BASE[3]),
    "an empty one": BASE[:0],
    "a number": torch.tensor(3.5),
}


def saved(value: object) -> bytes:
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def read(data: bytes, before: int = 0, length: int | None = None) -> StoredTensor:
    """The tensor of an archive that lies behind `before` bytes of something else, and before more."""
    file = b"x" * before + data + b"y" * 50

    def read_at(count: int, offset: int) -> bytes:
        return file[offset : offset + count]

    return read_tensor(read_at, before, len(data) if length is None else length, "FILE")


@pytest.mark.parametrize("what", VIEWS)
def test_the_numbers_of_a_view_are_found(what: str) -> None:
    tensor = VIEWS[what].detach()
    data = saved(VIEWS[what])
    found = read(data, before=12345)

    raw = data[found.begin - 12345 :][: found.num_bytes]
    assert zlib.crc32(raw) == found.crc32
    itemsize = tensor.element_size()
    numbers = np.frombuffer(raw, f"u{itemsize}")
    strides = tuple(stride * itemsize for stride in found.strides)
    view = np.lib.stride_tricks.as_strided(numbers[found.first :], found.shape, strides)
    assert view.tobytes() == tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
    assert found.is_in_order == tensor.is_contiguous()


@pytest.mark.parametrize("value", [{"a": BASE}, [BASE], b"bytes", {"a": 1}, [BASE, BASE]])
def test_what_is_no_single_tensor_is_refused(value: object) -> None:
    with pytest.raises((ValueError, ShardmergeError)):
        read(saved(value))


@given(at=st.integers(0, 1500), byte=st.integers(0, 255), cut=st.integers(0, 1500))
@settings(max_examples=300, deadline=None)
def test_damage_is_refused_or_harmless_or_shows_in_the_checksum(at: int, byte: int, cut: int) -> None:
    """The checksum of the numbers is compared when they are read."""
    data = saved(BASE[0])
    damaged = data[:at] + bytes([byte]) + data[at + 1 :]
    sound = read(data)
    for tried in (damaged, data[: min(cut, len(data) - 1)]):
        try:
            found = read(tried)
        except (ValueError, ShardmergeError):
            continue
        assert (found.shape, found.strides) == (sound.shape, sound.strides)
        raw = tried[found.begin :][: found.num_bytes]
        assert found.begin == sound.begin or zlib.crc32(raw) != found.crc32
        assert tried is damaged


def test_an_archive_that_is_cut_is_refused() -> None:
    data = saved(BASE)
    with pytest.raises(ValueError, match="no archive ends there"):
        read(data, length=len(data) - 1)
