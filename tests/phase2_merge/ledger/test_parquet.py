"""ledger.parquet: what readers of an output find there, and what damage to it is called."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shardmerge.common.errors import CorruptFileError
from shardmerge.common.manifest import ABSENT
from shardmerge.phase2_merge.ledger import parquet, table
from shardmerge.phase2_merge.ledger.rank_directories import discover
from tests.dumps.dumps import Topology
from tests.dumps.worlds import MakeWorld

READING = """import os, sys
from pathlib import Path
from shardmerge.phase2_merge.ledger import parquet
before = len(os.listdir("/proc/self/task"))
parquet.read(Path(sys.argv[1]), None)
print(len(os.listdir("/proc/self/task")) - before)"""
INTEGERS = ["nan_count", "inf_count"]
GEOMETRY = ["g0", "g1", "s0", "s1", "o0", "o1"]


@pytest.fixture
def ledger(world: MakeWorld) -> table.Ledger:
    facts = {"nonfinite": [[0, 5, 7]], "all_zero": [1]}
    one = world(Topology(tp=2)).write(health=lambda rank: facts if rank == 1 else {})
    return table.read(discover([one.dump]))


@pytest.fixture
def path(ledger: table.Ledger, tmp_path: Path) -> Path:
    parquet.write(ledger, tmp_path / "ledger.parquet")
    return tmp_path / "ledger.parquet"


def test_its_columns_have_these_names_and_types(path: Path) -> None:
    assert [(field.name, field.type) for field in pq.read_schema(path)] == [
        ("name", pa.dictionary(pa.int32(), pa.string())),
        ("rank", pa.int32()),
        ("file", pa.int32()),
        ("dtype", pa.int8()),
        ("ndim", pa.int8()),
        ("begin", pa.int64()),
        ("end", pa.int64()),
        ("owner", pa.int32()),
        ("xxh3_128", pa.binary(16)),
        *((name, pa.int64()) for name in GEOMETRY),
        *((name, pa.int64()) for name in INTEGERS),
        ("all_zero", pa.bool_()),
    ]


def test_its_rows_are_those_of_the_ledger(ledger: table.Ledger, path: Path) -> None:
    rows, found = ledger.rows, pq.read_table(path).to_pydict()
    for name in ("rank", "file", "dtype", "ndim", "begin", "end", "owner", "all_zero", *INTEGERS):
        assert found[name] == getattr(rows, name).tolist()
    assert found["name"] == [ledger.names[number] for number in rows.name.tolist()]
    assert [value.hex() for value in found["xxh3_128"]] == [rows.checksum(row) for row in range(len(rows))]
    for letter, column in zip("gso", ABSENT, strict=True):
        assert [found[f"{letter}{dim}"] for dim in (0, 1)] == [
            sizes.tolist() for sizes in getattr(rows, column)
        ]
    assert sum(found["nan_count"]) == 5
    assert sum(found["all_zero"]) == 1


def test_a_checksum_that_ends_in_zeros_keeps_them(ledger: table.Ledger, tmp_path: Path) -> None:
    words = ledger.rows.xxh3_128.copy()
    words[:, 1] = 0
    words[0] = 0
    changed = replace(ledger, rows=replace(ledger.rows, xxh3_128=words))
    parquet.write(changed, tmp_path / "zeros.parquet")
    assert pq.read_table(tmp_path / "zeros.parquet")["xxh3_128"].to_pylist() == [
        row.tobytes() for row in words
    ]


def test_only_entire_tensors_have_a_checksum(ledger: table.Ledger, path: Path) -> None:
    rows = ledger.rows
    whole = (rows.whole() & rows.written).nonzero()[0].tolist()
    assert 0 < len(whole) < len(rows)
    expected = {ledger.names[rows.name[row]]: rows.checksum(row) for row in whole}
    assert parquet.whole_checksums(path) == expected


def test_the_same_ledger_gives_the_same_bytes(ledger: table.Ledger, path: Path, tmp_path: Path) -> None:
    parquet.write(ledger, tmp_path / "again.parquet")
    assert (tmp_path / "again.parquet").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("keep", [0, 100, -1])
def test_a_damaged_file_is_called_corrupt(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CorruptFileError) as found:
        parquet.whole_checksums(path)
    assert found.value.path == str(path)


def test_a_table_without_checksums_is_called_corrupt(tmp_path: Path) -> None:
    pq.write_table(pa.table({"name": ["a"], "file": [0]}), tmp_path / "other.parquet", compression="none")
    with pytest.raises(CorruptFileError, match="geometry"):
        parquet.whole_checksums(tmp_path / "other.parquet")


def test_what_the_system_refuses_is_not_called_corrupt() -> None:
    with pytest.raises(PermissionError):
        parquet.reraise_system_errors(PermissionError(13, "denied"))
    parquet.reraise_system_errors(OSError("Couldn't deserialize thrift"))


def test_reading_starts_no_thread_that_a_short_command_would_be_aborted_by(path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", READING, str(path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "0"
