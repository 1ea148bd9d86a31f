"""Decides how routed experts are spelled: one by one or packed, in the decoder and in multi-token prediction each.

What was told comes first (an option, or what a dump did), then what the reference holds, then how published files are
spelled. Must not know rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

from ..errors import BadInputError, ExpertSpellingError
from .rows import Architecture, Spelling, Spellings

DECODER: Final = "decoder"
MTP: Final = "mtp"
PARTS: Final = (DECODER, MTP)
Spelled: TypeAlias = Mapping[str, Spelling]  # by part
NO_EXPERTS: Final = "It has no routed experts."


def accepted(spellings: Spellings, part: str) -> tuple[Spelling, ...]:
    """Return which spellings of a part readers take, that of published files first."""
    return spellings.mtp if part == MTP else spellings.decoder


def asked(architecture: Architecture, num_experts: int, spelling: str) -> Spelled:
    """Return what an option asks for. Multi-token prediction keeps its own spelling where readers take no other.

    Args:
        architecture: The table.
        num_experts: How many routed experts a layer has, 0 for a dense model.
        spelling: A word of `Spelling`.

    Returns:
        The spelling of each part that the option decides.

    Raises:
        ExpertSpellingError: Readers do not take it, or there are no experts.
        BadInputError: It is not a spelling.
    """
    wanted, known = _spelling(spelling, "--experts"), architecture.experts
    if known is None or not num_experts:
        raise ExpertSpellingError(architecture.name, wanted, NO_EXPERTS)
    if wanted not in known.decoder:
        raise ExpertSpellingError(architecture.name, wanted, known.only)
    return {part: wanted for part in PARTS if wanted in accepted(known, part)}


def told(facts: Mapping[str, str] | None) -> Spelled:
    """Return what the manifests of a dump tell of its spellings. Raises BadInputError for what is not one."""
    return {part: _spelling(said, f"facts.experts.{part}") for part, said in (facts or {}).items()}


def decided(
    architecture: Architecture, said: Spelled, is_held: Callable[[str, Spelling], bool]
) -> dict[str, Spelling]:
    """Return how each part is spelled. There are none in a table without routed experts.

    Args:
        architecture: The table.
        said: What was told, of some parts.
        is_held: Whether the reference holds experts of a part in a spelling.

    Returns:
        The spelling of each part.
    """
    if architecture.experts is None:
        return {}
    spelled: dict[str, Spelling] = {}
    for part in PARTS:
        published = (*accepted(architecture.experts, part), *Spelling)
        held = (spelling for spelling in published if is_held(part, spelling))
        spelled[part] = said.get(part) or next(held, published[0])
    return spelled


def _spelling(said: str, where: str) -> Spelling:
    if said not in [*Spelling]:
        raise BadInputError(f"{where} {said!r:.40}", f"Known: {', '.join(Spelling)}.")
    return Spelling(said)
