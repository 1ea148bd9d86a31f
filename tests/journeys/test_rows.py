"""Every row of the tables matters: where one is changed, the oracle of the journeys fails.

Either the dump or the merge refuses that, or bytes differ from the published checkpoint.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest import mock

import pytest

from shardmerge.common.architectures import ARCHITECTURES, blueprint
from shardmerge.common.errors import ShardmergeError
from shardmerge.common.reference import read_config
from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.oracles.mutations import is_used, mutations
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import DEEPSEEK_V3_MTP, NEMOTRON_H_LATENT_MTP, can_build, write_mtp_checkpoint
from tests.worlds.oracle import load_model, write_torch_dist
from tests.worlds.topology import SINGLE

FAMILIES = tuple(family for family in (DEEPSEEK_V3_MTP, NEMOTRON_H_LATENT_MTP) if can_build(family))
REFUSED = "refused"


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


@pytest.mark.sampled
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
    assert changed == sum(is_used(table, row) for row in table.rows)


def dump_right(_rank: int, family: Family, torch_dist: Path, reference: Path, out: Path) -> None:
    """Dump the model with the table as it is."""
    from shardmerge.phase1_dump import dump

    dump(load_model(0, family, SINGLE, torch_dist), out, hf_reference=reference, run_id="right", step=1)
