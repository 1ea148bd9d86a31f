"""The command `architectures`: which models there are tables of, what each of them knows, and which have none.

Reads no model.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import click

from ..architectures import TABLES, own
from ..architectures.digest import table_digest
from ..architectures.rows import Architecture, Spelling
from ..architectures.without_table import WITHOUT_TABLE, WithoutTable
from ..errors import ArchitectureTableError
from .options import ARCHITECTURE
from .outcome import HELP, Outcome, reported

OURS = "shardmerge"


@dataclass(frozen=True, slots=True)
class Listed:
    """One table: whose it is, and itself; or why that of a package cannot be used."""

    name: str
    owner: str  # OURS, or package.module:TABLE
    table: Architecture | None
    fault: str = ""

    def facts(self) -> dict[str, Any]:
        if self.table is None:
            return {"name": self.name, "owner": self.owner, "fault": self.fault}
        table, experts = self.table, self.table.experts
        return {
            "name": table.name,
            "owner": self.owner,
            "aliases": list(table.aliases),
            "source": table.source,
            "digest": table_digest(table),
            "layouts": layouts_of(table),
            "experts": None if experts is None else {"decoder": experts.decoder, "only": experts.only},
            "mtp": None if table.mtp is None else _mtp_facts(table),
            "oracles": list(table.oracles),
        }

    def lines(self) -> Iterator[str]:
        """Yield the name, and below it what the table knows."""
        yield f"{self.name}{'' if self.owner == OURS else f', of {self.owner}'}"
        if self.table is None:
            yield f"  cannot be used: {self.fault}"
            return
        if self.table.aliases:
            yield f"  also called {', '.join(self.table.aliases)}"
        yield f"  layouts: {', '.join(layouts_of(self.table))}"
        if self.table.experts:
            yield f"  experts: {spellings(self.table.experts.decoder)}"
        if self.table.mtp:
            yield f"  multi-token prediction: {self.table.mtp.hf_layers[1]}*{mtp_experts(self.table)}"
        yield f"  oracles: {', '.join(self.table.oracles) or 'none'}"


@dataclass(frozen=True, slots=True)
class Listing:
    """All tables, in the order of the registry, then those of packages, and the one that was given; who has none."""

    tables: tuple[Listed, ...]

    def without_table(self) -> Iterator[WithoutTable]:
        """Yield known architectures that have no table, without those that a package or the caller has one of."""
        known = {
            name for one in self.tables for name in (one.name, *(one.table.aliases if one.table else ()))
        }
        for one in WITHOUT_TABLE:
            if names := tuple(name for name in one.names if name not in known):
                yield replace(one, names=names)

    def facts(self) -> dict[str, Any]:
        without = [{"names": list(one.names), "reason": one.reason} for one in self.without_table()]
        return {"architectures": [one.facts() for one in self.tables], "without_table": without}

    def text(self) -> str:
        lines = [line for one in self.tables for line in one.lines()]
        for one in self.without_table():
            lines += [", ".join(one.names), f"  no table: {one.reason}"]
        return "\n".join(lines)


def layouts_of(table: Architecture) -> list[str]:
    """Return the layouts of a table's rows."""
    return sorted({str(row.layout) for row in table.rows})


def spellings(known: tuple[Spelling, ...]) -> str:
    """Return how experts may be spelled, in words."""
    return f"{known[0]}, or {' or '.join(known[1:])}" if len(known) > 1 else f"{known[0]} alone"


def mtp_experts(table: Architecture) -> str:
    """Return in words how experts of multi-token prediction may be spelled; "" for a table without experts."""
    return f", experts {spellings(table.experts.mtp)}" if table.experts else ""


def _mtp_facts(table: Architecture) -> dict[str, Any]:
    assert table.mtp is not None
    experts = table.experts.mtp if table.experts else None
    return {"names": table.mtp.hf_layers[1], "source": table.mtp.source, "experts": experts}


def listing(given: str | None = None) -> Listing:
    """Return all tables. Raises ArchitectureTableError if the one that is given besides cannot be used."""
    tables = [Listed(table.name, OURS, table) for table in TABLES]
    tables += [_installed(name) for name in own.installed_names()]
    if given is not None:
        table = own.named(given)
        tables.append(Listed(table.name, given, table))
    return Listing(tuple(tables))


def _installed(name: str) -> Listed:
    where = own.installed_at(name)
    try:
        return Listed(name, where, own.installed(name))
    except ArchitectureTableError as error:
        return Listed(name, where, None, error.reason)


@click.command(context_settings=HELP)
@ARCHITECTURE
@reported
def architectures(architecture: str | None) -> Outcome:
    """List the architectures that there are tables of: built in, from installed packages, and the one that is given.

    Of each: other names, layouts, how routed experts may be spelled (as published files are first), multi-token
    prediction, and the programs that its tests compare it with. Published architectures that have no table come last,
    with the reason; docs/contribute/architecture.md says how to write one.

    \b
    Example:
      shardmerge architectures --json
    """
    return listing(architecture)
