"""Records of another output of the same model, copied over those of an output: every command that reads them tells."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from shardmerge.common.errors import CorruptFileError
from shardmerge.phase2_merge import diff, merge, metadata, verify
from tests.dumps.dumps import Topology, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

HINT = "Copy the output again, with its folder .shardmerge, or merge again."
LEDGER, REPORT = ".shardmerge/ledger.parquet", ".shardmerge/report.json"


@pytest.fixture
def one(world: MakeWorld) -> World:
    """Merged, beside `other`: an output of the same model, dumped by other ranks."""
    other = world(Topology(), moe_config()).write()
    merge(other.dump, other.folder / "other", hf_reference=other.reference, workers=1)
    shutil.rmtree(other.dump)
    made = world(Topology(tp=2, ep=2), moe_config()).write()
    made.merge(max_shard_bytes=700)
    return made


def commands(one: World) -> dict[str, Callable[[], object]]:
    return {
        "verify": lambda: verify(one.out),
        "verify sizes": lambda: verify(one.out, verify="size"),
        "metadata": lambda: metadata(one.out),
        "metadata of a reference": lambda: metadata(one.out, hf_reference=one.reference),
        "merge": lambda: one.merge(max_shard_bytes=700),
        "diff": lambda: diff(one.out, one.dump),
    }


@pytest.mark.parametrize(
    "command", ["verify", "verify sizes", "metadata", "metadata of a reference", "merge", "diff"]
)
def test_the_ledger_of_another_dump_is_told_and_nothing_is_written(one: World, command: str) -> None:
    shutil.copy(one.folder / "other" / LEDGER, one.out / LEDGER)
    before = tree(one.out)
    with pytest.raises(CorruptFileError, match="of another dump than the plan beside it") as found:
        commands(one)[command]()
    assert found.value.path == str(one.out / LEDGER)
    assert found.value.message().endswith(HINT)
    assert tree(one.out) == before


@pytest.mark.parametrize(
    "command", ["verify", "verify sizes", "metadata", "metadata of a reference", "merge"]
)
@pytest.mark.parametrize("same_dump", [True, False])
def test_the_report_of_another_plan_is_told_and_none_of_its_corrections_is_written(
    one: World, command: str, same_dump: bool, tmp_path: Path
) -> None:
    other = one.folder / "other"
    if same_dump:
        other = tmp_path / "other shards"
        merge(one.dump, other, hf_reference=one.reference, workers=1, max_shard_bytes=900)
    metadata(other, corrections=["config.rope_theta=5"])
    shutil.copy(other / REPORT, one.out / REPORT)
    before = tree(one.out)
    with pytest.raises(CorruptFileError, match=r"it is of another output than plan\.json") as found:
        commands(one)[command]()
    assert found.value.path == str(one.out / REPORT)
    assert found.value.message().endswith(HINT)
    assert tree(one.out) == before


def test_a_report_that_names_no_plan_is_read_as_before(one: World) -> None:
    path = one.out / REPORT
    path.write_bytes(path.read_bytes().replace(b'"plan_digest"', b'"no_longer"'))
    assert metadata(one.out, corrections=["config.rope_theta=5"]).corrections["config.rope_theta"]["now"] == 5
    assert verify(one.out).warnings == ()
