"""Headers against the safetensors library: it reads what we build, we read what it writes; where we are stricter."""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st

from shardmerge.common import safetensors_header
from shardmerge.common.errors import BadInputError, CorruptFileError

SIZES = {"F32": 4, "F16": 2, "I64": 8, "U8": 1}


def raw(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def tensor(shape: list[int], begin: int, end: int, dtype: str = "U8") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def refused(tmp_path: Path, content: bytes) -> str:
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFileError) as error:
        safetensors_header.read(path)
    assert error.value.path == str(path)
    return error.value.reason


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
            lambda n: n != "__metadata__"
        ),
        st.tuples(st.sampled_from(sorted(SIZES)), st.lists(st.integers(0, 4), max_size=3)),
        max_size=6,
    )
)
def test_the_library_reads_what_we_build(tensors: dict[str, tuple[str, list[int]]]) -> None:
    order = sorted(
        tensors, key=lambda n: safetensors_header.layout_order(prod(tensors[n][1]) * SIZES[tensors[n][0]], n)
    )
    head, header = safetensors_header.build((name, *tensors[name]) for name in order)
    assert len(head) % 4096 == 0
    found = safetensors.deserialize(head + bytes(header.file_bytes - len(head)))
    assert {name: (one["dtype"], one["shape"]) for name, one in found} == {
        n: (d, s) for n, (d, s) in tensors.items()
    }


def test_we_read_what_the_library_writes(tmp_path: Path) -> None:
    arrays: dict[str, np.ndarray[Any, Any]] = {
        "b": np.arange(6, dtype=np.float32).reshape(2, 3),
        "a": np.zeros((0, 4), np.int64),
        "s": np.array(1.5),
    }
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors", {"format": "pt"})
    header = safetensors_header.read(tmp_path / "x.safetensors")
    data = (tmp_path / "x.safetensors").read_bytes()[header.data_offset :]
    got = {entry.name: (entry.dtype, entry.shape, data[entry.begin : entry.end]) for entry in header.entries}
    assert got == {
        "a": ("I64", (0, 4), b""),
        "b": ("F32", (2, 3), arrays["b"].tobytes()),
        "s": ("F64", (), arrays["s"].tobytes()),
    }
    assert header.metadata == {"format": "pt"}


def test_page_multiples_come_first_and_small_tensors_last() -> None:
    sizes = {"a": 6, "b": 8192, "c": 0, "d": 4, "e": 4096 * 3, "f": 512}
    assert sorted(sizes, key=lambda n: safetensors_header.layout_order(sizes[n], n)) == [
        "b",
        "c",
        "e",
        "f",
        "d",
        "a",
    ]


def test_the_same_tensor_twice_cannot_be_built() -> None:
    with pytest.raises(BadInputError, match="same tensor twice"):
        safetensors_header.build([("w", "U8", (1,)), ("w", "U8", (1,))])


def test_a_header_beyond_the_limit_cannot_be_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(safetensors_header, "MAX_HEADER_BYTES", 4000)
    with pytest.raises(BadInputError, match="smaller maximum shard size"):
        safetensors_header.build([("w", "U8", (1,))])


def test_a_duplicate_name_is_refused_though_the_library_takes_it(tmp_path: Path) -> None:
    one = json.dumps(tensor([1], 0, 1))
    content = raw(f'{{"w": {one}, "w": {one}}}'.encode(), b"x")
    assert [name for name, _ in safetensors.deserialize(content)] == ["w"]
    assert "occurs twice" in refused(tmp_path, content)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "the file has 0"),
        (b"1234567", "the file has 7"),
        (raw({})[:-1], "its header says 2 bytes"),
        ((1 << 60).to_bytes(8, "little") + b"{}", "its header says"),
        (raw(b"not json"), "header: "),
        (raw(b"[]"), "not a JSON object"),
        (raw(b"[" * 100_000), "nested too deeply"),
        (raw({"w": 1}), "expected dtype"),
        (raw({"w": tensor([1], 0, 1) | {"dtype": "U9"}}, b"x"), "bad dtype"),
        (raw({"w": tensor([-1], 0, 1)}, b"x"), "bad dtype, shape or offsets"),
        (raw({"w": tensor([2], 0, 1)}, b"x"), "needs 2 bytes, its offsets give 1"),
        (raw({"w": tensor([1], 1, 2)}, b"xx"), "starts at 1, the bytes before it end at 0"),
        (raw({"v": tensor([2], 0, 2), "w": tensor([1], 1, 2)}, b"xx"), "starts at 1, the bytes before it end at 2"),
        (raw({"w": tensor([1], 0, 1)}, b"xy"), "describes"),
        (raw({"w": tensor([1], 0, 1)}), "describes"),
        (raw({"__metadata__": {"format": 1}}), "strings to strings"),
        (raw({"w": tensor([1 << 62, 1 << 62], 0, 1)}, b"x"), "needs"),
        (raw({"w": {"dtype": "U8", "shape": [True], "data_offsets": [0, 1]}}, b"x"), "bad dtype, shape or offsets"),
    ],
)  # fmt: skip
def test_every_way_a_file_can_be_bad_is_named(tmp_path: Path, content: bytes, reason: str) -> None:
    assert reason in refused(tmp_path, content)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(tmp_path_factory: pytest.TempPathFactory, content: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "x"
    path.write_bytes(content)
    try:
        found = safetensors_header.read(path)
    except CorruptFileError:
        return
    assert found.file_bytes == len(content)
