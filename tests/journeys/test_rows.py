"""Every row of the tables matters: where one is changed, the oracle of the journeys fails.

Targets of a row are exchanged with those of another row of the same layers, parts of a tensor with each other, a copy
gets another source. Either the dump or the merge refuses that, or bytes differ from the published checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from shardmerge.common.architectures import ARCHITECTURES, Blueprint, blueprint
from shardmerge.common.architectures.rows import Layout, Row
from shardmerge.common.errors import ShardmergeError
from shardmerge.common.reference import read_config
from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import DEEPSEEK_V3_MTP, NEMOTRON_H_LATENT_MTP, can_build, write_mtp_checkpoint
from tests.worlds.oracle import load_model, write_torch_dist
from tests.worlds.topology import SINGLE

FAMILIES = tuple(family for family in (DEEPSEEK_V3_MTP, NEMOTRON_H_LATENT_MTP) if can_build(family))
REFUSED = "refused"


def mutations(table: Blueprint) -> Iterator[tuple[str, tuple[Row, ...]]]:
    """Yield what is wrong, and all rows, once for each row that config.json uses."""
    used = [row for row in table.rows if _is_used(table, row)]
    for row in used:
        if row.copy_of:
            others = [one.targets[0].name for one in used if one.copy_of or one.layout is Layout.VOCAB]
            other = next(name for name in others if name != row.copy_of and "{" not in name)
            yield f"{row.targets[0].name} copies {other}", _with(table, {row: replace(row, copy_of=other)})
        elif row.layout is Layout.QKV:
            turned = replace(row, targets=row.targets[1:] + row.targets[:1])
            yield f"{row.keys[0]} is cut in another order", _with(table, {row: turned})
        else:
            other_row = _partner(row, used)
            yield f"{row.keys[0]} and {other_row.keys[0]} exchanged", _with(table, _exchanged(row, other_row))


def _partner(row: Row, used: list[Row]) -> Row:
    """Return another row of the same layers, if possible with targets of the same shape."""
    alike = [
        one for one in used if one is not row and one.where == row.where and one.keys and not one.copy_of
    ]
    alike = [one for one in alike if len(one.targets) == len(row.targets)] or [
        one for one in used if one is not row and one.keys and len(one.targets) == len(row.targets)
    ]
    parts = [one for one in alike if one.layout is Layout.PART and one.targets == row.targets]
    same_shape = [one for one in alike if one.targets[0].shape == row.targets[0].shape]
    of_experts = [one for one in alike if ("{expert}" in one.keys[0]) == ("{expert}" in row.keys[0])]
    return next(iter(parts or same_shape or of_experts or alike))


def _exchanged(row: Row, other: Row) -> dict[Row, Row]:
    if row.layout is Layout.PART and other.targets == row.targets:
        return {row: replace(row, part=other.part), other: replace(other, part=row.part)}
    return {row: replace(row, targets=other.targets), other: replace(other, targets=row.targets)}


def _with(table: Blueprint, changed: dict[Row, Row]) -> tuple[Row, ...]:
    return tuple(changed.get(row, row) for row in table.architecture.rows)


def _is_used(table: Blueprint, row: Row) -> bool:
    every = range(table.mtp_layers.stop)
    return row.where == "model" or any(layer in table.layers[row.where] for layer in every)


def dump_each(_rank: int, family: Family, torch_dist: Path, reference: Path, out: Path) -> None:
    """Dump one model with each of the wrong tables; where it is refused, say so in place of the dump."""
    from shardmerge.phase1_dump import dump

    chunks = load_model(0, family, SINGLE, torch_dist)
    table = blueprint(read_config(reference))
    for number, (_, rows) in enumerate(mutations(table)):
        wrong = replace(table.architecture, rows=rows)
        with mock.patch.dict(ARCHITECTURES, {wrong.name: wrong}):
            try:
                dump(chunks, out / str(number), hf_reference=reference, run_id="wrong", step=1)
            except ShardmergeError:
                (out / str(number)).mkdir(parents=True, exist_ok=True)
                (out / str(number) / REFUSED).touch()


def is_noticed(dump: Path, merged: Path, reference: Path) -> bool:
    """Whether a dump was refused, its merge is, or a byte differs from the checkpoint."""
    if (dump / REFUSED).exists():
        return True
    try:
        merge([dump], merged, hf_reference=reference, workers=1)
    except ShardmergeError:
        return True
    return differing(reference, merged) != []


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_every_row_that_is_changed_is_noticed(family: Family, ranks: GlooRanks, tmp_path: Path) -> None:
    reference = write_mtp_checkpoint(family, tmp_path / "hf")
    torch_dist = write_torch_dist(ranks, family, reference, tmp_path / "torch_dist")
    ranks.run(dump_right, SINGLE, family, torch_dist, reference, tmp_path / "right")
    merge([tmp_path / "right"], tmp_path / "merged", hf_reference=reference, workers=1)
    assert differing(reference, tmp_path / "merged") == []
    ranks.run(dump_each, SINGLE, family, torch_dist, reference, tmp_path / "dumps")
    table, missed, changed = blueprint(read_config(reference)), list[str](), 0
    for number, (what, rows) in enumerate(mutations(table)):
        wrong = replace(table.architecture, rows=rows)
        with mock.patch.dict(ARCHITECTURES, {wrong.name: wrong}):
            if not is_noticed(tmp_path / "dumps" / str(number), tmp_path / f"merged-{number}", reference):
                missed.append(what)
        changed += 1
    assert missed == []
    assert changed == sum(_is_used(table, row) for row in table.rows)


def dump_right(_rank: int, family: Family, torch_dist: Path, reference: Path, out: Path) -> None:
    """Dump the model with the table as it is."""
    from shardmerge.phase1_dump import dump

    dump(load_model(0, family, SINGLE, torch_dist), out, hf_reference=reference, run_id="right", step=1)
