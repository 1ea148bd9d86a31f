"""Binds the table that a dump is made with to its reference: whose table it is, and which spelling was asked for.

The same for every source. Must not know what a rank holds.
"""

from __future__ import annotations

from shardmerge.common.architectures import Architecture, Blueprint, blueprint, own
from shardmerge.common.architectures.spelling import asked
from shardmerge.common.errors import ArchitectureTableError
from shardmerge.common.reference import Reference

from .layouts import missing_dimensions


def bound_table(known: Reference, architecture: str | Architecture | None, experts: str | None) -> Blueprint:
    """Return the table of a reference.

    Args:
        known: the reference.
        architecture: a table of the caller's own, or where it is; None for the one that is known.
        experts: how routed experts are spelled; None lets the reference decide.

    Returns:
        The table, bound to config.json.

    Raises:
        ExpertSpellingError: readers do not take that spelling.
        ArchitectureTableError: the table lacks what its layouts need.
        ShardmergeError: whatever `own.named` and `blueprint` raise.
    """
    given = None if architecture is None else own.named(architecture)
    table = blueprint(known.config, known.tensors, table=given)
    if lacking := missing_dimensions(table):
        raise ArchitectureTableError(table.architecture.name, f"dimensions() lacks {', '.join(lacking)}")
    if experts is None:
        return table
    wanted = asked(table.architecture, table.dimensions.get("num_experts", 0), experts)
    return blueprint(known.config, known.tensors, wanted, given)
