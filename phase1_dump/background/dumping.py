"""A dump that is being written while its model goes on: is it done, and how did it end.

Must not know how bytes reach the process that writes.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import RLock
from typing import Literal

from shardmerge.common import manifest as manifests
from shardmerge.common.errors import ShardmergeError, WriterDiedError
from shardmerge.common.manifest import Manifest
from shardmerge.common.places import MANIFEST, rank_name
from shardmerge.common.processes.attempts import is_complete

from ..fragments.attempts import clear_ended
from ..fragments.failed_ranks import record_failure
from .messages import Done, Failed, Freed
from .writer_process import WriterProcess


@dataclass(slots=True, eq=False)
class Dumping:
    """A rank on its way to the disk. The model may be changed or freed: all of its bytes have left it.

    Attributes:
        out: the dump.
        rank: the rank of this process.
        seconds_stalled: how long the call that made this kept its caller, without `seconds_preparing`.
        seconds_preparing: how long of that call memory and child process were made ready, which later dumps use again.
    """

    out: Path
    rank: int
    run_id: str
    on_error: Literal["raise", "record"]
    writer: WriterProcess | None
    seconds_stalled: float = 0.0
    seconds_preparing: float = 0.0
    _ended: Done | Failed | None = None
    _lock: RLock = field(default_factory=RLock, repr=False)

    def done(self) -> bool:
        """Whether nothing is written any more: the rank is complete or has failed, and `wait` returns at once."""
        return self._listen(0.0)

    def wait(self) -> Manifest | None:
        """Wait until the rank is complete.

        Returns:
            The manifest of this rank; None if the rank failed and `on_error` is "record".

        Raises:
            ShardmergeError, OSError: what went wrong, which is also recorded in rank-NNNNN.failed.json. WriterDiedError
                if the process that wrote was killed or ended.
        """
        if (error := self.settled()) is not None:
            if self.on_error == "record":
                return None
            raise error
        assert isinstance(self._ended, Done)
        return self._ended.manifest

    def settled(self) -> Exception | None:
        """Wait until nothing is written any more. Returns what went wrong."""
        self._listen(None)
        return self._ended.error if isinstance(self._ended, Failed) else None

    def failed(self, error: Exception) -> None:
        """Say that it has failed, which is recorded already."""
        self._ended = Failed(error)

    def _listen(self, seconds: float | None) -> bool:
        with self._lock:
            while self._ended is None:
                if self.writer is None:
                    return False
                try:
                    answer = self.writer.answer(seconds)
                except EOFError:
                    self._ended = self._orphaned(self.writer.end())
                    break
                except Exception as error:  # nor can anything that follows be read
                    self._ended = self._orphaned(
                        self.writer.end(), f"Its answer could not be read: {error!r}"
                    )
                    break
                if answer is None:
                    return False
                if not isinstance(answer, Freed):
                    self._ended = answer
            return True

    def _orphaned(self, status: int, *notes: str) -> Done | Failed:
        """Return how a rank ended whose writer has ended, perhaps just after it was complete or before it had begun.

        What hinders finding that out becomes a note of the error: that the writer died must not be hidden.
        """
        error = WriterDiedError(self.rank, str(self.out), status)
        for note in notes:
            error.add_note(note)
        try:
            with suppress(FileNotFoundError):  # it had not made the folder of the dump
                clear_ended(self.out, self.rank)
            if is_complete(self.out, self.rank):
                return Done(manifests.read(self.out / rank_name(self.rank) / MANIFEST))
        except (OSError, ShardmergeError) as hindrance:
            error.add_note(f"What it left could not be looked at: {hindrance}")
        record_failure(self.out, self.rank, self.run_id, error)
        return Failed(error)
