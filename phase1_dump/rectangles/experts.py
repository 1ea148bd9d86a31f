"""Decides when routed experts are spelled otherwise than the reference does, and tells how they were.

Quantized experts are written one by one, because vLLM takes them so alone. Must not know names.
"""

from __future__ import annotations

from collections.abc import Iterable

from shardmerge.common.architectures import Blueprint, Spelling
from shardmerge.common.architectures.keys import is_mtp, is_routed_expert
from shardmerge.common.architectures.spelling import DECODER, MTP, accepted
from shardmerge.common.errors import ExpertSpellingError

from .claims import Claimed

QUANTIZED = "They are quantized, and vLLM takes quantized experts one by one alone."


def respelled(claimed: Iterable[Claimed], table: Blueprint, asked: str | None) -> dict[str, Spelling]:
    """Return the parts that must be spelled otherwise than the table spells them, with their spelling.

    These are quantized experts that it has packed, and others that it has as only a quantized reference holds them.

    Args:
        claimed: All parameters of a rank, with their packed forms.
        table: The table that claimed them.
        asked: The spelling that the caller wants, None for any.

    Returns:
        The spelling of each such part; none if there is one spelling alone.

    Raises:
        ExpertSpellingError: The caller wants quantized experts packed.
    """
    known = table.architecture.experts
    if known is None or not any(row.spelling for row in table.rows):
        return {}
    experts = {_part(one): False for one in claimed if _is_expert(one)}
    experts |= {_part(one): True for one in claimed if _is_expert(one) and one.packed is not None}
    changed: dict[str, Spelling] = {}
    for part, is_quantized in experts.items():
        spelled, taken = table.experts[part], accepted(known, part)
        if is_quantized and spelled is Spelling.PACKED:
            if asked == spelled and spelled in taken:
                raise ExpertSpellingError(table.architecture.name, asked, QUANTIZED)
            changed[part] = Spelling.PER_EXPERT
        elif not is_quantized and spelled not in taken:
            changed[part] = taken[0]
    return changed


def spellings_of(claimed: Iterable[Claimed], table: Blueprint) -> dict[str, str]:
    """Return how the routed experts of a rank are spelled, by part. A part of which it holds none is left out."""
    held = {_part(one) for one in claimed if _is_expert(one)}
    return {part: str(spelling) for part, spelling in table.experts.items() if part in held}


def _is_expert(one: Claimed) -> bool:
    return is_routed_expert(one.parameter.key)


def _part(one: Claimed) -> str:
    return MTP if is_mtp(one.parameter.key) else DECODER
