"""Is every byte of the fragments as it was when it was written? Reads all of them, and never interprets a number.

A fragment is read in threads: hashing and reading release the interpreter.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TextIO

from shardmerge.common.command.progress import Progress
from shardmerge.common.errors import CorruptFileError, Findings, ShardmergeError, raise_problems
from shardmerge.common.rectangle import place

from ..disk.hashing import Advance, Span, checksums, in_threads, stretches, wrong_bytes
from ..ledger.fragments import Fragment
from ..ledger.rows import IntArray
from ..ledger.table import Ledger


def verify_bytes(ledger: Ledger, fragments: Sequence[Fragment], talk: TextIO | None) -> None:
    """Read these fragments whole, and compare the checksum of every rectangle.

    Args:
        ledger: where the checksums are recorded.
        fragments: those that are read.
        talk: progress goes here.

    Raises:
        CorruptFileError: a rectangle does not have its checksum, or a file is short or missing.
        ProblemsFoundError: several are so.
        OSError: reading fails.
    """
    progress = Progress("verifying", sum(fragment.file.num_bytes for fragment in fragments), talk)
    try:
        raise_problems(check_bytes(ledger, fragments, progress.advance).problems)
    finally:
        progress.close()


def check_bytes(ledger: Ledger, fragments: Sequence[Fragment], advance: Advance) -> Findings:
    """Read every rectangle once and compare its checksum.

    Args:
        ledger: where the checksums are recorded.
        fragments: those that are read.
        advance: called with numbers of bytes while they are read.

    Returns:
        Of each fragment the first rectangle that differs.

    Raises:
        OSError: Reading fails.
    """
    parts = [
        (fragment, fragment.rows[stretch])
        for fragment in fragments
        for stretch in stretches(_spans(ledger, fragment.rows))
    ]
    problems = in_threads(
        lambda fragment, rows: as_problem(fragment, lambda: _compare(ledger, fragment.path, rows, advance)),
        parts,
    )
    return Findings(tuple(problems))


def as_problem(fragment: Fragment, compare: Callable[[], None]) -> ShardmergeError | None:
    """Compare something of a fragment. Returns what that raised about a file, with its rank; None if nothing."""
    try:
        compare()
    except CorruptFileError as error:
        return CorruptFileError(error.path, error.reason, fragment.rank, error.do)
    except FileNotFoundError:
        return CorruptFileError(
            str(fragment.path), "it is missing, though the manifest names it", fragment.rank
        )
    return None


def _spans(ledger: Ledger, rows: IntArray) -> list[Span]:
    return list(zip(ledger.rows.begin[rows].tolist(), ledger.rows.end[rows].tolist(), strict=True))


def _compare(ledger: Ledger, path: Path, rows: IntArray, advance: Advance) -> None:
    """Raise CorruptFileError for the first of these rows whose bytes have another checksum than was recorded."""
    columns = ledger.rows
    for row, got in zip(rows, checksums(path, _spans(ledger, rows), advance), strict=True):
        if got != columns.checksum(row):
            what = f"{ledger.names[int(columns.name[row])]} {place(*columns.box(row))}"
            raise CorruptFileError(str(path), wrong_bytes(what, got, columns.checksum(row)))
