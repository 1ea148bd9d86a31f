"""Model providers to build one's own from: of a torch_dist checkpoint, of Megatron-Bridge's.

`--model-provider` names a function without arguments. It can be three lines that call one of these, which initialise
torch.distributed and megatron-core as the launcher says, build the model and load its weights. Nothing is imported here
that a caller of another function would need.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.common.errors import BadInputError

if TYPE_CHECKING:
    from torch import nn

STATE_OF_EXTENSIONS = "_extra_state"  # of Transformer Engine, which is not a weight
TRACKER = "latest_checkpointed_iteration.txt"


def torch_dist(
    build: Callable[[], nn.Module | list[nn.Module]],
    checkpoint: str | Path,
    *,
    metadata: Mapping[str, Any] | None = None,
    **parallel_sizes: int,
) -> list[nn.Module]:
    """Build this rank's chunks by a function of one's own, and load a checkpoint of megatron-core's `torch_dist`.

    Args:
        build: Returns the model, or the chunks of this rank's virtual pipeline, once megatron-core is initialised.
        checkpoint: Its directory, as .../iter_0120000. Its own cut does not matter.
        metadata: What `sharded_state_dict` was given when it was saved; by default what the checkpoint says of that.
        parallel_sizes: As `megatron.core.parallel_state.initialize_model_parallel` takes them.

    Returns:
        The chunks, with their weights.

    Raises:
        RuntimeError: The checkpoint lacks parameters of the model, or has others.
    """
    from megatron.core import dist_checkpointing, parallel_state

    initialize(**parallel_sizes)
    built = build()
    chunks = list(built) if isinstance(built, list | tuple) else [built]
    if metadata is None:
        metadata = dist_checkpointing.load_content_metadata(str(checkpoint)) or {}
    how = {**metadata, "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True)}
    names = ["model"] if len(chunks) == 1 else [f"model{number}" for number in range(len(chunks))]
    wanted = {name: chunk.sharded_state_dict(metadata=how) for name, chunk in zip(names, chunks, strict=True)}  # type: ignore[operator]
    loaded = dist_checkpointing.load(wanted, str(checkpoint))
    for name, chunk in zip(names, chunks, strict=True):
        missing, unexpected = chunk.load_state_dict(loaded.get(name, {}), strict=False)
        if left := [key for key in (*missing, *unexpected) if not key.endswith(STATE_OF_EXTENSIONS)]:
            raise RuntimeError(f"{checkpoint} does not fit the model: {', '.join(left[:10])}")
    return chunks


def megatron_bridge(checkpoint: str | Path, **parallel_sizes: int) -> list[nn.Module]:
    """Load a checkpoint that Megatron-Bridge saved, with its own config.

    Args:
        checkpoint: Its directory, or the one above it, of which the last iteration is taken.
        parallel_sizes: Sizes of the parallel axes here, as Megatron-Bridge's config calls them; 1 without.

    Returns:
        This rank's chunks, with their weights.

    Raises:
        BadInputError: There is no such checkpoint.
    """
    import torch
    from megatron.bridge.training.model_load_save import load_megatron_model

    initialize(**parallel_sizes)
    loaded = load_megatron_model(
        str(_iteration(Path(checkpoint))),
        use_cpu_init=not torch.cuda.is_available(),
        mp_overrides=parallel_sizes,
    )
    return list(loaded) if isinstance(loaded, list | tuple) else [loaded]


def initialize(**parallel_sizes: int) -> None:
    """Initialise torch.distributed, as the launcher's variables say, and megatron-core, unless both are."""
    import torch
    from megatron.core import parallel_state

    if not torch.distributed.is_initialized():
        if torch.cuda.is_available():
            torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(**parallel_sizes)


def _iteration(checkpoint: Path) -> Path:
    """Return the directory of the last iteration in a folder of several, or the directory itself."""
    tracker = checkpoint / TRACKER
    if tracker.is_file():
        return checkpoint / f"iter_{int(tracker.read_text().strip()):07d}"
    if not checkpoint.is_dir():
        raise BadInputError(f"{checkpoint} is not a directory", "Give a checkpoint of Megatron-Bridge.")
    return checkpoint
