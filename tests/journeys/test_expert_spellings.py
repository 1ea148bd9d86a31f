"""Routed experts one by one and packed: which is written, that all agree, and the values, where ranks cut both.

Packed tensors are compared with stacks of what the formula gives Megatron's own tensors, and with files that
transformers wrote packed.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.common.architectures import ARCHITECTURES
from shardmerge.common.architectures.spelling import MTP
from shardmerge.common.errors import ExpertSpellingError, MixedSpellingsError
from shardmerge.common.manifest import read
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check, merge, metadata, verify
from tests.demo.compare import differing
from tests.dumps.quantized_dumps import dump_quantized
from tests.oracles import records
from tests.oracles.ours import copies, topologies
from tests.oracles.table import ORACLES
from tests.worlds.checkpoints import read_hf_tensors, write_config, write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import FAMILIES, Family, by_name
from tests.worlds.filling import expected, fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import GLM4_MOE_MTP, can_build, write_bare
from tests.worlds.oracle import load_model, write_torch_dist
from tests.worlds.quantizing import QWEN3_MOE
from tests.worlds.topology import SINGLE, Topology

EITHER = tuple(
    family
    for family in (*FAMILIES, GLM4_MOE_MTP)
    if (known := ARCHITECTURES[family.architecture].experts) and len(known.decoder) > 1 and can_build(family)
)
IN_PARTS = Topology(tp=2, pp=2, ep=2, etp=2, dp=2)
FUSED = {True: "gate_up_proj", False: "up_proj"}


def packed_by_hand(family: Family, prefix: str) -> dict[str, torch.Tensor]:
    """Packed tensors of the decoder: a slice for each expert is Megatron's tensor, in which gate precedes up."""
    experts = family.experts
    assert experts is not None
    inside = experts.width * (2 if family.is_gated else 1)
    outside, found = experts.latent_width or family.hidden, dict[str, torch.Tensor]()
    for layer in family.moe_layers:
        fc1, fc2 = (
            torch.stack(
                [
                    expected(f"decoder.layers.{layer}.mlp.experts.{expert}.{linear}.weight", rows, columns)
                    for expert in range(experts.num_experts)
                ]
            ).bfloat16()
            for linear, rows, columns in (
                ("linear_fc1", range(inside), range(outside)),
                ("linear_fc2", range(outside), range(inside // (2 if family.is_gated else 1))),
            )
        )
        at = prefix.format(layer)
        found |= {f"{at}.experts.{FUSED[family.is_gated]}": fc1, f"{at}.experts.down_proj": fc2}
    return found


@pytest.mark.sampled
@pytest.mark.parametrize("family", EITHER, ids=lambda family: family.name)
def test_packed_experts_are_those_of_megatron_one_after_another(family: Family, tmp_path: Path) -> None:
    reference = write_bare(family, tmp_path / "hf")
    inside = "model.language_model" if family.is_composite else "model"
    prefix = "backbone.layers.{}.mixer" if family.mamba else inside + ".layers.{}.mlp"
    by_hand, oracle = packed_by_hand(family, prefix), records.read(family)
    names = {name.partition(".experts.")[0] for name in by_hand}
    others = {
        name: told for name, told in oracle["tensors"].items() if name.partition(".experts.")[0] not in names
    }
    for topology in topologies(family):
        folder = tmp_path / topology.name
        dump_filled(family, topology, reference, folder / "dump", experts="packed")
        tower = ["vision"] if family.is_composite else []  # the reference has no weights of one
        report = merge(
            [folder / "dump"], folder / "out", hf_reference=reference, workers=1, allow=tower
        ).check
        assert report.experts == {"decoder": "packed"} | ({MTP: "per-expert"} if family.mtp else {})
        ours = read_hf_tensors(folder / "out")
        assert [name for name, tensor in by_hand.items() if not torch.equal(ours.pop(name), tensor)] == []
        copied = copies(sorted(ours), ORACLES[family.name].copies)
        assert records.differing(ours, {"tensors": others}, copied) == []
        warnings = verify(folder / "out").warnings
        assert [one.endswith("(allowed)") for one in warnings] == [True] * len(tower)


def dump_filled(
    family: Family,
    topology: Topology,
    reference: Path,
    out: Path,
    experts: Any = None,
    rank: int | None = None,
) -> None:
    """Dump every rank of a fake world, or one, with weights that the formula gives."""
    for each in range(topology.world_size) if rank is None else (rank,):
        with fake_world(topology, each):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, each)
            dump(chunks, out, hf_reference=reference, run_id="spelled", step=1, experts=experts)


def test_what_the_reference_holds_comes_back_byte_for_byte(ranks: GlooRanks, tmp_path: Path) -> None:
    """Each spelling as transformers writes it; and the other one than the reference's, by the option."""
    family, folders = by_name("qwen3_moe"), {}
    for spelling in ("per-expert", "packed"):
        folders[spelling] = write_hf_checkpoint(family, tmp_path / spelling, packed=spelling == "packed")
    torch_dist = write_torch_dist(ranks, family, folders["per-expert"], tmp_path / "torch_dist")
    assert len(read_hf_tensors(folders["packed"])) < len(read_hf_tensors(folders["per-expert"]))
    for reference, asked, expected_like in (
        ("packed", None, "packed"),
        ("packed", "per-expert", "per-expert"),
        ("per-expert", "packed", "packed"),
    ):
        out, place = tmp_path / f"{reference}-{asked}", folders[reference]
        ranks.run(dump_on_rank, IN_PARTS, family, torch_dist, place, out / "dump", asked)
        merge([out / "dump"], out / "merged", hf_reference=place, workers=1)
        assert differing(folders[expected_like], out / "merged") == []
        assert metadata(out / "merged").num_tensors == len(read_hf_tensors(folders[expected_like]))


def dump_on_rank(
    rank: int, family: Family, torch_dist: Path, reference: Path, out: Path, experts: Any
) -> None:
    """Be one rank of a job that dumps."""
    from shardmerge.phase1_dump import dump

    chunks = load_model(rank, family, IN_PARTS, torch_dist)
    dump(chunks, out, hf_reference=reference, run_id="spelled", step=7, experts=experts)


def test_quantized_experts_are_written_one_by_one_whatever_the_reference_holds(tmp_path: Path) -> None:
    reference = write_hf_checkpoint(QWEN3_MOE, tmp_path / "hf", packed=True)
    dump_quantized(QWEN3_MOE, Topology(ep=2, dp=2), "NVFP4", tmp_path / "dump", reference)
    assert read(tmp_path / "dump" / "rank-00001" / "manifest.json").facts.experts == {"decoder": "per-expert"}
    merge([tmp_path / "dump"], tmp_path / "out", hf_reference=reference, workers=1)
    held = read_hf_tensors(tmp_path / "out")
    assert held["model.layers.0.mlp.experts.7.up_proj.weight"].dtype == torch.uint8
    assert not [name for name in held if name.endswith("experts.gate_up_proj")]
    assert verify(tmp_path / "out").warnings == ()


def test_quantized_experts_are_not_packed_when_asked(tmp_path: Path) -> None:
    def dump_packed(rank: int, model: Any) -> None:
        with pytest.raises(ExpertSpellingError, match="They are quantized, and vLLM takes") as error:
            dump(model, tmp_path / "dump", hf_reference=reference, run_id="q", step=1, experts="packed")
        assert error.value.exit_code == 2

    reference = write_config(QWEN3_MOE, tmp_path / "hf")
    dump_quantized(QWEN3_MOE, SINGLE, "NVFP4", tmp_path / "other", reference, spoil=dump_packed)
    assert not (tmp_path / "dump" / "rank-00000").exists()


def test_ranks_that_spell_differently_are_named(tmp_path: Path) -> None:
    """One rank quantized its experts, the other did not, and the reference is packed."""
    reference, two = write_hf_checkpoint(QWEN3_MOE, tmp_path / "hf", packed=True), Topology(ep=2, dp=2)
    named = lambda rank: "NVFP4" if rank else "none"  # noqa: E731
    dump_quantized(QWEN3_MOE, two, "", tmp_path / "dump", reference, recipe_of_rank=named)
    with pytest.raises(MixedSpellingsError, match="--experts per-expert") as error:
        check([tmp_path / "dump"], hf_reference=reference)
    assert error.value.values == {"packed": (0,), "per-expert": (1,)}
    assert error.value.exit_code == 4


def test_a_dump_without_a_word_of_spelling_is_read_as_the_reference_is(tmp_path: Path) -> None:
    """As older versions wrote it."""
    family, reference = by_name("qwen3_moe"), write_config(by_name("qwen3_moe"), tmp_path / "hf")
    dump_filled(family, SINGLE, reference, tmp_path / "dump")
    forget_spelling(tmp_path / "dump" / "rank-00000" / "manifest.json")
    assert check([tmp_path / "dump"], hf_reference=reference).experts == {}


def forget_spelling(path: Path) -> None:
    """Write a manifest again without the spelling."""
    from tests.dumps.refusals import edit

    facts = json.loads(path.read_bytes())["facts"]
    assert facts.pop("experts") == {"decoder": "per-expert"}
    edit(path, facts=facts)


@pytest.mark.parametrize(
    ("name", "asked", "why"),
    [
        ("llama", "packed", "It has no routed experts"),
        ("mixtral", "packed", "under different names"),
        ("deepseek_v3", "packed", "with code of its own"),
        ("gpt_oss", "per-expert", "packed alone"),
        ("dots1", "packed", "transformers alone reads"),
    ],
)
def test_a_spelling_that_readers_do_not_take_is_refused(
    name: str, asked: Any, why: str, tmp_path: Path
) -> None:
    reference = write_config(by_name(name), tmp_path / "hf")
    with pytest.raises(ExpertSpellingError, match=why) as error:
        dump_filled(by_name(name), SINGLE, reference, tmp_path / "dump", experts=asked)
    assert (error.value.spelling, error.value.exit_code) == (asked, 2)
    assert not (tmp_path / "dump" / "rank-00000").exists()


def test_a_spelling_that_is_the_only_one_may_be_asked_for(tmp_path: Path) -> None:
    for name, spelling in (("mixtral", "per-expert"), ("gpt_oss", "packed")):
        reference = write_config(by_name(name), tmp_path / name)
        dump_filled(by_name(name), SINGLE, reference, tmp_path / f"{name}-dump", experts=spelling)
        report = check([tmp_path / f"{name}-dump"], hf_reference=reference)
        assert report.experts == {"decoder": spelling}
        assert f"Routed experts of decoder: {spelling}." in report.text()
