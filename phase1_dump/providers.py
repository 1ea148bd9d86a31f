"""Model providers to build one's own from: of Megatron-LM's arguments, of Megatron-Bridge, of a torch_dist checkpoint.

`--model-provider` names a function without arguments. It can be three lines that call one of these, which initialise
torch.distributed and megatron-core as the launcher says, build the model and load its weights. Nothing is imported here
that a caller of another function would need.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shardmerge.common.errors import BadInputError

if TYPE_CHECKING:
    from torch import nn

STATE_OF_EXTENSIONS = "_extra_state"  # of Transformer Engine, which is not a weight
TRACKER = "latest_checkpointed_iteration.txt"
# What raises if a key is missing; of the first, torch.distributed.checkpoint does.
# Source: megatron-core 0.16 and 0.19, dist_checkpointing/validation.py, StrictHandling
STRICT = ("assume_ok_unexpected", "raise_unexpected", "raise_all")


def megatron_lm(
    arguments: str | Sequence[str],
    build: Callable[..., Any] | None = None,
    *,
    extra_arguments: Callable[[Any], Any] | None = None,
) -> list[nn.Module]:
    """Build and load a model as Megatron-LM does from the command line of its training.

    Of the checkpoint (`--load`, `--ckpt-step`, `--pretrained-checkpoint`) weights alone are taken: neither the state
    of the optimizer nor random numbers. `--use-checkpoint-args` works. Nothing is built that only training needs.

    Args:
        arguments: The command line, as one string or as a list, without the name of the program. Sizes of parallel
            axes may be others than those of training.
        build: What training gives to `pretrain` as its model provider, such as `partial(model_provider, gpt_builder)`.
            By default what `megatron.training.models` makes of the arguments, in versions that have it.
        extra_arguments: What training gives to `pretrain`, or to the parser, as its `extra_args_provider`.

    Returns:
        This rank's chunks, with their weights.

    Raises:
        BadInputError: There is no checkpoint where the arguments say, or they would let parameters stay random.
        ModuleNotFoundError: The installed megatron-core comes without `megatron.training`: put Megatron-LM's folder on
            PYTHONPATH.
    """
    from megatron.training.checkpointing import load_checkpoint
    from megatron.training.training import get_model

    parsed = _parsed(shlex.split(arguments) if isinstance(arguments, str) else arguments, extra_arguments)
    initialize(**_parallel_sizes(parsed))
    _seed(parsed)
    chunks: list[nn.Module] = get_model(build or _as_arguments_say, wrap_with_ddp=False)
    load_checkpoint(chunks, None, None)
    return chunks


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
        parallel_sizes: Sizes of the parallel axes here, as Megatron-Bridge's config calls them; 1 without, but for
            expert_tensor_parallel_size, which is tensor_model_parallel_size without.

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


def initialize(**parallel_sizes: Any) -> None:
    """Initialise torch.distributed, as the launcher's variables say, and megatron-core, unless both are.

    Args:
        parallel_sizes: As `megatron.core.parallel_state.initialize_model_parallel` takes them.
    """
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
        written = tracker.read_text().strip()
        return checkpoint / (
            f"iter_{int(written):07d}" if written.isdecimal() else written
        )  # the other is "release"
    if not checkpoint.is_dir():
        raise BadInputError(f"{checkpoint} is not a directory", "Give a checkpoint of Megatron-Bridge.")
    return checkpoint


def _parsed(arguments: Sequence[str], extra_arguments: Callable[[Any], Any] | None) -> Any:
    """Return Megatron-LM's arguments, validated, and make them what its functions see."""
    from megatron.training import arguments as parsing
    from megatron.training import checkpointing, global_vars

    with _command_line(arguments):
        parsed = parsing.parse_args(extra_arguments)
    _refuse_random_weights(parsed)
    parsed.no_load_optim = parsed.no_load_rng = True
    if parsed.use_checkpoint_args:
        checkpointing.load_args_from_checkpoint(parsed)
    parsed.micro_batch_size = parsed.micro_batch_size or 1
    parsing.validate_args(parsed)
    sizes_known = parsed.padded_vocab_size is not None or getattr(parsed, "vocab_size", None) is not None
    global_vars.set_global_variables(parsed, build_tokenizer=not sizes_known)
    return parsed


@contextmanager
def _command_line(arguments: Sequence[str]) -> Iterator[None]:
    """Let a parser that reads sys.argv read these arguments instead of shardmerge's."""
    own = sys.argv
    sys.argv = [own[0], *arguments]
    try:
        yield
    finally:
        sys.argv = own


def _refuse_random_weights(parsed: Any) -> None:
    """Raise BadInputError where Megatron-LM would go on with what a model is made with, and say so in its log alone."""
    from megatron.training.checkpointing import checkpoint_exists

    folders = [folder for folder in (parsed.load, parsed.pretrained_checkpoint) if folder is not None]
    if not folders:
        raise BadInputError("Megatron-LM's arguments name no checkpoint", "Add --load DIR.")
    if not any(map(checkpoint_exists, folders)) and not parsed.ckpt_step:
        raise BadInputError(
            f"{' and '.join(folders)}: there is no {TRACKER}",
            "Give the folder of a training run as --load; --ckpt-step names an iteration where that file is missing.",
        )
    if parsed.dist_ckpt_strictness not in STRICT:
        raise BadInputError(
            f"--dist-ckpt-strictness {parsed.dist_ckpt_strictness} leaves parameters random that the checkpoint lacks",
            f"Give one of {', '.join(STRICT)}, or leave it out.",
        )


def _parallel_sizes(parsed: Any) -> dict[str, Any]:
    """Return what Megatron-LM's arguments say of parallel axes. Which rank stands where does not matter here."""
    from_arguments = (
        "tensor_model_parallel_size",
        "pipeline_model_parallel_size",
        "virtual_pipeline_model_parallel_size",
        "context_parallel_size",
        "expert_model_parallel_size",
        "expert_tensor_parallel_size",
    )
    return {name: getattr(parsed, name) for name in from_arguments}


def _seed(parsed: Any) -> None:
    """Seed the generators that megatron-core draws weights from on a GPU, which are loaded over then."""
    import torch
    from megatron.core import tensor_parallel

    if torch.cuda.is_available():
        tensor_parallel.model_parallel_cuda_manual_seed(parsed.seed)


def _as_arguments_say(
    pre_process: bool = True,
    post_process: bool = True,
    vp_stage: int | None = None,
    config: Any = None,
    pg_collection: Any = None,
) -> Any:
    """Build one chunk by megatron.training's own builders: a hybrid if the arguments have its pattern, else a GPT."""
    from megatron.training import argument_utils, get_args
    from megatron.training.models.gpt import GPTModelBuilder
    from megatron.training.models.hybrid import HybridModelBuilder

    parsed = get_args()
    if getattr(parsed, "hybrid_layer_pattern", None):
        builder = HybridModelBuilder(argument_utils.hybrid_config_from_args(parsed, config))
    else:
        builder = GPTModelBuilder(argument_utils.gpt_config_from_args(parsed, config))
    return builder.build_model(pg_collection, pre_process, post_process, vp_stage)
