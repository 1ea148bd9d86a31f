"""The story of phase one: refuse, describe, claim, plan, write. One call on every rank; no rank waits for another."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import nn

from shardmerge.common import durable, reference
from shardmerge.common import manifest as manifests
from shardmerge.common.architectures import Blueprint, blueprint
from shardmerge.common.command.progress import Progress
from shardmerge.common.manifest import Manifest
from shardmerge.common.places import MANIFEST
from shardmerge.common.reference import Reference

from .fragments.manifest import Head, manifest_of, router_bias_dtypes
from .fragments.plan import Fragment, owned, plan_fragments
from .fragments.rank_directory import building, forget_failure, record_failure, refuse_existing
from .fragments.replicas import Replica, hashed, replicas_of
from .fragments.writer import Staging, settle, write_fragment
from .quantization.element_types import dtype_chooser, dtype_name
from .quantization.packing import KVCache, facts_of, kv_caches, pack_claims
from .rectangles.expert_ids import check_expert_ids
from .rectangles.holdings import Claimed, Holding, claim_all, holdings_of
from .sources.agreement import check_agreement
from .sources.generation import Generation, attempt_of
from .sources.parameters import parameters_of
from .sources.refusals import refuse_foreign, refuse_parameters, refuse_stale, refuse_uninitialized, unwrap
from .sources.world import World, world_of

MAX_FRAGMENT_BYTES = 5_000_000_000
STAGING_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Wanted:
    """How the caller of `dump` wants numbers to be written."""

    dtype_from_reference: bool = False
    dequantize: bool = False


def dump(
    model: nn.Module | Sequence[nn.Module],
    out: str | Path,
    *,
    hf_reference: str | Path,
    run_id: str,
    step: int,
    attempt: str | None = None,
    params_synced: bool = False,
    dtype_from_reference: bool = False,
    dequantize: bool = False,
    check_replicas: bool = False,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
    staging_bytes: int = STAGING_BYTES,
    on_error: Literal["raise", "record"] = "raise",
) -> Manifest | None:
    """Write what this rank owns of a live model to `out/rank-NNNNN`. Call it on every rank, in any order.

    model: a module, or the list of this rank's virtual pipeline chunks, wrapped (DDP, Float16Module) or not.
    hf_reference: Hugging Face directory with the model's config.json; weights there, if any, give dtypes.
    run_id, step, attempt: the generation, the same on all ranks; attempt by default the launcher's job and restart.
    params_synced: the caller has gathered the parameters of a DDP with overlap_param_gather.
    dtype_from_reference: let the reference narrow tensors that are otherwise kept float32 (router biases).
    dequantize: write Transformer Engine's quantized parameters in the precision they stand for.
    check_replicas: also record the checksums of what this rank holds and another writes; the merge compares them.
    max_fragment_bytes, staging_bytes: size of a fragment file; host memory used for copying.
    on_error: "record" returns None where "raise" raises, once the rank is known; both write rank-NNNNN.failed.json.
    No collective is entered, and nothing stands under its final name until it is complete. Host memory above the
    model is `staging_bytes` and the largest row.
    Raises an error of the tree before anything is written, OutputExistsError if this rank is in `out`, OSError.
    """
    folder, chunks = Path(out), [model] if isinstance(model, nn.Module) else list(model)
    refuse_foreign(chunks)
    refuse_uninitialized(chunks)
    world = world_of(unwrap(chunks[0]))
    forget_failure(folder, world.rank)
    try:
        refuse_existing(folder, world.rank)
        generation = Generation(run_id, step, attempt_of() if attempt is None else attempt)
        _refuse(chunks, world.rank, params_synced=params_synced, dequantize=dequantize)
        known, wanted = reference.read(Path(hf_reference)), Wanted(dtype_from_reference, dequantize)
        head, holdings, stage_copies = describe(chunks, world, generation, known, wanted)
        fragments = plan_fragments(owned(holdings, world.rank), max_fragment_bytes)
        copies = replicas_of(holdings, stage_copies, world) if check_replicas else ()
        return write(folder, fragments, head, staging_bytes, copies)
    except Exception as error:
        record_failure(folder, world.rank, run_id, error)
        if on_error == "record":
            return None
        raise


def describe(
    chunks: Sequence[nn.Module],
    world: World,
    generation: Generation,
    known: Reference,
    wanted: Wanted,
) -> tuple[Head, tuple[Holding, ...], tuple[Holding, ...]]:
    """The manifest's head, the rectangles this rank may write, and those that another pipeline stage owns.

    Reads no numbers but calibration ranges.
    """
    config: Any = unwrap(chunks[0]).config
    table, params_dtype = blueprint(known.config), dtype_name(config.params_dtype)
    check_agreement(config, table, world.rank)
    bias_dtypes = router_bias_dtypes(chunks)  # first: sharded_state_dict may cast them in place
    claimed, caches, drops = _claim(chunks, table, world, dequantize=wanted.dequantize)
    chooser = dtype_chooser(known, params_dtype, dtype_from_reference=wanted.dtype_from_reference)
    scales = [scale for cache in caches for scale in cache.scales]
    mine = [one for one in claimed if not one.parameter.is_stage_copy]
    copies = [one for one in claimed if one.parameter.is_stage_copy]
    holdings = tuple(holdings_of(mine, table, world, chooser, scales))
    narrow, quantization = wanted.dtype_from_reference, facts_of(claimed, caches)
    head = Head(generation, world, table, params_dtype, drops, bias_dtypes, narrow, quantization)
    return head, holdings, tuple(holdings_of(copies, table, world, chooser))


def write(
    folder: Path,
    fragments: Sequence[Fragment],
    head: Head,
    staging_bytes: int,
    copies: Sequence[Replica] = (),
) -> Manifest:
    """Write the fragments, then the manifest, under a temporary name, and rename. Raises OSError.

    `copies` are only hashed.
    """
    staging, progress = Staging(staging_bytes), _progress(fragments, head.world)
    settle(fragments)
    with building(folder, head.world.rank) as partial:
        written = [write_fragment(partial, fragment, staging, progress.advance) for fragment in fragments]
        found = manifest_of(head, fragments, written, [hashed(copy, staging) for copy in copies])
        durable.write_file(partial / MANIFEST, manifests.encode(found))
    progress.close()
    return found


def _refuse(chunks: Sequence[nn.Module], rank: int, *, params_synced: bool, dequantize: bool) -> None:
    refuse_stale([] if params_synced else chunks)
    refuse_parameters(chunks, rank, dequantize=dequantize)


def _claim(
    chunks: Sequence[nn.Module], table: Blueprint, world: World, *, dequantize: bool
) -> tuple[list[Claimed], list[KVCache], dict[str, int]]:
    claimed: list[Claimed] = []
    caches: list[KVCache] = []
    drops: dict[str, int] = {}
    for chunk in chunks:
        own, dropped = claim_all(parameters_of(chunk, world), table, world.rank)
        check_expert_ids(unwrap(chunk), own, table, world.rank)
        caches += kv_caches(unwrap(chunk), own, world.rank)
        claimed += pack_claims(unwrap(chunk), own, world.rank, dequantize=dequantize)
        drops |= {reason: drops.get(reason, 0) + count for reason, count in dropped.items()}
    return claimed, caches, drops


def _progress(fragments: Sequence[Fragment], world: World) -> Progress:
    """Only the first rank of a node speaks."""
    speaks = os.environ.get("LOCAL_RANK", str(world.rank)) == "0"
    total = sum(fragment.header.file_bytes for fragment in fragments)
    return Progress(f"rank {world.rank} dumps", total, sys.stderr if speaks else None)
