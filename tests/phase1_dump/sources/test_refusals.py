"""What is refused, each with its class, its exit code and the parameter's name, and nothing written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard

from shardmerge.common.errors import (
    BadInputError,
    MissingConfigError,
    NotInitializedError,
    UnsupportedArchitectureError,
    UnsupportedParameterError,
)
from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.refusing import refused_and_recorded, refused_before_the_rank_is_known
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE, Topology

PROJECTION = "decoder.layers.2.self_attention.linear_proj.weight"


@pytest.fixture
def model() -> Iterator[GPTModel]:
    """A dense model of rank 0 of two data parallel ranks, its world up."""
    with fake_world(Topology(dp=2), 0):
        yield build_model(by_name("llama"), Topology(dp=2))[0]


def give(model: GPTModel, tensor: torch.Tensor) -> None:
    """Make a tensor the output projection of layer 2."""
    weight = nn.Parameter(tensor, requires_grad=tensor.dtype.is_floating_point)
    model.decoder.layers[2].self_attention.linear_proj.weight = weight


def as_dtensor() -> torch.Tensor:
    return DTensor.from_local(torch.ones(36, 96), init_device_mesh("cpu", (2,)), [Shard(0)], run_check=False)


def freed() -> torch.Tensor:
    tensor = torch.ones(72, 96, dtype=torch.bfloat16)
    tensor.untyped_storage().resize_(0)
    return tensor


class OwnKindOfTensor(torch.Tensor):
    """A subclass whose storage nobody but its author knows."""


TENSORS: dict[str, tuple[Callable[[], torch.Tensor], str]] = {
    "dtensor": (as_dtensor, "it is a DTensor"),
    "meta": (lambda: torch.empty(72, 96, device="meta"), "on the meta device"),
    "freed": (freed, "its storage is freed"),
    "subclass": (lambda: torch.ones(72, 96).as_subclass(OwnKindOfTensor), "OwnKindOfTensor"),
    "integer": (lambda: torch.ones(72, 96, dtype=torch.int32), "its dtype is torch.int32"),
    "one byte": (lambda: torch.ones(72, 96).to(torch.float8_e4m3fn), "its dtype is torch.float8_e4m3fn"),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_a_parameter_whose_bytes_are_not_its_values_is_refused_by_name(
    kind: str, model: GPTModel, references: References, tmp_path: Path
) -> None:
    make, reason = TENSORS[kind]
    give(model, make())

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith(f"{PROJECTION} on rank 0: ")
    assert reason in message


def test_a_model_under_fsdp2_is_refused(model: GPTModel, references: References, tmp_path: Path) -> None:
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith("embedding.word_embeddings.weight on rank 0: it is a DTensor")


def test_a_buffer_that_cannot_be_dumped_is_refused(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    model.decoder.layers[1].register_buffer("scale", torch.ones(3, device="meta"))

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith("decoder.layers.1.scale on rank 0: it is on the meta device")


def test_a_gtp_parameter_is_refused(model: GPTModel, references: References, tmp_path: Path) -> None:
    model.decoder.layers[2].self_attention.linear_proj.weight.is_gtp_weight_remat = True

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert message.startswith(f"{PROJECTION} on rank 0: it is sharded by GTP")


@pytest.mark.parametrize("size", ["gtp_weight_remat_size", "expert_gtp_weight_remat_size"])
def test_a_config_that_asks_for_gtp_is_refused(
    size: str, model: GPTModel, references: References, tmp_path: Path
) -> None:
    setattr(model.config, size, 2)

    message = refused_and_recorded(
        UnsupportedParameterError, 5, model, tmp_path / "out", references.config("llama")
    )

    assert f"{size}=2" in message


@pytest.mark.parametrize("name", ["WORLD_SIZE", "SLURM_NTASKS"])
def test_a_launcher_of_two_without_torch_distributed_is_refused(
    name: str, references: References, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(by_name("llama"), SINGLE)[0]
    monkeypatch.setenv(name, "2")

    message = refused_before_the_rank_is_known(
        NotInitializedError, 2, model, tmp_path / "out", references.config("llama")
    )

    assert f"{name}=2" in message


def test_half_a_model_without_torch_distributed_is_refused(references: References, tmp_path: Path) -> None:
    with fake_world(Topology(tp=2), 0):
        model = build_model(by_name("llama"), Topology(tp=2))[0]

    message = refused_before_the_rank_is_known(
        NotInitializedError, 2, model, tmp_path / "out", references.config("llama")
    )

    assert "tensor_model_parallel_size=2" in message


def test_a_whole_model_needs_no_torch_distributed(references: References, tmp_path: Path) -> None:
    with fake_world(SINGLE, 0):
        model = build_model(by_name("llama"), SINGLE)[0]

    assert dumped(model, tmp_path, references.config("llama")).world_size == 1


def test_a_model_of_another_library_is_refused(references: References, tmp_path: Path) -> None:
    message = refused_before_the_rank_is_known(
        BadInputError, 2, nn.Linear(2, 2), tmp_path / "out", references.config("llama")
    )

    assert message.startswith("torch.nn.modules.linear.Linear is not a model of megatron-core")


def test_an_empty_list_of_chunks_is_refused(references: References, tmp_path: Path) -> None:
    assert "no model chunk" in refused_before_the_rank_is_known(
        BadInputError, 2, [], tmp_path / "out", references.config("llama")
    )


def test_a_chunk_given_twice_is_refused(model: GPTModel, references: References, tmp_path: Path) -> None:
    assert "twice" in refused_before_the_rank_is_known(
        BadInputError, 2, [model, model], tmp_path / "out", references.config("llama")
    )


def test_a_reference_without_config_is_refused(model: GPTModel, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    message = refused_and_recorded(MissingConfigError, 2, model, tmp_path / "out", tmp_path / "empty")

    assert str(tmp_path / "empty") in message


def test_an_architecture_without_a_table_is_refused_by_name(
    model: GPTModel, references: References, tmp_path: Path
) -> None:
    reference = references.edited("llama", architectures=["MambaForCausalLM"])

    message = refused_and_recorded(UnsupportedArchitectureError, 5, model, tmp_path / "out", reference)

    assert "MambaForCausalLM" in message
    assert "LlamaForCausalLM" in message
