"""What a published output keeps comes back as it was merged, and records that contradict themselves are refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import BadInputError, CorruptFileError
from shardmerge.phase2_merge.ledger import published
from tests.dumps.dumps import Topology, moe_config
from tests.dumps.worlds import MakeWorld, World

PLAN, REPORT = ".shardmerge/plan.json", ".shardmerge/report.json"


@pytest.fixture
def one(world: MakeWorld) -> World:
    """Merged, with adopted shards and assembled ones."""
    made = world(Topology(tp=2, ep=2), moe_config()).write()
    made.merge()
    return made


def test_tensors_are_those_of_the_model(one: World) -> None:
    found = published.read(one.out)
    assert found.names == sorted(one.model.tensors)
    assert found.shapes == [one.model.tensors[name][1] for name in found.names]
    assert found.total_bytes == sum(len(data) for _, _, data in one.model.tensors.values())
    assert found.architecture == one.model.config["architectures"][0]
    assert (found.plain, found.dominant_dtype) == (True, "BF16")


def test_the_weight_map_is_that_of_the_index(one: World) -> None:
    index = json.loads((one.out / "model.safetensors.index.json").read_bytes())
    found = published.read(one.out)
    assert found.weight_map == index["weight_map"]
    assert sorted(found.plan.shards) == sorted({*index["weight_map"].values()})
    assert found.plan.adopted
    assert found.plan.assembled


def test_plan_and_report_are_as_they_stand_there(one: World) -> None:
    found = published.read(one.out)
    assert found.plan.facts == json.loads((one.out / PLAN).read_bytes())
    assert found.report.facts == json.loads((one.out / REPORT).read_bytes())
    assert found.plan.ledger_digest == found.report.facts["check"]["ledger_digest"]
    assert (found.plan.grafted, found.report.corrections) == (frozenset(), {})


def test_a_changed_report_differs_in_what_was_changed_only(one: World) -> None:
    report = published.read(one.out).report
    corrections = {"config.a": {"was": 1, "now": 2}}
    changed = report.changed({"corrections": corrections}, ("tokenizer.json",))
    assert changed["check"].pop("corrections") == corrections
    assert changed.pop("sidecars") == ["tokenizer.json"]
    before = json.loads((one.out / REPORT).read_bytes())
    del before["check"]["corrections"], before["sidecars"]
    assert changed == before


def test_a_directory_that_nobody_published_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=r"holds no \.shardmerge/ledger\.parquet"):
        published.read(tmp_path)


def no_assembled(plan: dict[str, Any]) -> None:
    plan["assembled"] = []


def no_file(plan: dict[str, Any]) -> None:
    del plan["adopted"][0]["file"]


def a_path(plan: dict[str, Any]) -> None:
    plan["adopted"][0]["shard"] = "../model.safetensors"


def a_number(plan: dict[str, Any]) -> None:
    plan["assembled"][0]["tensors"] = [5]


def nowhere(plan: dict[str, Any]) -> None:
    plan["adopted"][0]["rank"] = "0"


@pytest.mark.parametrize(
    ("spoil", "file", "reason"),
    [
        (no_assembled, "ledger.parquet", "to no shard"),
        (no_file, "plan.json", "file"),
        (a_path, "plan.json", "the plan calls a shard '../model.safetensors'"),
        (a_number, "plan.json", "lists no names of tensors"),
        (nowhere, "plan.json", "from no file"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    one: World, spoil: Callable[[dict[str, Any]], None], file: str, reason: str
) -> None:
    plan = json.loads((one.out / PLAN).read_bytes())
    spoil(plan)
    (one.out / PLAN).write_text(json.dumps(plan))
    with pytest.raises(CorruptFileError) as found:
        published.read(one.out)
    assert Path(found.value.path).name == file
    assert reason in found.value.reason
