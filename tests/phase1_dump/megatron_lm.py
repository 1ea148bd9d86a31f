"""A training run of Megatron-LM: its arguments, the checkpoint that its own code saves, and providers that load it.

Run as a program it saves the checkpoint. `megatron.training` comes with megatron-core 0.19, not with 0.16.
"""

from __future__ import annotations

import os
import shlex
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec
from megatron.core.models.gpt.gpt_model import GPTModel

from shardmerge.phase1_dump import providers
from tests.worlds.cpu import prepare
from tests.worlds.fake import join_model_parallel, leave_model_parallel
from tests.worlds.families import by_name
from tests.worlds.oracle import import_whole
from tests.worlds.saving import on_cpu
from tests.worlds.topology import SINGLE

FAMILY = by_name("qwen3_moe")
CUT = """
--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --expert-model-parallel-size 2
--expert-tensor-parallel-size 1
"""
RANKS = 4
ITERATION = 70
CHECKPOINT = "MEGATRON_LM_CHECKPOINT"
# What describes the model, as a training script has it. Written by hand, and beside `tests.worlds.families`.
MODEL = """
--num-layers 4 --hidden-size 72 --num-attention-heads 8 --group-query-attention --num-query-groups 2 --kv-channels 12
--ffn-hidden-size 112 --swiglu --disable-bias-linear --normalization RMSNorm --norm-epsilon 1e-6 --qk-layernorm
--position-embedding-type rope --rotary-base 10000 --untie-embeddings-and-output-weights
--num-experts 8 --moe-router-topk 2 --moe-ffn-hidden-size 40 --moe-router-dtype fp32
--moe-router-load-balancing-type none --moe-token-dispatcher-type allgather
--seq-length 64 --max-position-embeddings 64 --micro-batch-size 1 --global-batch-size 8 --lr 1e-4 --train-iters 100
--tokenizer-type NullTokenizer --vocab-size 211 --make-vocab-size-divisible-by 128
--attention-dropout 0 --hidden-dropout 0 --bf16
"""
# what a CPU cannot do
ON_A_CPU = """
--transformer-impl local --use-cpu-initialization --distributed-backend gloo --no-persist-layer-norm
--no-gradient-accumulation-fusion --no-masked-softmax-fusion --no-bias-swiglu-fusion --no-rope-fusion
"""


def model() -> Any:
    """The provider of a rank, as the guide has it: the arguments of training, but for the cut."""
    return _provided(f"{MODEL} {ON_A_CPU} {CUT}")


def model_of_their_own() -> Any:
    """The provider where a training script has a builder of its own, and the checkpoint says how wide all is."""
    unsaid = (
        "--qk-layernorm --moe-router-dtype fp32 --norm-epsilon 1e-6 --swiglu --disable-bias-linear --bf16"
    )
    return _provided(
        f"{unsaid} --moe-token-dispatcher-type allgather {ON_A_CPU} --use-checkpoint-args", own_builder
    )


def _provided(arguments: str, build: Callable[..., Any] | None = None) -> Any:
    prepare()
    device = mock.Mock(return_value=SimpleNamespace(major=10))  # some arguments depend on it
    mock.patch.object(torch.cuda, "get_device_properties", device).start()
    with mock.patch.object(
        torch, "tensor", on_cpu(torch.tensor)
    ):  # ranks agree on the iteration through a GPU
        return providers.megatron_lm(f"{arguments} --load {os.environ[CHECKPOINT]}", build)


def save(reference: Path, folder: Path) -> None:
    """Save the weights of a Hugging Face checkpoint as Megatron-LM does while it trains, on one rank."""
    from megatron.training import arguments, checkpointing
    from megatron.training.training import get_model

    prepare()
    line = f"{MODEL} {ON_A_CPU} --save {folder} --ckpt-format torch_dist --save-interval 70 --no-save-optim"
    with mock.patch.object(sys, "argv", ["pretrain_gpt.py", *shlex.split(line)]):
        arguments.parse_and_validate_args()
    with tempfile.TemporaryDirectory() as store:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{store}/store", rank=0, world_size=1
        )
        join_model_parallel(SINGLE)
        chunks = get_model(own_builder, wrap_with_ddp=False)
        _copy(import_whole(FAMILY, reference, torch.bfloat16), chunks[0].module)
        with mock.patch.object(torch.cuda, "get_rng_state", torch.get_rng_state):
            checkpointing.save_checkpoint(ITERATION, chunks, None, None, 0)
        leave_model_parallel()


def own_builder(
    pre_process: bool, post_process: bool, vp_stage: Any = None, config: Any = None, pg_collection: Any = None
) -> GPTModel:
    """What a training script gives to `pretrain` as its model provider: megatron-core's own classes, by hand."""
    from megatron.training import argument_utils, get_args

    config = config or argument_utils.core_transformer_config_from_args(get_args())
    return GPTModel(
        config,
        get_gpt_decoder_block_spec(config, use_transformer_engine=False, vp_stage=vp_stage),
        vocab_size=256,  # 211 up to a multiple of 128 for each of one or two ranks
        max_sequence_length=64,
        pre_process=pre_process,
        post_process=post_process,
        position_embedding_type="rope",
        share_embeddings_and_output_weights=False,
        pg_collection=pg_collection,
        vp_stage=vp_stage,
    )


def _copy(imported: GPTModel, model: GPTModel) -> None:
    """Copy weights; a padded vocabulary has more rows, which stay what they are."""
    own = model.state_dict()
    for name, tensor in imported.state_dict().items():
        if tensor is not None and isinstance(tensor, torch.Tensor):
            own[name][: len(tensor)].copy_(tensor)


if __name__ == "__main__":
    save(Path(sys.argv[1]), Path(sys.argv[2]))
