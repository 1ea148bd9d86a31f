"""Is every byte of the fragments as it was when it was written?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TextIO

from shardmerge.common.command.progress import Progress
from shardmerge.common.errors import raise_problems

from ..ledger.fragments import Fragment, check_bytes
from ..ledger.table import Ledger


def verify_bytes(ledger: Ledger, fragments: Sequence[Fragment], talk: TextIO | None) -> None:
    """Read these fragments whole, and compare the checksum of every rectangle.

    Args:
        ledger: Where the checksums are recorded.
        fragments: Those that are read.
        talk: Where progress is shown.

    Raises:
        CorruptFileError: A rectangle does not have its checksum, or a file is short or missing.
        ProblemsFoundError: Several do not.
        OSError: Reading fails.
    """
    progress = Progress("verifying", sum(fragment.file.num_bytes for fragment in fragments), talk)
    try:
        raise_problems(check_bytes(ledger, fragments, progress.advance))
    finally:
        progress.close()
