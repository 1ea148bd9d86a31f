"""Refuses to go on with a dump of another checkpoint, or of one that changed while it was read.

A share says of which attempt it is: the digest of everything that decides what is in it, files' times too. Must not
know how that is computed.
"""

from __future__ import annotations

from pathlib import Path

from shardmerge.common import manifest, places
from shardmerge.common.errors import ChangedCheckpointError, OutputExistsError

from ..fragments.failed_ranks import recorded_error


def require_same(out: Path, run_id: str, attempt: str, num_shares: int) -> None:
    """Raise OutputExistsError if shares in a dump are of another one, or if it saw its checkpoint change.

    Nobody who comes later can see that change if the files were given their old times. Where no share is complete,
    nothing was read before it.

    Args:
        out: The dump, which may not be there yet.
        run_id: Its name.
        attempt: Digest of what decides what is in its shares.
        num_shares: How many it has.

    Raises:
        OutputExistsError: see above.
        CorruptFileError: a manifest is damaged.
        OSError: a manifest cannot be read.
    """
    complete = sorted(out.glob(places.MANIFESTS))
    for path in complete:
        held, name = manifest.read(path), path.parent.name
        if held.run_id != run_id:
            raise OutputExistsError(str(out), f"{name} there is of run {held.run_id}")
        if (held.attempt, held.world_size) != (attempt, num_shares):
            raise OutputExistsError(
                str(out),
                f"{name} there is of another checkpoint, or of this one before files of it were written again, or of "
                "another reference or other options",
            )
    for failed in (places.rank_failed(out, share) for share in range(num_shares if complete else 0)):
        if recorded_error(failed, out) == ChangedCheckpointError.__name__:
            raise OutputExistsError(
                str(out), f"{failed.name} says that the checkpoint changed while it was read"
            )
