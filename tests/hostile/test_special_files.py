"""A FIFO, a device, a socket or a folder where a file belongs: refused at once, and named."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from tests.dumps.worlds import MakeWorld, World
from tests.hostile.running import check, merge, run, written

IN_DUMP = ["manifest.json", "whole-00001.safetensors", "split-00001.safetensors"]
IN_REFERENCE = ["config.json", "model.safetensors", "tokenizer.json"]
IN_OUTPUT = [
    "config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors", "hf_quant_config.json",
    ".shardmerge/ledger.parquet", ".shardmerge/plan.json", ".shardmerge/report.json",
    ".shardmerge/receipts/model-00002-of-00002.safetensors.json",
]  # fmt: skip


def put_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


@pytest.mark.parametrize("name", IN_DUMP)
@pytest.mark.parametrize("command", [check, merge])
def test_a_fifo_in_a_rank_is_refused(world: MakeWorld, name: str, command: type) -> None:
    one = written(world)
    put_fifo(one.rank(0) / name)
    result = command(one, codes=(4,))
    assert f"{one.rank(0) / name}" in result.stderr
    assert "it is a FIFO, not a regular file" in result.stderr
    assert not one.out.exists()


def test_a_fifo_as_the_record_of_a_failed_rank_is_said_and_waits_for_nobody(world: MakeWorld) -> None:
    one = written(world)
    put_fifo(one.dump / "rank-00007.failed.json")
    assert (
        "rank 7 failed: rank-00007.failed.json cannot be read" in run("inspect", one.dump, codes=(0,)).output
    )
    check(one, codes=(0,))


@pytest.mark.parametrize("name", IN_REFERENCE)
def test_a_fifo_in_a_reference_is_refused(world: MakeWorld, name: str) -> None:
    one = written(world, weights=True)
    put_fifo(one.reference / name)
    assert "it is a FIFO" in merge(one, codes=(4,)).stderr


@pytest.mark.parametrize("name", IN_OUTPUT)
def test_a_fifo_in_an_output_is_refused(merged: World, name: str) -> None:
    put_fifo(merged.out / name)
    assert "it is a FIFO" in run("verify", merged.out, codes=(4,)).stderr


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors.index.json", "model-00001-of-00002.safetensors"]
)
def test_a_fifo_in_an_output_is_refused_by_inspect(merged: World, name: str) -> None:
    put_fifo(merged.out / name)
    assert "it is a FIFO" in run("inspect", merged.out, codes=(4,)).stderr


def test_a_fifo_in_an_output_is_refused_by_diff(merged: World) -> None:
    put_fifo(merged.out / ".shardmerge/ledger.parquet")
    assert "it is a FIFO" in run("diff", merged.dump, merged.out, codes=(4,)).stderr


def test_a_folder_or_a_socket_in_place_of_a_manifest_is_refused(
    world: MakeWorld, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = written(world)
    path = one.rank(1) / "manifest.json"
    path.unlink()
    path.mkdir()
    assert "it is a folder" in check(one, codes=(4,)).stderr
    path.rmdir()
    monkeypatch.chdir(path.parent)  # the path of a socket may have a hundred bytes
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)
        assert "it is a socket" in check(one, codes=(4,)).stderr


def test_a_device_in_place_of_a_manifest_is_refused(world: MakeWorld) -> None:
    one = written(world)
    (one.rank(1) / "manifest.json").unlink()
    try:
        os.mknod(one.rank(1) / "manifest.json", 0o20666, os.makedev(1, 5))  # /dev/zero, which never ends
    except PermissionError:
        pytest.skip("only root makes devices")
    assert "it is a device" in check(one, codes=(4,)).stderr
