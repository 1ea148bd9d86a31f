"""`verify` of an output that lost records or shards: it says what is missing, never "Sound" of a part."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from tests.dumps.worlds import World
from tests.hostile.running import check, run

RECORDS = Path(".shardmerge")


@pytest.mark.parametrize("how", ["full", "size"])
@pytest.mark.parametrize(
    "name", ["ledger.parquet", "plan.json", "report.json", "receipts/model-00002-of-00002.safetensors.json"]
)
def test_an_output_without_one_of_its_records_is_not_sound(merged: World, name: str, how: str) -> None:
    (merged.out / RECORDS / name).unlink()
    result = run("verify", merged.out, "--verify", how, codes=(3,))
    assert f"{merged.out / RECORDS / name} is missing" in result.stderr


def test_all_records_but_one_are_missing(merged: World) -> None:
    shutil.rmtree(merged.out / RECORDS / "receipts")
    for name in ("ledger.parquet", "plan.json"):
        (merged.out / RECORDS / name).unlink()
    assert "2 x missing record" in run("verify", merged.out, codes=(3,)).stderr


def test_a_shard_that_the_plan_has_and_neither_index_nor_folder_is_missing(merged: World) -> None:
    """The index is written anew without the shard, as a careless copy would: it fits what is there."""
    gone = merged.out / "model-00001-of-00002.safetensors"
    path = merged.out / "model.safetensors.index.json"
    index = json.loads(path.read_bytes())
    index["weight_map"] = {name: file for name, file in index["weight_map"].items() if file != gone.name}
    del index["metadata"]
    path.write_text(json.dumps(index))
    gone.unlink()
    assert f"{gone} is missing, which every merge publishes" in run("verify", merged.out, codes=(3,)).stderr


def test_a_shard_that_no_plan_has_is_refused(merged: World) -> None:
    path = merged.out / "model.safetensors.index.json"
    path.write_bytes(path.read_bytes().replace(b"model-00001-of", b"model-00003-of"))
    (merged.out / "model-00001-of-00002.safetensors").rename(merged.out / "model-00003-of-00002.safetensors")
    shown = run("verify", merged.out, codes=(4,)).stderr
    assert "readers would load model-00003-of-00002.safetensors, which is not in the plan" in shown


def test_it_says_of_how_many_tensors_bytes_were_compared(merged: World) -> None:
    assert "; the bytes of 45 tensors." in run("verify", merged.out, codes=(0,)).stdout


def test_a_folder_without_records_says_that_no_bytes_were_compared(merged: World) -> None:
    shutil.rmtree(merged.out / RECORDS)
    shown = run("verify", merged.out, codes=(0,)).stdout
    assert "the bytes of 45 tensors (no checksum of them is recorded)" in shown
    facts = json.loads(run("verify", merged.out, "--json", codes=(0,)).stdout)
    assert (facts["checksums_compared"], facts["without_checksum"]) == (0, 45)


def test_a_waiting_journal_is_said_beside_problems(merged: World) -> None:
    (merged.out / RECORDS / "journal.json").write_text('{"schema_version": 1, "replace": [], "remove": []}')
    assert "was interrupted" in run("verify", merged.out, codes=(0,)).stdout
    (merged.out / RECORDS / "plan.json").unlink()
    result = run("verify", merged.out, "--json", codes=(3,))
    assert "plan.json is missing" in result.stderr
    assert "was interrupted: some JSON files are old and some new" in result.stderr.splitlines()[-1]
    assert "was interrupted" in json.loads(result.stdout)["remarks"][0]


def state(folder: Path) -> dict[str, tuple[int, int, int]]:
    """Every name below a folder, with its inode, time of change and size."""
    return {
        str(path): (found.st_ino, found.st_mtime_ns, found.st_size)
        for path in sorted(folder.rglob("*"))
        for found in [os.lstat(path)]
    }


JOURNALS = [
    {"schema_version": 1, "replace": ["config.json"], "remove": ["tokenizer.json"]},
    {"schema_version": 1, "replace": ["../reference/config.json"], "remove": ["../reference/tokenizer.json"]},
]


@pytest.mark.parametrize("journal", JOURNALS)
def test_commands_that_look_write_nothing_and_follow_no_journal(merged: World, journal: object) -> None:
    (merged.out / RECORDS / "next").mkdir()
    (merged.out / RECORDS / "next" / "config.json").write_text("{}")
    (merged.out / RECORDS / "journal.json").write_text(json.dumps(journal))
    before = state(merged.folder)
    run("verify", merged.out, codes=(0,))
    run("verify", merged.out, "--scan", codes=(4,))  # random bytes hold NaN
    run("inspect", merged.out, codes=(0,))
    run("inspect", merged.dump, codes=(0,))
    run("diff", merged.dump, merged.out, codes=(0,))
    check(merged, codes=(0,))
    assert state(merged.folder) == before
