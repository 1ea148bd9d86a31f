"""What shardmerge publishes is what other programs export: names, shapes and bytes, against their records.

A record is of one table, one model and one formula; when any of them changes, `make test-oracles` must run again.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shardmerge.common import reference as references
from shardmerge.common.architectures import ARCHITECTURES, TABLES, Architecture, Blueprint, blueprint
from shardmerge.common.architectures.rows import Row
from tests.oracles import records
from tests.oracles.mutations import each_row, is_used
from tests.oracles.ours import copies, is_dumped, is_merged, published, topologies
from tests.oracles.settings_cases import CASES
from tests.oracles.table import MCORE_BRIDGE, ORACLES, SECOND, every_family, recorded_families
from tests.oracles.test_logits import COMPUTED
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family, FullNorms, by_name
from tests.worlds.filling import fill
from tests.worlds.mtp import can_build, hold_copies, write_bare
from tests.worlds.oracle import IMPORTED
from tests.worlds.topology import SINGLE, Topology

RECORDED = recorded_families()
BUILT = tuple(family for family in RECORDED if can_build(family))


def differing(family: Family, ours: dict[str, torch.Tensor]) -> list[str]:
    """What of a family's tensors is not as its oracle says."""
    copied = copies(sorted(ours), ORACLES[family.name].copies)
    return records.differing(ours, records.read(family), copied)


def reference_of(family: Family, folder: Path) -> Path:
    """A folder with the family's config.json, and copies below steps where published files hold them."""
    write_bare(family, folder)
    if ORACLES[family.name].held:
        hold_copies(family, folder)
    return folder


def bound(folder: Path) -> Blueprint:
    """The table of a reference."""
    known = references.read(folder)
    return blueprint(known.config, known.tensors)


def test_every_family_has_an_oracle_or_a_reason() -> None:
    assert [family.name for family in every_family()] == [*ORACLES]
    assert [name for name, oracle in ORACLES.items() if not oracle.program and not oracle.reason] == []
    assert {path.stem for path in records.RECORDS.glob("*.json")} == {family.name for family in RECORDED}


def test_settings_are_compared_for_every_table_that_a_program_knows() -> None:
    families = {family.name: ARCHITECTURES[family.architecture].name for family in every_family()}
    assert {families[name] for name, _ in CASES} == {families[family.name] for family in RECORDED}


def test_every_table_is_that_of_a_family() -> None:
    told = {family.architecture for family in every_family()}
    assert {table.name for table in ARCHITECTURES.values()} <= told <= {*ARCHITECTURES}


@pytest.mark.always
@pytest.mark.parametrize("family", RECORDED, ids=lambda family: family.name)
def test_a_record_is_of_todays_table_model_and_formula(family: Family) -> None:
    record = records.read(family)
    now = records.current(family)
    assert {name: record[name] for name in now} == now, "run make test-oracles"


@pytest.mark.always
@pytest.mark.parametrize("family", BUILT, ids=lambda family: family.name)
def test_one_rank_and_cut_ones_publish_what_the_oracle_exports(family: Family, tmp_path: Path) -> None:
    reference = reference_of(family, tmp_path / "hf")
    for topology in topologies(family):
        ours = published(family, topology, reference, tmp_path / topology.name)
        assert differing(family, ours) == [], topology.name


@pytest.mark.parametrize("full_norms", ["cut", "whole", "beside"])
@pytest.mark.parametrize("name", ["olmoe", "minimax_m2"])
def test_norms_over_all_heads_come_out_alike_however_a_program_describes_them(
    name: str, full_norms: FullNorms, tmp_path: Path
) -> None:
    """Cut by tensor parallelism, whole on both ranks, or whole under names of their own, as mcore-bridge has them."""
    family = replace(by_name(name), full_norms=full_norms)
    reference = reference_of(family, tmp_path / "hf")

    ours = published(family, Topology(tp=2), reference, tmp_path)

    assert records.differing(ours, records.read(by_name(name))) == []


@pytest.mark.sampled
@pytest.mark.parametrize("family", BUILT, ids=lambda family: family.name)
def test_every_row_that_is_changed_is_noticed(family: Family, tmp_path: Path) -> None:
    """Of each table every row is changed once: with the first family that has it."""
    reference = reference_of(family, tmp_path / "hf")
    table = bound(reference).architecture
    seen = {row for before in _before(family) for row in _used(before, tmp_path / before.name)}
    tried = [
        (what, replace(table, rows=rows), tmp_path / f"{number}")
        for number, (row, what, rows) in enumerate(each_row(bound(reference)))
        if row not in seen
    ]
    with fake_world(SINGLE, 0):
        chunks = build_model(family, SINGLE)
        fill(chunks, family, SINGLE, 0)
        dumped = [is_dumped(chunks, wrong, reference, folder) for _, wrong, folder in tried]
    missed = [
        what
        for was, (what, wrong, folder) in zip(dumped, tried, strict=True)
        if was and not _is_noticed(family, wrong, reference, folder)
    ]
    assert missed == []
    assert len(tried) == len(_used(family, tmp_path / "own") - seen)


def _before(family: Family) -> list[Family]:
    """Families with the same table that come before this one."""
    table = ARCHITECTURES[family.architecture]
    same = [one for one in BUILT if ARCHITECTURES[one.architecture] is table]
    return same[: same.index(family)]


def _used(family: Family, folder: Path) -> set[Row]:
    table = bound(reference_of(family, folder))
    return {row for row in table.rows if is_used(table, row)}


def _is_noticed(family: Family, wrong: Architecture, reference: Path, folder: Path) -> bool:
    if not is_merged(wrong, reference, folder):
        return True
    return differing(family, read_hf_tensors(folder / "merged")) != []


def test_a_second_program_exported_what_todays_records_say() -> None:
    """Or a sentence says why it did not."""
    agreeing = {name for name, reason in SECOND.items() if not reason}
    told = {family.name: records.tensors_digest(family) for family in RECORDED if family.name in agreeing}
    assert records.confirmed() == told, "run make test-oracles"
    assert all(ORACLES[name].program != MCORE_BRIDGE for name in agreeing)


def test_tables_name_the_programs_that_tests_compare_them_with() -> None:
    """Who exported or confirmed a record, Model-Optimizer if it fills models, transformers if logits are compared."""
    for table in TABLES:
        families = [family for family in every_family() if ARCHITECTURES[family.architecture] is table]
        told = {ORACLES[family.name].program for family in families} - {""}
        told |= {MCORE_BRIDGE for family in families if SECOND.get(family.name) == ""}
        told |= {"Model-Optimizer" for family in families if family in IMPORTED}
        told |= {"transformers" for family in families if family in COMPUTED}
        assert sorted(told) == sorted(table.oracles), table.name
