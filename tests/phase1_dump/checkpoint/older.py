"""Saves a small model as an older megatron-core does, with its DistributedOptimizer: so `saved_by_older/` was made.

Run on four ranks beside the older version, which is found before the installed one:

    pip install --no-deps --target build/mcore-0.15.3 megatron-core==0.15.3
    PYTHONPATH=build/mcore-0.15.3:. torchrun --nproc-per-node 4 -m tests.phase1_dump.checkpoint.older OUT
    tar -C OUT --sort=name --mtime=@0 --owner=0 --group=0 -cJf megatron-core-0.15.3.tar.xz iter_0000007

Must import neither shardmerge nor `tests.worlds` beyond sizes: that is written for newer versions.
"""

from __future__ import annotations

import os
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import torch

from tests.worlds.families import Family, by_name
from tests.worlds.widths import Experts

ITERATION = "iter_0000007"
PADDED_VOCAB = 64


def family() -> Family:
    """Return the sizes of the model."""
    experts = Experts(num_experts=4, width=16)
    like = by_name("qwen3_moe")
    return replace(
        like,
        hidden=24,
        heads=4,
        groups=2,
        head_channels=8,
        layers=2,
        vocab=50,
        dense_width=20,
        experts=experts,
    )


def main(out: Path) -> None:
    """Be one rank: build the model, fill it, take a step, save."""
    from tests.gpu.worlds import on_cpu
    from tests.worlds.cpu import prepare

    prepare()
    vars(numpy)["product"] = numpy.prod  # its older name, which these versions call
    torch.distributed.init_process_group("gloo")
    from megatron.core import parallel_state

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=2)
    (out / ITERATION).mkdir(parents=True, exist_ok=True)
    with on_cpu():
        _save(out / ITERATION)
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def _save(out: Path) -> None:
    from megatron.core import dist_checkpointing
    from megatron.core.dist_checkpointing.mapping import ShardedObject

    model = _model()
    optimizer = _optimizer(model)
    with torch.no_grad():
        for shard in _shards(model.sharded_state_dict()):
            numbers = torch.Generator().manual_seed(zlib.crc32(f"{shard.key} {shard.global_offset}".encode()))
            shard.data.copy_(torch.rand(shard.data.shape, generator=numbers) + 2**-7)
    optimizer.reload_model_params()
    rank = torch.distributed.get_rank()
    state: dict[str, Any] = {"model": model.sharded_state_dict(), "iteration": 7}
    state["optimizer"] = optimizer.sharded_state_dict(state["model"])
    state["rng_state"] = ShardedObject("rng_state", [torch.get_rng_state()], (4,), (rank,))
    dist_checkpointing.save(state, str(out))


def _model() -> Any:
    from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
    from megatron.core.models.gpt.gpt_model import GPTModel
    from megatron.core.transformer.transformer_config import TransformerConfig

    sizes = family()
    assert sizes.experts is not None
    config = TransformerConfig(
        num_layers=sizes.layers,
        hidden_size=sizes.hidden,
        num_attention_heads=sizes.heads,
        num_query_groups=sizes.groups,
        kv_channels=sizes.head_channels,
        ffn_hidden_size=sizes.dense_width,
        num_moe_experts=sizes.experts.num_experts,
        moe_ffn_hidden_size=sizes.experts.width,
        moe_router_topk=sizes.experts.top_k,
        moe_token_dispatcher_type="allgather",
        tensor_model_parallel_size=2,
        expert_tensor_parallel_size=2,
        qk_layernorm=True,
        normalization="RMSNorm",
        layernorm_epsilon=sizes.norm_eps,
        gated_linear_unit=True,
        activation_func=torch.nn.functional.silu,
        add_bias_linear=False,
        use_cpu_initialization=True,
        gradient_accumulation_fusion=False,
        bf16=True,
        params_dtype=torch.bfloat16,
    )
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False, normalization="RMSNorm")
    model: Any = GPTModel(
        config,
        spec,
        PADDED_VOCAB,
        max_sequence_length=64,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
    )
    return model.bfloat16()


def _optimizer(model: Any) -> Any:
    """Return Adam after a step, whose state is cut over the data-parallel ranks."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.optimizer import OptimizerConfig, get_megatron_optimizer

    config = DistributedDataParallelConfig(use_distributed_optimizer=True)
    wrapped = DistributedDataParallel(model.config, config, model)
    adam = OptimizerConfig(
        optimizer="adam", lr=0.0, bf16=True, params_dtype=torch.bfloat16, use_distributed_optimizer=True
    )
    optimizer: Any = get_megatron_optimizer(adam, [wrapped])
    for parameter in wrapped.parameters():
        parameter.main_grad.fill_(0.5)
    wrapped.finish_grad_sync()
    optimizer.step()
    return optimizer


def _shards(state: Any) -> Iterator[Any]:
    """Yield the shards of a sharded state, those of factories too; their data are the model's own."""
    if isinstance(state, Mapping):
        for value in state.values():
            yield from _shards(value)
    elif hasattr(state, "build"):
        yield from _shards(state.build())
    elif isinstance(state, list):
        for value in state:
            yield from _shards(value)
    elif hasattr(state, "local_shape"):
        yield state


if __name__ == "__main__":
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    main(Path(sys.argv[1]))
