"""Turns the live model of a rank into a source: parameters, claimed, packed and laid out as rectangles.

Enters no collective. Describing reads no numbers but calibration ranges.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from shardmerge.common import reference
from shardmerge.common.architectures import Architecture, Blueprint, blueprint
from shardmerge.common.architectures.digest import table_digest
from shardmerge.common.architectures.keys import is_mtp
from shardmerge.common.reference import Reference
from shardmerge.common.versions import version_of

from ..generation import Generation
from ..quantization import modelopt
from ..quantization.element_types import dtype_name
from ..quantization.packed_claims import kv_caches, pack_claims
from ..rectangles.bound_table import bound_table
from ..rectangles.claims import Claimed, claim_all
from ..rectangles.expert_ids import check_expert_ids
from ..rectangles.experts import respelled, spellings_of
from ..rectangles.holdings import holdings_of
from ..rectangles.parameter import Parameter
from ..rectangles.parts import Scalar
from ..rectangles.quantization_facts import KVCache, facts_of
from ..rectangles.written_dtypes import dtype_chooser
from ..settings.fields import unknown_fields
from ..settings.live_settings import settings_of
from ..source import Holding, ManifestFacts, Stream
from ..world import World
from .host_memory.host_buffers import HostBuffers
from .megatron_config import check_agreement, check_one_config
from .module_words import norms_as_read, refuse_other_orders
from .modules import language_models, left_beside, local_experts, router_bias_dtypes
from .parameters import parameters_of
from .reading import Reader
from .refusals import refuse_parameters, refuse_stale

PRODUCERS = ("shardmerge", "megatron-core", "torch")


@dataclass(frozen=True, slots=True)
class Options:
    """How a live model is to be read, as the caller of `dump` chose.

    params_synced: the caller has gathered the parameters of a DDP with overlap_param_gather.
    dtype_from_reference: let the reference narrow tensors that are otherwise kept float32.
    dequantize: write Transformer Engine's quantized parameters in the precision they stand for.
    drop_mtp: leave out multi-token prediction.
    drop_vision: leave out a vision tower that was not frozen.
    experts: how routed experts are spelled; None lets the reference decide.
    architecture: a table of the caller's own, or where it is; None for the one that is known.
    staging_bytes: host memory used for copying.
    """

    params_synced: bool
    dtype_from_reference: bool
    dequantize: bool
    drop_mtp: bool
    drop_vision: bool
    experts: str | None
    architecture: str | Architecture | None
    staging_bytes: int


@dataclass(frozen=True, slots=True, eq=False)
class LiveModel:
    """A `source.Source`: what one rank holds of a live model. Made by `live_model`."""

    world: World
    generation: Generation
    facts: ManifestFacts
    holdings: tuple[Holding, ...]
    stage_copies: tuple[Holding, ...]
    reader: Reader

    def settle(self) -> None:
        """Wait until every kernel that may still write to the parameters is through, on whatever stream it runs."""
        parts = (part for holding in (*self.holdings, *self.stage_copies) for part in holding.recipe.parts)
        live = (part.data for part in parts if not isinstance(part.data, Scalar))
        for device in {data.device for data in live if data.is_cuda}:
            torch.cuda.synchronize(device)

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Stream:
        """Yield the blocks of these holdings, and what was seen of each. Blocks of a CPU model may be views of it.

        Args:
            holdings: of this source.
            inspect: whether anybody needs to know about the numbers.
            streams: how many streams are read at the same time.

        Returns:
            A generator, which gives back its buffers and ends its threads when it is closed.
        """
        return self.reader.read(holdings, inspect=inspect, streams=streams)

    def release(self) -> None:
        """Give back the host memory that reading took."""
        self.reader.buffers.release()


def live_model(
    chunks: Sequence[nn.Module],
    world: World,
    generation: Generation,
    hf_reference: str | Path | Reference,
    options: Options,
) -> LiveModel:
    """Describe what this rank holds of a model.

    Args:
        chunks: this rank's model chunks, wrapped or not.
        world: where the rank stands.
        generation: which dump this is.
        hf_reference: Hugging Face directory with the model's config.json, or what was read of it.
        options: how to read it.

    Returns:
        A source. Its numbers have not been read.

    Raises:
        ShardmergeError: the model, its reference or both cannot be dumped; any of the tree.
    """
    refuse_stale([] if options.params_synced else chunks)
    known = reference.read(hf_reference)
    table = bound_table(known, options.architecture, options.experts)
    models = language_models(chunks, table, world.rank)
    beside = left_beside(chunks, models, table, world.rank, drop_vision=options.drop_vision)
    refuse_parameters(models, world.rank, dequantize=options.dequantize)
    config = models[0].config
    params_dtype = dtype_name(config.params_dtype)
    check_agreement(config, table, world.rank)
    check_one_config(models, world.rank)
    bias_dtypes = router_bias_dtypes(models)  # first: sharded_state_dict may cast them in place
    parameters = [list(parameters_of(model, world.rank)) for model in models]
    claimed, caches, drops = _claim(models, parameters, table, world.rank, options)
    if spelled := respelled(claimed, table, options.experts):
        table = blueprint(known.config, known.tensors, table.experts | spelled, table.architecture)
        claimed, caches, drops = _claim(models, parameters, table, world.rank, options)
    dtype_of = dtype_chooser(known, params_dtype, dtype_from_reference=options.dtype_from_reference)
    facts = ManifestFacts(
        table.architecture.name,
        table.dimensions,
        params_dtype,
        settings_of(models, drop_mtp=options.drop_mtp) | _as_written(table),
        unknown_fields(config),
        spellings_of(claimed, table),
        table_digest(table.architecture),
        options.dtype_from_reference,
        drops | beside,
        bias_dtypes,
        {name: version_of(name) for name in PRODUCERS},
        facts_of(claimed, caches, _producer(claimed, caches)),
    )
    scales = [scale for cache in caches for scale in cache.scales]
    first = [entry for entry in claimed if not entry.parameter.is_stage_copy]
    copies = [entry for entry in claimed if entry.parameter.is_stage_copy]
    return LiveModel(
        world,
        generation,
        facts,
        tuple(holdings_of(first, table, world, dtype_of, scales)),
        tuple(holdings_of(copies, table, world, dtype_of)),
        Reader(HostBuffers(options.staging_bytes)),
    )


def _claim(
    models: Sequence[nn.Module],
    parameters: Sequence[Sequence[Parameter]],
    table: Blueprint,
    rank: int,
    options: Options,
) -> tuple[list[Claimed], list[KVCache], dict[str, int]]:
    """Return parameters with their rows and packed forms, scales of KV caches, and counts of what is dropped."""
    by_chunk, drops = claim_all(parameters, table, rank, drop_mtp=options.drop_mtp)
    claimed: list[Claimed] = []
    caches: list[KVCache] = []
    centred = bool(table.says("zero_centred_norms").value)
    for model, held in zip(models, by_chunk, strict=True):
        layers = local_experts(model)
        check_expert_ids(
            {name: ids for name, ids in layers.items() if not (options.drop_mtp and is_mtp(name))},
            held,
            table,
            rank,
        )
        caches += kv_caches(model, held, rank)
        refuse_other_orders(model, held, rank)
        packed = pack_claims(model, held, rank, dequantize=options.dequantize)
        claimed += norms_as_read(model, packed, centred=centred, rank=rank)
    return claimed, caches, drops


def _as_written(table: Blueprint) -> dict[str, Any]:
    """Return the settings of what is written, whatever the model computes with: norms are as they are read."""
    return {"zero_centred_norms": table.says("zero_centred_norms").value}


def _producer(claimed: Sequence[Claimed], caches: Sequence[KVCache]) -> dict[str, str]:
    """Return whom the JSON files of a quantized checkpoint name as producer: modelopt if it has quantizers."""
    if caches or any(one.has_quantizer for one in claimed):
        return modelopt.producer()
    return {"name": "shardmerge", "version": version_of("shardmerge")}
