"""Faults put into a live model or a table on purpose, and the dump of what comes of it. Runs inside a pool of ranks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn

from shardmerge.common import architectures
from shardmerge.common.architectures.rows import Row
from tests.worlds.families import Family

LAYER, EXPERT = 1, 3  # where faults of live weights are
MOE = "Qwen3MoeForCausalLM"


def dump_with_fault(_rank: int, family: Family, hf_path: Path, out: Path, fault: str) -> None:
    """Load the checkpoint with Model-Optimizer's importer, spoil the model or the table, and dump."""
    from tests.phase1_dump.dumped import dumped
    from tests.worlds.oracle import import_whole

    model = import_whole(family, hf_path, torch.bfloat16)
    with torch.no_grad():
        LIVE.get(fault, nothing)(model)
    with TABLES.get(fault, nullcontext)():
        dumped(model, out, hf_path)


def nothing(_model: Any) -> None:
    """No fault."""


def swap_gate_and_up(model: Any) -> None:
    """Rows of up before rows of gate, in one expert."""
    fc1 = model.decoder.layers[LAYER].mlp.experts.local_experts[EXPERT].linear_fc1.weight
    fc1.copy_(fc1.roll(fc1.shape[0] // 2, 0))


def shift_experts(model: Any) -> None:
    """Every expert of one layer in the place of the next."""
    experts = model.decoder.layers[LAYER].mlp.experts
    local = list(experts.local_experts)
    experts.local_experts = nn.ModuleList([local[-1], *local[:-1]])


def transpose_down(model: Any) -> None:
    """A square down projection, transposed."""
    weight = model.decoder.layers[LAYER].mlp.experts.local_experts[EXPERT].linear_fc2.weight
    weight.copy_(weight.t().clone())


def transpose_output(model: Any) -> None:
    """A square output projection as a transposed view: the same storage, other values."""
    linear = model.decoder.layers[LAYER].self_attention.linear_proj
    linear.weight = nn.Parameter(linear.weight.detach().t())


def stride_down(model: Any) -> None:
    """No fault: the same values, not contiguous in memory."""
    linear = model.decoder.layers[LAYER].mlp.experts.local_experts[EXPERT].linear_fc2
    linear.weight = nn.Parameter(linear.weight.detach().t().contiguous().t())
    assert not linear.weight.is_contiguous()


def swap_q_heads(model: Any) -> None:
    """The first two heads of the fused q/k/v in each other's place."""
    weight = model.decoder.layers[LAYER].self_attention.linear_qkv.weight
    dim = model.config.kv_channels
    weight[: 2 * dim] = weight[: 2 * dim].roll(dim, 0)


def table_swaps_gate_and_up() -> AbstractContextManager[Any]:
    """The rows of gate and up have each other's tensors."""
    other = {"weight_w": "weight_v", "weight_v": "weight_w"}

    def swapped(row: Row) -> Row:
        head, _, tail = row.keys[0].rpartition(".")
        return replace(row, keys=(f"{head}.{other[tail]}",)) if ".experts." in head and tail in other else row

    return with_rows(swapped)


def table_swaps_q_and_k_norms() -> AbstractContextManager[Any]:
    """The norms of queries and keys have each other's tensors."""
    other = {"q_layernorm": "k_layernorm", "k_layernorm": "q_layernorm"}

    def swapped(row: Row) -> Row:
        part = row.keys[0].split(".")[-2]
        return replace(row, keys=(row.keys[0].replace(part, other[part]),)) if part in other else row

    return with_rows(swapped)


def with_rows(change: Callable[[Row], Row]) -> AbstractContextManager[Any]:
    """The table with other rows, while the context lasts."""
    table = architectures.ARCHITECTURES[MOE]
    changed = replace(table, rows=tuple(map(change, table.rows)))
    assert changed.rows != table.rows
    return mock.patch.dict(architectures.ARCHITECTURES, {MOE: changed})


LIVE: dict[str, Callable[[Any], None]] = {
    "gate and up of an expert swapped": swap_gate_and_up,
    "experts shifted": shift_experts,
    "down projection transposed": transpose_down,
    "output projection transposed": transpose_output,
    "query heads swapped": swap_q_heads,
    "strided, no fault": stride_down,
}
TABLES: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "gate and up swapped in the table": table_swaps_gate_and_up,
    "q and k norms swapped in the table": table_swaps_q_and_k_norms,
}
