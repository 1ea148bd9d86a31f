"""Finds the row of the table that each parameter belongs to.

A parameter that no row claims or drops is an error. Must not know what is done with a row.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from shardmerge.common.architectures import Blueprint, Claim
from shardmerge.common.architectures.keys import is_mtp
from shardmerge.common.errors import (
    AdapterError,
    ShardmergeError,
    UnclaimedParameterError,
    UnsupportedParameterError,
)
from shardmerge.common.errors.several import raise_problems

from .layouts import LAYOUTS
from .packed_pieces import Packed
from .parameter import Parameter

# what keys of adapters contain: megatron-bridge, peft/*.py; of mcore-bridge, tuners/lora.py, which are PEFT's
ADAPTER = re.compile(r"\.(adapter|to_wrap|lora_(A|B|embedding_A|embedding_B|magnitude_vector)|base_layer)\.")
DROPPED_MTP = "multi-token prediction, by --drop-mtp"


@dataclass(frozen=True, slots=True, eq=False)
class Claimed:
    """A parameter, the row of the table that claims it, and the packed form it is written in if it has one."""

    parameter: Parameter
    claim: Claim
    packed: Packed | None = None
    has_quantizer: bool = False


def claim_all(
    chunks: Iterable[Iterable[Parameter]], blueprint: Blueprint, rank: int, *, drop_mtp: bool = False
) -> tuple[list[list[Claimed]], dict[str, int]]:
    """Find the row of every parameter of a rank.

    Args:
        chunks: the parameters of each model chunk; a source that knows no chunks gives one list.
        blueprint: the table, bound to config.json.
        rank: for messages.
        drop_mtp: leave out multi-token prediction, whether the table knows it or not.

    Returns:
        The claimed parameters of each chunk, with the keys that the table knows; and by reason, how many parameters
        lose rows or are dropped.

    Raises:
        UnclaimedParameterError: no row claims or drops a parameter.
        UnsupportedParameterError: the table knows that a parameter cannot be exported.
        AdapterError: the model has LoRA adapters, which are told with all their names.
        ProblemsFoundError: several of these.
    """
    claimed: list[list[Claimed]] = []
    drops: dict[str, int] = defaultdict(int)
    unclaimed: list[Parameter] = []
    for parameters in chunks:
        claimed.append([])
        for described in parameters:
            key = blueprint.canonical(described.key)
            parameter = described if key == described.key else replace(described, key=key)
            if drop_mtp and is_mtp(key):
                reason: str | None = DROPPED_MTP
            elif (claim := blueprint.claim(key)) is not None:
                claimed[-1].append(Claimed(parameter, claim))
                reason = _padding(parameter, claim)
            elif (reason := blueprint.drop_reason(key)) is None:
                unclaimed.append(parameter)
            if reason is not None:
                drops[reason] += 1
    raise_problems(_problems(unclaimed, blueprint, rank))
    return claimed, dict(drops)


def _problems(unclaimed: Iterable[Parameter], blueprint: Blueprint, rank: int) -> Iterator[ShardmergeError]:
    """Yield what is wrong with parameters that no row claims: adapters as one problem, all others one by one."""
    adapters = []
    for parameter in unclaimed:
        key, reason = parameter.key, blueprint.refusal_reason(parameter.key)
        if ADAPTER.search(key):
            adapters.append(key)
        elif reason is not None:
            yield UnsupportedParameterError(key, reason, rank)
        else:
            name = blueprint.architecture.name
            yield UnclaimedParameterError(key, parameter.global_shape, name, rank, blueprint.mtp_key)
    if adapters:
        yield AdapterError(tuple(adapters), rank)


def _padding(parameter: Parameter, claim: Claim) -> str | None:
    """Return which rows of a parameter are left out as padding of the vocabulary, or None.

    The manifest counts them, since the config.json may be wrong.
    """
    if not LAYOUTS[claim.row.layout].drops_padding:
        return None
    held, wanted = parameter.global_shape[0], claim.tensors[0].shape[0]
    return f"rows {wanted:,} to {held:,} of {parameter.key}: vocabulary padding" if held > wanted else None
