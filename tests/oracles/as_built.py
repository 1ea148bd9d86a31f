"""A model that Megatron-Bridge or mcore-bridge built goes into `dump` as they return it, and is exported by them too.

Run in a process that has them on its path: `python -m tests.oracles.as_built PROGRAM FOLDER`. It leaves a reference, a
dump and what the program exported under the folder; `test_as_built` merges and compares. Must not know tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from tests.worlds.te_stub import install

install(str(Path(sys.prefix) / "te-python"))  # before anything imports megatron-core

from tests.oracles.bridge import stand_in  # noqa: E402
from tests.oracles.mcore_bridge import OnCpu, model_of  # noqa: E402
from tests.oracles.table import BRIDGE, MCORE_BRIDGE  # noqa: E402
from tests.worlds.fake import join_model_parallel, leave_model_parallel  # noqa: E402
from tests.worlds.families import Family, by_name  # noqa: E402
from tests.worlds.filling import fill  # noqa: E402
from tests.worlds.mtp import write_bare  # noqa: E402
from tests.worlds.topology import SINGLE  # noqa: E402

FAMILIES = {BRIDGE: "qwen3_moe", MCORE_BRIDGE: "qwen2_moe"}
# what a CPU lacks
OPTIONS = {
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "moe_permute_fusion": False,
    "moe_token_dispatcher_type": "allgather",
    "persist_layer_norm": False,
    "bias_activation_fusion": False,
    "masked_softmax_fusion": False,
    "use_cpu_initialization": True,
    "perform_initialization": False,
}


def main(program: str, folder: Path) -> None:
    """Build, fill, export and dump."""
    from shardmerge.phase1_dump import dump

    stand_in()
    _without_streams()
    family = by_name(FAMILIES[program])
    reference = write_bare(family, folder / "hf")
    with world_of_one(), OnCpu():
        chunks, exported = (_by_bridge if program == BRIDGE else _by_mcore_bridge)(family, reference)
        (folder / "exported").mkdir()
        save_file(
            {name: tensor.contiguous() for name, tensor in exported.items()},
            folder / "exported" / "model.safetensors",
        )
        dump(chunks, folder / "dump", hf_reference=reference, run_id="as built", step=1)
        print(*(type(layer).__name__ for layer in wrapped(chunks[0])))


def _without_streams() -> None:
    """Let models be wrapped where there is one stream of work: DDP is made on another, and waits for it."""
    torch.cuda.Stream = mock.MagicMock()  # type: ignore[misc]
    torch.cuda.current_stream = mock.MagicMock()
    torch.cuda.stream = lambda _stream: nullcontext()  # type: ignore[assignment,return-value]


@contextmanager
def world_of_one() -> Iterator[None]:
    """Be the only rank of a world."""
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    join_model_parallel(SINGLE)
    try:
        yield
    finally:
        leave_model_parallel()


def wrapped(chunk: Any) -> list[Any]:
    """Return a chunk and all that it wraps, the model last."""
    layers = [chunk]
    while hasattr(layers[-1], "module"):
        layers.append(layers[-1].module)
    return layers


def _filled(chunks: list[Any], family: Family) -> None:
    fill([wrapped(chunk)[-1] for chunk in chunks], family, SINGLE, 0)


def _by_bridge(family: Family, reference: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Return what Bridge's own provider gives a training job, and what Bridge exports of it."""
    import transformers
    from megatron.bridge import AutoBridge
    from megatron.core.distributed import DistributedDataParallelConfig

    config = transformers.AutoConfig.from_pretrained(reference)
    config.architectures = [family.architecture]
    bridge: Any = AutoBridge.from_hf_config(config)
    provider = bridge.to_megatron_provider(load_weights=False)
    for name, value in OPTIONS.items():
        setattr(provider, name, value)
    provider.make_vocab_size_divisible_by = 1
    provider.finalize()
    chunks = provider.provide_distributed_model(
        DistributedDataParallelConfig(), bf16=True, use_cpu_initialization=True
    )
    _filled(chunks, family)
    given = bridge.export_hf_weights(chunks, cpu=True, show_progress=False)
    return chunks, {item[0]: item[1].clone() for item in given}


def _by_mcore_bridge(family: Family, reference: Path) -> tuple[list[Any], dict[str, torch.Tensor]]:
    """Return mcore-bridge's model wrapped as ms-swift wraps it, and what mcore-bridge exports of it."""
    from megatron.core.distributed import DistributedDataParallel, DistributedDataParallelConfig
    from megatron.core.transformer.module import Float16Module

    config, models = model_of(reference)
    _filled(models, family)
    exported = {
        name: tensor.clone() for name, tensor in config.bridge.export_weights(models, target_device="cpu")
    }
    chunks = [
        DistributedDataParallel(config, DistributedDataParallelConfig(), Float16Module(config, model))
        for model in models
    ]
    return chunks, exported


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
