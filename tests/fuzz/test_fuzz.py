"""Manifests and safetensors headers, damaged at random: a refusal of the tree, or a sound result; nothing else.

Hypothesis changes bytes of real files, and values of real manifests under a digest that fits. An alarm ends what
hangs; tracemalloc what takes memory out of proportion.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shardmerge.common import safetensors_header
from shardmerge.phase2_merge import check, inspect
from shardmerge.phase2_merge.ledger import fast_json as manifest_json
from shardmerge.phase2_merge.ledger import table as ledger
from shardmerge.phase2_merge.ledger.rank_directories import discover
from tests.dumps import dumps
from tests.dumps.refusals import edit

from .surviving import BOUNDED, BYTES, JSON, NUMBERS, changed, survives

MODEL = dumps.model_of(dumps.dense_config(1))


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dump of one rank and its reference."""
    folder = tmp_path_factory.mktemp("fuzz")
    topology = dumps.Topology()
    dumps.write_dump(folder / "dump", MODEL, dumps.cuts_of(MODEL, topology), topology)
    dumps.write_reference(folder / "reference", MODEL)
    return folder


def look(dump: Path, reference: Path) -> None:
    """Read, prove and show a dump; each may refuse."""
    survives(lambda: ledger.read(discover([dump])))
    survives(lambda: check([dump], hf_reference=reference, verify="size"))
    survives(lambda: inspect(dump))


def spoiled(sound: Path, folder: Path) -> Path:
    """A copy of the dump's rank in `folder`, its fragments linked."""
    rank = folder / "rank-00000"
    rank.mkdir()
    for path in (sound / "dump" / "rank-00000").iterdir():
        (rank / path.name).write_bytes(path.read_bytes())
    return rank


@BOUNDED
@given(**BYTES)
def test_bytes_of_a_header_changed(sound: Path, at: int, put: bytes, cut: int) -> None:
    data = next((sound / "dump" / "rank-00000").glob("*.safetensors")).read_bytes()
    head = 8 + int.from_bytes(data[:8], "little")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(changed(data[:head], at, put, cut) + data[head:])
        survives(lambda: safetensors_header.read(path))


@BOUNDED
@given(length=st.integers(0, (1 << 64) - 1), body=st.binary(max_size=40))
def test_any_length_of_a_header(length: int, body: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        path.write_bytes(length.to_bytes(8, "little") + body)
        survives(lambda: safetensors_header.read(path))


@BOUNDED
@given(body=JSON)
def test_any_json_as_a_header(body: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        text = json.dumps(body).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text)
        survives(lambda: safetensors_header.read(path))


@BOUNDED
@given(name=st.sampled_from(["a", "__metadata__"]), shape=st.lists(NUMBERS, max_size=5), begin=NUMBERS, end=NUMBERS,
       dtype=st.sampled_from(["BF16", "F4", "F64", "?"]))  # fmt: skip
def test_any_numbers_in_a_header(name: str, shape: list[int], begin: int, end: int, dtype: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        entry = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
        text = json.dumps({name: entry}).encode()
        path.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 16)
        survives(lambda: safetensors_header.read(path))


@BOUNDED
@given(**BYTES)
def test_bytes_of_a_manifest_changed(sound: Path, at: int, put: bytes, cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = spoiled(sound, Path(folder)) / "manifest.json"
        path.write_bytes(changed(path.read_bytes(), at, put, cut))
        look(Path(folder), sound / "reference")


FIELDS = ["run_id", "step", "attempt", "rank", "world_size", "coordinates", "groups", "architecture",
          "facts", "files", "names", "dtypes", "health", "quantization", "drops", "statistics", "producer",
          "columns"]  # fmt: skip


@BOUNDED
@given(field=st.sampled_from(FIELDS), value=JSON)
@example(field="drops", value={"": None})
def test_any_value_of_a_field_under_a_digest_that_fits(sound: Path, field: str, value: Any) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = spoiled(sound, Path(folder)) / "manifest.json"
        try:
            edit(path, **{field: value})
        except (ValueError, UnicodeEncodeError):
            return  # NaN, or half a character: canonical JSON cannot hold it
        look(Path(folder), sound / "reference")


COLUMNS = ["name", "file", "dtype", "ndim", "begin", "end", "owner", "xxh3_128"]
GEOMETRY = ["global_shape", "local_shape", "global_offset"]


@BOUNDED
@given(column=st.sampled_from([*COLUMNS, *GEOMETRY]), row=st.integers(0, 8), value=NUMBERS | JSON)
def test_any_value_in_a_column_under_a_digest_that_fits(
    sound: Path, column: str, row: int, value: Any
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = spoiled(sound, Path(folder)) / "manifest.json"
        columns = json.loads(path.read_bytes())["columns"]
        target = columns[column][0] if column in GEOMETRY else columns[column]
        target[row] = value
        try:
            edit(path, columns=columns)
        except (ValueError, UnicodeEncodeError):
            return
        look(Path(folder), sound / "reference")


@given(text=st.text(max_size=60), value=JSON)
def test_the_fast_parser_refuses_and_returns_what_the_strict_one_does(text: str, value: Any) -> None:
    from shardmerge.common import canonical_json

    for data in (text.encode("utf-8", "replace"), json.dumps(value).encode(), b'{"a":1,"a":2}\n'):
        assert answer(manifest_json.decode, data) == answer(canonical_json.decode, data)


def answer(parse: Callable[[bytes], Any], data: bytes) -> str:
    """What a parser returns, or the words in which it refuses; repr tells true from 1 and NaN from itself."""
    try:
        return repr(parse(data))
    except ValueError as error:
        return f"{type(error).__name__}: {error}"
