"""Replicas that have drifted apart are noticed by the merge, on a real model, without any rank asking another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from shardmerge.common.errors import ReplicaMismatchError
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.filling import fill
from tests.worlds.topology import Topology

FAMILY, TOPOLOGY = by_name("qwen3_moe"), Topology(tp=2, ep=2, dp=2)
NORM = "model.layers.1.post_attention_layernorm.weight"


def dump_all(out: Path, reference: Path, drifted: int | None, *, check_replicas: bool = False) -> None:
    """Dump every rank; on rank `drifted` one layernorm has changed."""
    for rank in range(TOPOLOGY.world_size):
        with fake_world(TOPOLOGY, rank):
            chunks = build_model(FAMILY, TOPOLOGY)
            fill(chunks, FAMILY, TOPOLOGY, rank)
            if rank == drifted:
                chunks[0].decoder.layers[1].pre_mlp_layernorm.weight.data[3] += 0.5
            dump(
                chunks, out, hf_reference=reference, run_id="replicas", step=1, check_replicas=check_replicas
            )


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A checkpoint of the family."""
    return write_hf_checkpoint(FAMILY, tmp_path / "hf")


def writer_of(tensor: str, out: Path) -> int:
    """The rank whose fragment holds the tensor, as the safetensors library reads it."""
    from safetensors import safe_open

    for file in sorted(out.glob("rank-*/whole-*.safetensors")):
        with safe_open(file, "pt") as handle:
            if tensor in handle.keys():
                return int(file.parent.name.removeprefix("rank-"))
    raise AssertionError(f"{tensor} is nowhere")


def test_equal_replicas_pass(reference: Path, tmp_path: Path) -> None:
    dump_all(tmp_path / "d", reference, None, check_replicas=True)
    check([tmp_path / "d"], hf_reference=reference)


def test_a_changed_layernorm_on_one_rank_names_tensor_and_ranks(reference: Path, tmp_path: Path) -> None:
    dump_all(tmp_path / "plain", reference, None)
    writer = writer_of(NORM, tmp_path / "plain")
    drifted = next(rank for rank in range(TOPOLOGY.world_size) if rank != writer)
    dump_all(tmp_path / "d", reference, drifted, check_replicas=True)
    with pytest.raises(ReplicaMismatchError) as caught:
        check([tmp_path / "d"], hf_reference=reference)
    assert caught.value.exit_code == 4
    assert (caught.value.tensor, caught.value.owner, caught.value.ranks) == (NORM, writer, (drifted,))


def test_a_difference_can_be_allowed_and_is_then_a_warning(reference: Path, tmp_path: Path) -> None:
    dump_all(tmp_path / "plain", reference, None)
    drifted = (writer_of(NORM, tmp_path / "plain") + 1) % TOPOLOGY.world_size
    dump_all(tmp_path / "d", reference, drifted, check_replicas=True)
    report = check([tmp_path / "d"], hf_reference=reference, allow=["replicas"])
    assert any(NORM in warning for warning in report.warnings)


def test_without_the_option_nothing_but_what_was_written_is_recorded(reference: Path, tmp_path: Path) -> None:
    with fake_world(TOPOLOGY, 1):
        chunks = build_model(FAMILY, TOPOLOGY)
        found = dump(chunks, tmp_path / "d", hf_reference=reference, run_id="r", step=1)
    assert found is not None
    assert min(found.columns.file) >= 0
    assert torch.tensor(found.columns.owner).unique().tolist() == [1]


def test_a_tied_embedding_that_differs_on_the_last_stage_is_noticed(tmp_path: Path) -> None:
    family, topology = by_name("llama_tied"), Topology(pp=2)
    reference = write_hf_checkpoint(family, tmp_path / "hf")
    for rank in range(2):
        with fake_world(topology, rank):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, rank)
            if rank == 1:
                chunks[0].output_layer.weight.data[5, 2] += 1
            dump(chunks, tmp_path / "d", hf_reference=reference, run_id="tied", step=1, check_replicas=True)
    with pytest.raises(ReplicaMismatchError) as caught:
        check([tmp_path / "d"], hf_reference=reference)
    assert (caught.value.tensor, caught.value.owner, caught.value.ranks) == (
        "model.embed_tokens.weight",
        0,
        (1,),
    )
