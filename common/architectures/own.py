"""Finds tables that are not shardmerge's: named by a caller, or by a package that is installed beside it.

A table of one's own is looked at as a whole before anything is read with it. Must not know configs.
"""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from importlib.metadata import entry_points

from ..errors import ArchitectureTableError
from .blueprint import Blueprint
from .keys import key_pattern
from .rows import Architecture, Layout, Row
from .settings.vocabulary import SETTINGS

ENTRY_POINTS = (
    "shardmerge.architectures"  # the group; the name of an entry is one in config.json "architectures"
)
SPELLING = "it is not spelled package.module:TABLE"


def named(table: str | Architecture) -> Architecture:
    """Return the table that a caller gives or names.

    Args:
        table: A table, or `package.module:TABLE`, which is imported.

    Returns:
        The table.

    Raises:
        ArchitectureTableError: It is spelled otherwise, cannot be imported, or is not a table that can be used.
    """
    if isinstance(table, Architecture):
        return _sound(table, table.name)
    module, colon, name = table.partition(":")
    if not (module and colon and name.isidentifier()):
        raise ArchitectureTableError(table, SPELLING)
    try:
        found = getattr(import_module(module), name)
    except Exception as error:  # whatever a module of somebody else does while it is imported
        raise ArchitectureTableError(table, f"{type(error).__name__}: {error}") from error
    return _sound(found, table)


def installed(architecture: str) -> Architecture | None:
    """Return the table that an installed package has for an architecture, None if none has.

    Raises ArchitectureTableError for one that cannot be used, and where two packages have one.
    """
    where = installed_at(architecture)
    if ", " in where:
        raise ArchitectureTableError(where, f"there is more than one table of {architecture}")
    return named(where) if where else None


def installed_names() -> tuple[str, ...]:
    """Return the architectures that installed packages have tables of. None of these is imported."""
    return tuple(sorted({entry.name for entry in entry_points(group=ENTRY_POINTS)}))


def installed_at(architecture: str) -> str:
    """Return where an installed package says that its table of an architecture is; several are joined by commas."""
    entries = entry_points(group=ENTRY_POINTS, name=architecture)
    return ", ".join(sorted({entry.value for entry in entries}))


def require_bound(bound: Blueprint) -> Blueprint:
    """Return a table that is bound to a config.json.

    Raises ArchitectureTableError for rows that name a dimension, or a set of layers, which its functions do not give.
    """
    known, sets = bound.dimensions.keys(), {"model", *bound.layers}
    faults = [
        f"{name} needs the dimension {size}, which dimensions() does not give"
        for row in bound.rows
        for name, sizes in _sizes(row)
        for size in sizes
        if size not in known
    ]
    faults += [f"layers() gives no set {row.where}" for row in bound.rows if row.where not in sets]
    if faults:
        raise ArchitectureTableError(bound.architecture.name, "; ".join(dict.fromkeys(faults)))
    return bound


def _sizes(row: Row) -> Iterator[tuple[str, set[str]]]:
    """Yield each target's name with the names of the dimensions that it needs."""
    for target in row.targets:
        yield target.name, {size for dim in target.shape for size in dim.split("+")} | {*row.sections}


def _sound(found: object, said: str) -> Architecture:
    """Return a table. Raises ArchitectureTableError for what is not one, or what code of both phases trips over."""
    if not isinstance(found, Architecture):
        raise ArchitectureTableError(said, f"it is a {type(found).__name__}, and not an Architecture")
    if faults := [*_faults(found)]:
        raise ArchitectureTableError(said, "; ".join(faults))
    return found


def _faults(table: Architecture) -> Iterator[str]:
    """Yield what is wrong with a table, whatever config.json says."""
    claimed: dict[tuple[str, str, object], Row] = {}
    for row in table.rows:
        for key in row.keys:
            other = claimed.setdefault((key, row.when, row.spelling), row)
            if other is not row and other.where == row.where:
                yield f"two rows claim {key}"
            if key_pattern(key) != key:
                yield f"{key} holds a number, where rows have {{layer}} or {{expert}}"
        for target in row.targets:
            if any("{layer}" in key for key in row.keys) and "{layer}" not in target.name:
                yield f"{target.name} of every layer has no {{layer}}"
            of_experts = row.layout is not Layout.PACKED and any("{expert}" in key for key in row.keys)
            if of_experts and "{expert}" not in target.name:
                yield f"{target.name} of every expert has no {{expert}}"
        if row.spelling is not None and table.experts is None:
            yield f"{row.targets[0].name} has a spelling, and the table does not say which there are (experts)"
    yield from (f"there is no setting {row.setting}" for row in table.settings if row.setting not in SETTINGS)
