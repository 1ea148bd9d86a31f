"""What the kernel calls a file system, beside what `df` calls it, and how much is written there with one call."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from shardmerge.common import durable, file_systems


def by_df(folder: Path) -> str:
    told = subprocess.run(
        ["df", "--output=fstype", str(folder)], capture_output=True, text=True, check=True, timeout=60
    )
    return told.stdout.split()[-1]


def test_a_file_system_has_the_name_that_df_tells(tmp_path: Path) -> None:
    with TemporaryDirectory(dir="/dev/shm") as in_memory:
        for folder in (tmp_path, Path(in_memory)):
            with open(folder / "file", "xb") as file:
                assert file_systems.kind_of(file_systems.mount_number(file.fileno())) == by_df(folder)
    with open("/proc/uptime", "rb") as file:
        assert file_systems.kind_of(file_systems.mount_number(file.fileno())) == by_df(Path("/proc"))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("tmpfs", 4 << 20), ("lustre", 4 << 20), ("ext4", 1 << 20), ("xfs", 1 << 20), ("", 1 << 20)],
)
def test_calls_are_small_where_pages_grow_with_them(
    kind: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = list[int]()

    def write(_file: int, data: memoryview) -> int:
        calls.append(len(data))
        return len(data)

    monkeypatch.setattr(file_systems, "kind_of", lambda _: kind)
    with open(tmp_path / "file", "wb") as file:
        monkeypatch.setattr(os, "write", write)
        end = durable.Appending(file.fileno(), durable.call_bytes(file.fileno()))
        end.write(memoryview(bytes((4 << 20) + 1)))
    assert max(calls) == expected
    assert sum(calls) == (4 << 20) + 1
