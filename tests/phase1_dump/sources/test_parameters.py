"""What megatron-core says about live parameters: keys, places and starts by hand, and what it leaves out."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from megatron.core.dist_checkpointing.mapping import ShardedTensor, ShardedTensorFactory
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import nn

from shardmerge.common.errors import UnclaimedParameterError, UnsupportedParameterError
from shardmerge.phase1_dump.rectangles.parameter import Parameter
from shardmerge.phase1_dump.sources.parameters import parameters_of
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE, Topology


def described(name: str, topology: Topology, rank: int) -> dict[str, Parameter]:
    """Every parameter of all chunks of a rank, by canonical key."""
    with fake_world(topology, rank):
        chunks = build_model(by_name(name), topology)
        found = [one for chunk in chunks for one in parameters_of(chunk, rank)]
    keys = [one.key for one in found]
    assert len(set(keys)) == len(keys)
    return {one.key: one for one in found}


def place(one: Parameter) -> tuple[tuple[int, ...], ...]:
    return one.global_shape, one.global_offset, one.local_shape, one.start


@pytest.fixture
def model() -> Iterator[GPTModel]:
    with fake_world(SINGLE, 0):
        yield build_model(by_name("llama"), SINGLE)[0]


def test_gate_and_up_start_at_their_half_of_a_live_fc1() -> None:
    """Dense width 112 at tp 2: local fc1 has 56 gate rows, then 56 up rows."""
    found = described("llama", Topology(tp=2), 1)
    gate, up = (found[f"decoder.layers.3.mlp.linear_fc1.weight_{half}"] for half in "wv")

    assert gate.data is up.data
    assert gate.live_shape == tuple(gate.data.shape) == (112, 72)
    assert place(gate) == ((112, 72), (56, 0), (56, 72), (0, 0))
    assert place(up) == ((112, 72), (56, 0), (56, 72), (56, 0))
    assert gate.is_cut
    assert not gate.is_routed_expert


def test_a_column_cut_is_told_by_its_offset() -> None:
    found = described("llama", Topology(tp=2), 1)

    assert place(found["decoder.layers.0.mlp.linear_fc2.weight"]) == ((72, 112), (0, 56), (72, 56), (0, 0))
    assert place(found["decoder.layers.0.self_attention.linear_qkv.weight"]) == (
        (144, 72),
        (72, 0),
        (72, 72),
        (0, 0),
    )


def test_layers_of_uneven_stages_have_global_ids() -> None:
    """Four layers: one on the first stage, two between, one on the last."""
    layers = [
        {
            int(key.split(".")[2])
            for key in described("llama", topology, rank)
            if key.startswith("decoder.layers.")
        }
        for topology in [Topology(pp=3, first_stage_layers=1, last_stage_layers=1)]
        for rank in range(3)
    ]

    assert layers == [{0}, {1, 2}, {3}]


def test_layers_of_virtual_chunks_have_global_ids() -> None:
    """Two stages of two chunks: chunk by chunk round the stages."""
    layers = [
        {
            int(key.split(".")[2])
            for key in described("llama", Topology(pp=2, vpp=2), rank)
            if ".layers." in key
        }
        for rank in range(2)
    ]

    assert layers == [{0, 2}, {1, 3}]


def test_experts_have_global_ids_and_are_whole() -> None:
    found = described("qwen3_moe", Topology(ep=4, dp=4), 2)
    experts = {one.key: one for one in found.values() if one.is_routed_expert}

    assert {int(key.split(".experts.experts.")[1].split(".")[0]) for key in experts} == {4, 5}
    up = experts["decoder.layers.1.mlp.experts.experts.5.linear_fc1.weight_v"]
    assert place(up) == ((40, 72), (0, 0), (40, 72), (40, 0))
    assert not up.is_cut
    assert up.name == "decoder.layers.1.mlp.experts.local_experts.1.linear_fc1.weight"


def test_the_tied_embedding_of_the_last_stage_is_a_copy() -> None:
    key = "embedding.word_embeddings.weight"

    assert described("llama_tied", Topology(pp=2), 0)[key].pp_replica == 0
    assert described("llama_tied", Topology(pp=2), 1)[key].pp_replica == 1


def test_a_data_parallel_replica_is_not_a_pipeline_copy() -> None:
    assert {one.pp_replica for one in described("llama", Topology(tp=2, dp=2), 3).values()} == {0}


def test_data_are_the_live_tensors(model: GPTModel) -> None:
    found = {one.key: one for one in parameters_of(model, 0)}

    live = model.decoder.layers[2].self_attention.linear_proj.weight
    assert found["decoder.layers.2.self_attention.linear_proj.weight"].data is live


def test_a_stray_parameter_that_megatron_describes_is_claimed_by_no_row(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.decoder.layers[1].self_attention.stray = nn.Parameter(torch.ones(3))

    message = refused_and_recorded(
        UnclaimedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith(
        "decoder.layers.1.self_attention.stray [3] on rank 0 is claimed by no row of Llama"
    )


@pytest.mark.parametrize("kind", ["parameter", "buffer"])
def test_a_stray_tensor_that_megatron_passes_over_is_refused(
    kind: str, model: GPTModel, references: References, tmp_path: Path
) -> None:
    """TransformerBlock describes its children only, not what it holds itself."""
    if kind == "parameter":
        model.decoder.stray = nn.Parameter(torch.ones(3))
    else:
        model.decoder.register_buffer("stray", torch.ones(3))

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith("decoder.stray on rank 0: GPTModel.sharded_state_dict does not tell where")


def test_a_buffer_that_no_checkpoint_holds_is_left_alone(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.decoder.register_buffer("scratch", torch.ones(3), persistent=False)

    assert dumped(model, tmp_path, references.config("llama")).rank == 0


class Described(nn.Module):
    """A module with one parameter, described as the test wants."""

    def __init__(self, describe: Any) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(6, 4))
        self.describe = describe

    def sharded_state_dict(self, prefix: str = "", *_args: object, **_kwargs: object) -> dict[str, Any]:
        return {f"{prefix}weight": self.describe(f"{prefix}weight", self.weight)}


def factory(build: Any) -> Any:
    """A description by a factory, whose pieces `build` makes of a tensor."""

    def build_all(key: str, tensor: torch.Tensor, replica_id: Any, _range: Any) -> list[ShardedTensor]:
        return [
            ShardedTensor.from_rank_offsets(f"{key}_{number}", piece, replica_id=replica_id)
            for number, piece in enumerate(build(tensor))
        ]

    return lambda key, weight: ShardedTensorFactory(key, weight, build_all, sum)


ODD = {
    "transposed": factory(lambda tensor: [tensor.t()]),
    "every second row": factory(lambda tensor: [tensor[::2], tensor[1::2]]),
    "copied": factory(lambda tensor: [torch.cat([tensor[3:], tensor[:3]])]),
    "reshaped": factory(lambda tensor: [tensor.reshape(-1)]),
}


@pytest.mark.parametrize("kind", ODD)
def test_a_factory_that_does_more_than_slice_is_refused(kind: str, model: GPTModel) -> None:
    model.decoder.layers[0].odd = Described(ODD[kind])

    with pytest.raises(
        UnsupportedParameterError, match=r"^decoder\.layers\.0\.odd\.weight on rank 0"
    ) as caught:
        list(parameters_of(model, 0))

    assert "not by slicing" in str(caught.value)


def test_slices_of_a_factory_start_where_they_lie(model: GPTModel) -> None:
    model.decoder.layers[0].odd = Described(factory(lambda t: [t[:2], t[2:5], t[5:], t[:, 1:3], t[3:, 2:]]))

    found = [one for one in parameters_of(model, 0) if ".odd." in one.key]

    assert [one.start for one in found] == [(0, 0), (2, 0), (5, 0), (0, 1), (3, 2)]
    assert [one.local_shape for one in found] == [(2, 4), (3, 4), (1, 4), (6, 2), (3, 2)]


def test_prepended_axes_are_refused(model: GPTModel) -> None:
    model.decoder.layers[0].odd = Described(
        lambda key, weight: ShardedTensor.from_rank_offsets(key, weight, (0, 0, 2), prepend_axis_num=1)
    )

    with pytest.raises(UnsupportedParameterError, match=r"prepended or flattened axes"):
        list(parameters_of(model, 0))
