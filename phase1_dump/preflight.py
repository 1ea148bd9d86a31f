"""What is refused before a provider spends minutes on a model: a reference without a table, a dump without room.

Decides nothing about the model, which is not there yet.
"""

from __future__ import annotations

import os
from math import prod
from pathlib import Path

from shardmerge.common import durable, file_systems, places
from shardmerge.common.architectures import Architecture, Blueprint, blueprint
from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import BadInputError, OutputExistsError
from shardmerge.common.reference import Reference

BYTES_OF_ELEMENT = 2  # of bfloat16: what most models are written in
PROBE_BYTES = 4096
WITHOUT_ROOM = (
    "{} of parameters in bfloat16 will be written by all ranks together, and {} are free in {}. If that is the only "
    "place of the dump, ranks will fail."
)


def require_writable(out: Path, rank: int) -> None:
    """Make the dump, and a file in it that goes at once.

    Raises BadInputError if that cannot be done, OutputExistsError if it is not a directory.
    """
    if os.path.lexists(out) and not out.is_dir():
        raise OutputExistsError(str(out), "it is not a directory")
    probe = places.temporary(out / places.rank_name(rank))
    try:
        durable.make_folder(out)
        try:
            durable.write_file(probe, bytes(PROBE_BYTES))
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise BadInputError(
            f"--out {out} cannot be written: {error.strerror or error}",
            "Give a directory that every rank can write to.",
        ) from error


def table_of(known: Reference, architecture: Architecture | None) -> Blueprint:
    """Bind the table of a reference's architecture, or the given one, to it. Raises UnsupportedArchitectureError."""
    return blueprint(known.config, known.tensors, table=architecture)


def warning_of_room(out: Path, table: Blueprint) -> str | None:
    """Return a warning if a dump of the whole model would not fit. Its ranks may each have a disk of their own."""
    num_bytes = BYTES_OF_ELEMENT * sum(prod(family.shape) * len(family.names) for family in table.families())
    free_bytes = file_systems.free_bytes(out)
    return None if num_bytes <= free_bytes else WITHOUT_ROOM.format(show(num_bytes), show(free_bytes), out)
