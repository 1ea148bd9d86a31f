"""The story of phase one: refuse, describe, write. Every rank makes one call, and none waits for another.

Must not know how a model is read (`sources/`) nor how files are written (`fragments/`).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from torch import nn

from shardmerge.common.architectures import Architecture
from shardmerge.common.manifest import Manifest
from shardmerge.common.processes import garbage_collector
from shardmerge.common.reference import Reference

from .fragments.failed_ranks import forget_failure, record_failure
from .fragments.rank_directory import refuse_existing
from .fragments.write_rank import MAX_FRAGMENT_BYTES, write_rank
from .generation import Generation, attempt_of
from .sources.live_model import Options, live_model
from .sources.modules import unwrap
from .sources.process_groups import world_of
from .sources.refusals import refuse_foreign, refuse_uninitialized

STAGING_BYTES = 240 << 20


def dump(
    model: nn.Module | Sequence[nn.Module],
    out: str | Path,
    *,
    hf_reference: str | Path | Reference,
    run_id: str,
    step: int,
    attempt: str | None = None,
    params_synced: bool = False,
    dtype_from_reference: bool = False,
    dequantize: bool = False,
    drop_mtp: bool = False,
    drop_vision: bool = False,
    experts: Literal["packed", "per-expert"] | None = None,
    architecture: str | Architecture | None = None,
    check_replicas: bool = False,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
    staging_bytes: int = STAGING_BYTES,
    on_error: Literal["raise", "record"] = "raise",
    quiet: bool = False,
) -> Manifest | None:
    """Write what this rank owns of a live model to `out/rank-NNNNN`. Call it on every rank, in any order.

    No collective is entered, and nothing stands under its final name until it is complete. Host memory above the
    model is `staging_bytes`, or one of the largest rows for each of at most fifteen threads if that is more.

    Args:
        model: a module, or the list of this rank's virtual pipeline chunks, wrapped (DDP, Float16Module) or not.
        out: directory of the dump, shared by all ranks.
        hf_reference: Hugging Face directory with the model's config.json; weights there, if any, give dtypes. Or what
            `shardmerge.common.reference.read` made of it.
        run_id: name of the dump. It, `step` and `attempt` must be the same on all ranks.
        step: training step of the parameters.
        attempt: by default the launcher's job and restart.
        params_synced: the caller has gathered the parameters of a DDP with overlap_param_gather.
        dtype_from_reference: let the reference narrow tensors that are otherwise kept float32 (router biases).
        dequantize: write Transformer Engine's quantized parameters in the precision they stand for.
        drop_mtp: leave out multi-token prediction; the merge then takes it from the reference or drops it too.
        drop_vision: leave out a vision tower beside the language model though it was not frozen. What was frozen is
            always left out: the merge takes it from the reference.
        experts: write routed experts as one tensor for all of a layer, or one by one; by default as the reference's
            weights hold them, without weights as published ones do. Quantized experts are written one by one.
        architecture: a table of one's own, or `package.module:TABLE`; by default the one that shardmerge, or an
            installed package, has for the architecture that config.json names.
        check_replicas: also record checksums of what this rank holds and another writes; the merge compares them.
        max_fragment_bytes: size of a fragment file.
        staging_bytes: host memory used for copying.
        on_error: "record" returns None where "raise" raises, once the rank is known; both write
            rank-NNNNN.failed.json.
        quiet: show no progress; otherwise the first rank of each node does.

    Returns:
        The manifest of this rank.

    Raises:
        ShardmergeError: before anything is written; OutputExistsError if this rank is in `out` already.
        OSError: a file could not be written.
    """
    folder, chunks = Path(out), [model] if isinstance(model, nn.Module) else list(model)
    refuse_foreign(chunks)
    refuse_uninitialized(chunks)
    world = world_of(unwrap(chunks[0]))
    forget_failure(folder, world.rank)
    try:
        refuse_existing(folder, world.rank)
        generation = Generation(run_id, step, attempt_of() if attempt is None else attempt)
        options = Options(
            params_synced=params_synced,
            dtype_from_reference=dtype_from_reference,
            dequantize=dequantize,
            drop_mtp=drop_mtp,
            drop_vision=drop_vision,
            experts=experts,
            architecture=architecture,
            staging_bytes=staging_bytes,
        )
        with garbage_collector.paused():
            source = live_model(chunks, world, generation, hf_reference, options)
            try:
                return write_rank(
                    source,
                    folder,
                    max_fragment_bytes=max_fragment_bytes,
                    check_replicas=check_replicas,
                    quiet=quiet,
                )
            finally:
                source.release()
    except Exception as error:
        record_failure(folder, world.rank, run_id, error)
        if on_error == "record":
            return None
        raise
