"""Is a vision tower that config.json promises there? Some readers make up weights for one that is not."""

from __future__ import annotations

from collections.abc import Iterable

from shardmerge.common.architectures import Blueprint
from shardmerge.common.errors import BadInputError, Findings, MissingVisionError
from shardmerge.common.reference import PLAIN_FLOATS

from ..case import Case


def check(case: Case) -> Findings:
    """Find that it is promised and nobody holds any of it, or that it would be taken from a quantized one.

    What is missing in part is not told here.
    """
    table = case.blueprint
    placed = (one.rectangle for file in case.ledger.grafted for one in file.placed)
    grafted = {one.name: one.dtype for one in placed if table.is_vision(one.name)}
    if packed := next((name for name, dtype in grafted.items() if dtype not in PLAIN_FLOATS), ""):
        problem = BadInputError(
            f"--graft takes {packed} from the reference, which is {grafted[packed]} there: it is quantized",
            "Give a reference whose vision tower is not: the output would not say how it is to be read.",
        )
        return Findings((problem,))
    return Findings(missing(table, case.ledger.names)).allowing(case.asked.allow)


def missing(table: Blueprint, names: Iterable[str]) -> tuple[MissingVisionError, ...]:
    """Return that a tower is promised and none of these names is of it, and nothing otherwise."""
    composite = table.architecture.composite
    if composite is None or not table.promises_vision or any(map(table.is_vision, names)):
        return ()
    return (MissingVisionError(table.promises_vision, tuple(f"{one}*" for one in composite.vision)),)
