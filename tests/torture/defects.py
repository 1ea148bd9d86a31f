"""Defects that this project had, to be put back one at a time: the torture must find each.

A table of patches to the modules under torture; must not know how it is found.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from shardmerge.common import durable, places
from shardmerge.common.processes.owner import State
from shardmerge.phase2_merge.commands import merge
from shardmerge.phase2_merge.output import journal, lock, publish
from shardmerge.phase2_merge.proof.checksums import verify_bytes
from shardmerge.phase2_merge.shards import adopt, adopted_bytes, resume, run


def _adopted_shards_are_never_synced() -> None:
    """Shards of 0 bytes after a loss of power, where the dump was copied by `cp`."""
    _replace(adopted_bytes, "sync", lambda paths: None)


def _verified_before_it_is_linked() -> None:
    """A fragment that is replaced between its checksum and its link is published."""

    def put(plan: Any, shards: Any, folder: Path, *, check: bool, talk: Any) -> Any:
        if check:
            verify_bytes(plan.ledger, [shard.fragment for shard in shards], talk)
        adoption = adopt.adopt(shards, folder)
        adopted_bytes.sync([folder / shard.name for shard in shards])
        return adoption, adopted_bytes.stamps_of(shards, folder)

    _replace(run, "put", put)


def _a_failed_merge_removes_everything() -> None:
    """A full disk deletes finished shards."""
    building = publish.building

    @contextlib.contextmanager
    def removing(out: Path, *given: Any, **more: Any) -> Iterator[Any]:
        with building(out, *given, **more) as held:
            try:
                yield held
            except BaseException:
                shutil.rmtree(places.partial(out))
                raise

    _replace(merge, "building", removing)


def _finalize_forgets_the_parts_too_early() -> None:
    """A finalize that is killed cannot be repeated."""
    clear = resume.clear

    def forgetting(held: Any, plan: Any, *, keep_parts: bool = False) -> None:
        clear(held, plan, keep_parts=False)

    _replace(resume, "clear", forgetting)


def _metadata_takes_no_lock() -> None:
    """Two at once: each is told that it worked, and the output is neither's."""

    @contextlib.contextmanager
    def rewriting(out: Path, me: Any, talk: Any, prepare: Any, *, break_lock: bool = False) -> Iterator[Any]:
        prepare()
        unlocked: Any = _NotHeld(out)
        journal._finish(unlocked)
        yield unlocked

    _replace(journal, "rewriting", rewriting)


class _NotHeld:
    """A lock that is not held."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.ended = folder, ()

    def confirm(self) -> None:
        pass

    def forget_ended(self) -> None:
        pass


def _owners_that_have_ended_block() -> None:
    """Where locks are not supported, or a lock was half written, what a killed command left blocks for ever."""
    _replace(lock, "_state", lambda other, me, *, flock_works: State.RUNS)


def _renamed_before_it_is_synced() -> None:
    """A file gets its name before its bytes are on disk."""

    def write_file(path: Path, data: bytes) -> None:
        temporary = places.temporary(path)
        temporary.write_bytes(data)
        temporary.rename(path)

    _replace(durable, "write_file", write_file)


def _replace(module: Any, name: str, new: Callable[..., Any]) -> None:
    """Put something into a module under a name that is there. Raises AttributeError if it is not."""
    getattr(module, name)
    setattr(module, name, new)


DEFECTS = {
    "adopted-not-synced": _adopted_shards_are_never_synced,
    "verified-before-linked": _verified_before_it_is_linked,
    "failed-merge-removes": _a_failed_merge_removes_everything,
    "finalize-forgets-parts": _finalize_forgets_the_parts_too_early,
    "metadata-without-lock": _metadata_takes_no_lock,
    "ended-owners-block": _owners_that_have_ended_block,
    "renamed-before-synced": _renamed_before_it_is_synced,
}
