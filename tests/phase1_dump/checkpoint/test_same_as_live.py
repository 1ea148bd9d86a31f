"""A checkpoint that megatron-core saved on real ranks becomes the files that a dump of the same live model becomes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shardmerge.common.architectures import ARCHITECTURES, Layout
from shardmerge.common.errors import UnsupportedCheckpointError
from shardmerge.phase1_dump import dump_checkpoint
from shardmerge.phase2_merge import merge
from tests.worlds.families import Family, by_name, topologies_of
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import BUILT, MTP_FAMILIES, can_build, write_bare
from tests.worlds.saving import Spelling, filled, save, save_filled
from tests.worlds.topology import SINGLE, Topology

Tested = Callable[[str, str, str], None]
SPELLINGS = (
    Spelling(),
    Spelling(experts=True),
    Spelling(layers=True),
    Spelling(optimizer=True),
    Spelling(experts=True, prefix="module."),
)
TOPOLOGIES_OF_EACH = 2


def only_live(family: Family) -> bool:
    """Whether the numbers of a family's checkpoint can be explained by its live model alone, or it is a composite."""
    table = ARCHITECTURES[family.architecture]
    strange = any(row.plain_norm or row.layout is Layout.GATED_QKV for row in table.rows)
    return strange or table.composite is not None


FROM_DISK = [family for family in (*BUILT, *MTP_FAMILIES) if can_build(family) and not only_live(family)]


def cases() -> Iterator[object]:
    """Yield a few topologies of each family, with another spelling each, so that all are met by many."""
    for number, family in enumerate(FROM_DISK):
        worlds = topologies_of(family)
        for turn in range(TOPOLOGIES_OF_EACH):
            topology = worlds[(number + turn * len(worlds) // TOPOLOGIES_OF_EACH) % len(worlds)]
            spelling = SPELLINGS[(number + turn) % len(SPELLINGS)]
            yield pytest.param(
                family, topology, spelling, id=f"{family.name}-{topology.name}-{spelling.name}"
            )


def save_and_dump(
    rank: int, family: Family, topology: Topology, spelling: Spelling, reference: Path, out: Path
) -> None:
    """Be one rank: save the model, and dump it alive."""
    from shardmerge.phase1_dump import dump

    chunks = filled(rank, family, topology)
    save(chunks, out / "iter_0000007", spelling)
    dump(chunks, out / "live", hf_reference=reference, run_id="run", step=7)


def reference_of(family: Family, folder: Path) -> Path:
    """Write the config.json of a family, without weights."""
    (folder / "hf").mkdir()
    return write_bare(family, folder / "hf")


def files(folder: Path) -> dict[str, bytes]:
    """What readers of an output load."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def merged(dump: Path, out: Path, reference: Path) -> dict[str, bytes]:
    """What a dump becomes, one tensor after another whoever wrote it."""
    merge([dump], out, hf_reference=reference, layout="canonical", workers=1)
    return files(out)


@pytest.mark.sampled
@pytest.mark.parametrize(("family", "topology", "spelling"), list(cases()))
def test_shards_from_disk_are_those_of_the_live_model(
    family: Family, topology: Topology, spelling: Spelling, ranks: GlooRanks, tmp_path: Path,
) -> None:  # fmt: skip
    reference = reference_of(family, tmp_path)
    ranks.run(save_and_dump, topology, family, topology, spelling, reference, tmp_path)

    (tmp_path / "latest_checkpointed_iteration.txt").write_text("7")
    dumped = dump_checkpoint(
        tmp_path, tmp_path / "disk", hf_reference=reference, run_id="run", max_share_bytes=100_000
    )

    assert dumped.num_shares > 1
    assert dumped.unchecked == ()
    assert merged(tmp_path / "disk", tmp_path / "a", reference) == merged(
        tmp_path / "live", tmp_path / "b", reference
    )


def test_what_is_dumped_from_disk_is_adopted(ranks: GlooRanks, tmp_path: Path) -> None:
    """Shares hold whole tensors, whatever the ranks were: the merge moves none of their bytes."""
    family, topology = by_name("qwen3_moe"), Topology(tp=2, pp=2, ep=2, dp=2)
    reference = reference_of(family, tmp_path)
    ranks.run(save_and_dump, topology, family, topology, Spelling(), reference, tmp_path)
    dump_checkpoint(tmp_path / "iter_0000007", tmp_path / "disk", hf_reference=reference, run_id="run")

    fragments = sorted(path.name for path in (tmp_path / "disk").rglob("*.safetensors"))
    assert fragments == ["whole-00001.safetensors"]
    report = merge([tmp_path / "disk"], tmp_path / "out", hf_reference=reference, workers=1)
    assert (report.num_shards, report.adopted_shards) == (1, 1)


@pytest.mark.parametrize("name", ["qwen3_next"])
def test_what_only_the_live_model_can_explain_is_refused(name: str, ranks: GlooRanks, tmp_path: Path) -> None:
    family = by_name(name)
    if not can_build(family):
        pytest.skip(f"the installed megatron-core does not build {name}")
    assert only_live(family)
    reference = reference_of(family, tmp_path)
    ranks.run(save_filled, SINGLE, family, SINGLE, tmp_path / "iter_0000007", Spelling())

    with pytest.raises(UnsupportedCheckpointError, match="no file of this checkpoint says") as caught:
        dump_checkpoint(tmp_path / "iter_0000007", tmp_path / "disk", hf_reference=reference, run_id="run")
    assert caught.value.exit_code == 5


def save_centred(rank: int, family: Family, share_below: float, out: Path) -> None:
    """Save a model whose norms are stored minus one, with so many of the final one's weights below one."""
    chunks = filled(rank, family, SINGLE)
    norm = chunks[0].decoder.final_layernorm.weight.data
    norm.fill_(0.25)
    norm[: int(len(norm) * share_below)] = -0.25
    save(chunks, out, Spelling())


@pytest.mark.parametrize(("share_below", "refused"), [(0.75, True), (0.25, False)])
def test_a_norm_that_shows_that_it_is_stored_minus_one_is_refused(
    share_below: float, refused: bool, ranks: GlooRanks, tmp_path: Path
) -> None:
    """No file of a checkpoint says how norms are stored. A quarter of weights below zero may be a norm as it is."""
    family = replace(by_name("llama"), norm="RMSNorm1P")
    reference = reference_of(family, tmp_path)
    ranks.run(save_centred, SINGLE, family, share_below, tmp_path / "iter_0000007")
    checkpoint = tmp_path / "iter_0000007"

    if not refused:
        dumped = dump_checkpoint(checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run")
        assert "not known whether norms are stored minus one" in dumped.text()
        return
    with pytest.raises(UnsupportedCheckpointError) as caught:
        dump_checkpoint(checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run")
    wanted = "decoder.final_layernorm.weight cannot be read: 54 of its 72 numbers are not above zero"
    assert str(caught.value).startswith(wanted)
    assert "--model-provider" in str(caught.value)
    assert not (tmp_path / "disk" / "rank-00000").exists()
