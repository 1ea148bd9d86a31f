"""What training wraps around a model changes nothing; but parameters that a wrapper has not gathered are refused."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
from megatron.core.models.gpt.gpt_model import GPTModel
from megatron.core.transformer.module import Float16Module
from torch import nn

from shardmerge.common.errors import StaleParametersError, UnsupportedParameterError
from shardmerge.phase1_dump.sources.modules import unwrap
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.filling import fill
from tests.worlds.topology import Topology

FAMILY, TOPOLOGY = by_name("qwen3_moe"), Topology(pp=2, vpp=2, ep=2, dp=2)


@pytest.fixture
def chunks() -> Iterator[list[GPTModel]]:
    """The two virtual chunks of rank 1, filled, their world up."""
    with fake_world(TOPOLOGY, 1):
        built = build_model(FAMILY, TOPOLOGY)
        fill(built, FAMILY, TOPOLOGY, 1)
        yield built


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """megatron-core 0.19 tells DDP's user about layouts, once per construction."""
    logging.disable(logging.WARNING)
    yield
    logging.disable(logging.NOTSET)


def ddp(chunk: nn.Module, *, sharded: bool = False, overlap: bool = False) -> DistributedDataParallel:
    config = DistributedDataParallelConfig(
        use_distributed_optimizer=sharded, overlap_param_gather=overlap, overlap_grad_reduce=overlap
    )
    return DistributedDataParallel(unwrap(chunk).config, config, chunk)


def half(chunk: nn.Module) -> Float16Module:
    return Float16Module(unwrap(chunk).config, chunk)


WRAPPED: dict[str, Callable[[nn.Module], nn.Module]] = {
    "Float16Module": half,
    "DDP": ddp,
    "DDP with a distributed optimizer": lambda chunk: ddp(chunk, sharded=True),
    "DDP of Float16Module": lambda chunk: ddp(half(chunk), sharded=True),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapped_model_gives_the_manifest_of_the_bare_one(
    name: str, chunks: list[GPTModel], references: References, tmp_path: Path
) -> None:
    bare = dumped(chunks, tmp_path / "bare", references.config("qwen3_moe"))
    wrapped = dumped(
        [WRAPPED[name](chunk) for chunk in chunks], tmp_path / "wrapped", references.config("qwen3_moe")
    )

    assert len(bare.columns) > 2 * 4 * 3  # two layers, four experts here, three matrices each
    assert wrapped == bare


def test_a_list_of_one_chunk_is_the_chunk(references: References, tmp_path: Path) -> None:
    with fake_world(Topology(pp=2), 1):
        (model,) = build_model(FAMILY, Topology(pp=2))
        alone = dumped(model, tmp_path / "alone", references.config("qwen3_moe"))

        assert dumped([model], tmp_path / "list", references.config("qwen3_moe")) == alone
        assert dumped((model,), tmp_path / "tuple", references.config("qwen3_moe")) == alone


def test_chunks_in_another_order_give_the_same_rectangles(
    chunks: list[GPTModel], references: References, tmp_path: Path
) -> None:
    found = [
        dumped(order, tmp_path / str(number), references.config("qwen3_moe"))
        for number, order in enumerate((chunks, chunks[::-1]))
    ]

    rectangles = [sorted((str(p.rectangle), p.xxh3_128) for p in manifest.placed()) for manifest in found]
    assert rectangles[0] == rectangles[1]


def test_parameters_that_ddp_gathers_in_the_next_forward_are_refused(
    chunks: list[GPTModel], references: References, tmp_path: Path
) -> None:
    wrapped = [ddp(chunks[0], sharded=True), ddp(chunks[1], sharded=True, overlap=True)]

    message = refused_and_recorded(
        StaleParametersError, 2, wrapped, tmp_path / "out", references.config("qwen3_moe")
    )

    assert message.startswith("Model chunk 1 ")
    assert "params_synced=True" in message


def test_gathered_parameters_are_dumped_on_the_callers_word(
    chunks: list[GPTModel], references: References, tmp_path: Path
) -> None:
    bare = dumped(chunks, tmp_path / "bare", references.config("qwen3_moe"))
    wrapped = [ddp(chunk, sharded=True, overlap=True) for chunk in chunks]

    found = dumped(wrapped, tmp_path / "out", references.config("qwen3_moe"), params_synced=True)

    assert found == bare


def test_a_ddp_whose_hooks_were_taken_off_is_dumped(
    chunks: list[GPTModel], references: References, tmp_path: Path
) -> None:
    wrapped = [ddp(chunk, sharded=True, overlap=True) for chunk in chunks]
    for chunk in wrapped:
        chunk.disable_forward_pre_hook(param_sync=False)

    assert dumped(wrapped, tmp_path / "out", references.config("qwen3_moe")).rank == 1


def test_a_stray_parameter_is_found_though_ddp_keeps_all_in_one_storage(
    references: References, tmp_path: Path
) -> None:
    with fake_world(Topology(dp=2), 0):
        (model,) = build_model(FAMILY, Topology(dp=2))
        model.decoder.stray = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
        wrapped = ddp(model, sharded=True)
        storages = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
        assert len(storages) < 5

        message = refused_and_recorded(
            UnsupportedParameterError, 5, wrapped, tmp_path / "out", references.config("qwen3_moe")
        )

    assert message.startswith("decoder.stray on rank 0: GPTModel.sharded_state_dict does not tell where")
