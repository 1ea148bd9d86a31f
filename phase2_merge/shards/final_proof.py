"""Does an output hold exactly the planned shards? Asked once more before it gets its name, and when it is merged again.

Names, sizes and headers are compared with the plan. A shard whose bytes this process saw, or had written, must be the
same file since then. All others are read again, by as many processes as may write. Must not know who asks, nor what is
done about a shard that is wrong.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import xxhash

from shardmerge.common import durable, regular_files, safetensors_header
from shardmerge.common.command.progress import Progress
from shardmerge.common.dtypes import DTYPES
from shardmerge.common.errors import CorruptFileError, ShardsChangedError

from ..assembly.reread import RereadShard, reread
from ..assembly.workers import WrittenShard, each
from ..disk.hashing import READERS
from ..disk.stamp import Stamp, stamp_of
from ..output import receipts
from ..output.receipts import Receipt
from .adopted_bytes import verified
from .assembly_options import AssemblyOptions, running
from .plan import Adopted, Assembled, Plan, task


@dataclass(frozen=True, slots=True)
class Planned:
    """What the file of a planned shard must be: its size, and the size and checksum of everything before its data."""

    num_bytes: int
    header_bytes: int
    header_xxh3_128: str


@dataclass(frozen=True, slots=True)
class Seen:
    """A shard when its bytes were last known to be right.

    Attributes:
        num_bytes: Its size.
        xxh3_128: Of its header if it is adopted, else the digest of its receipt, which has checksums of all tensors.
        stamp: Of the file.
    """

    num_bytes: int
    xxh3_128: str
    stamp: Stamp


@dataclass(frozen=True, slots=True)
class Reread:
    """The names of shards that were read again, their bytes, and how long it took."""

    shards: tuple[str, ...]
    num_bytes: int
    seconds: float

    def __add__(self, other: Reread) -> Reread:
        seconds = round(self.seconds + other.seconds, 3)
        return Reread(self.shards + other.shards, self.num_bytes + other.num_bytes, seconds)


NOTHING_REREAD = Reread((), 0, 0.0)
UNFIT = "has no receipt that fits"


@dataclass(frozen=True, slots=True)
class Proven:
    """What shards turned out to be.

    Attributes:
        seen: Those that are as planned, by name. `prove` names none if anything is wrong.
        wrong: A sentence for each that is not, which begins with its name.
        reread: How much was read again for this.
    """

    seen: dict[str, Seen]
    wrong: tuple[str, ...]
    reread: Reread = NOTHING_REREAD


def seen_as_adopted(shard: Adopted, file: Stamp) -> Seen:
    """Return what is known of an adopted shard, whose file has this stamp."""
    return Seen(shard.fragment.file.num_bytes, shard.fragment.file.header_xxh3_128, file)


def seen_as_written(shard: WrittenShard) -> Seen:
    """Return what is known of a shard that a task wrote."""
    return Seen(shard.num_bytes, shard.receipt_digest, shard.stamp)


def prove(plan: Plan, folder: Path, seen: Mapping[str, Seen], options: AssemblyOptions) -> Proven:
    """Prove that OUT.partial holds exactly the planned shards.

    Args:
        plan: What is published.
        folder: OUT.partial, locked by the caller.
        seen: Shards whose bytes are known to have been right, by name.
        options: If it asks for checksums, all other shards are read.

    Returns:
        What each is, or what is wrong with it.

    Raises:
        CorruptFileError: An adopted shard does not have its checksums; several such as ProblemsFoundError.
        WorkerDiedError, OSError: Reading fails.
    """
    unread = look(plan, plan.shards, folder, checked=options.check)
    names_there = {name for name in os.listdir(folder) if name.endswith(".safetensors")}
    planned_names = {shard.name for shard in plan.shards}
    strange = [f"{name} is there, but not planned" for name in sorted(names_there - planned_names)]
    if wrong := (*unread.wrong, *strange):
        return Proven({}, wrong)  # the bytes of the others were not read, so nothing is known of them
    if not options.check:
        return unread
    doubtful = [shard for shard in plan.shards if seen.get(shard.name) != unread.seen[shard.name]]
    return read_again(plan, doubtful, folder, unread, options)


def finished(plan: Plan, shards: Sequence[Assembled], folder: Path, options: AssemblyOptions) -> Proven:
    """Find the shards that an earlier attempt finished.

    Args:
        plan: What is published.
        shards: Those of its shards that are assembled here.
        folder: OUT.partial, locked by the caller.
        options: If it asks for checksums, the shards are read.

    Returns:
        What is known of each. Those that are wrong are to be written.

    Raises:
        WorkerDiedError, OSError: Reading fails.
    """
    unread = look(plan, shards, folder, checked=options.check)
    if not options.check:
        return unread
    to_read = [shard for shard in shards if shard.name in unread.seen]
    return read_again(plan, to_read, folder, unread, options)


def require(plan: Plan, out: Path) -> None:
    """Raise ShardsChangedError unless a published output holds exactly the planned shards. Reads headers only."""
    options = AssemblyOptions(workers=1, check=False)
    if wrong := prove(plan, out, {}, options).wrong:
        raise ShardsChangedError(str(out), wrong, published=True)


def look(plan: Plan, shards: Sequence[Adopted | Assembled], folder: Path, *, checked: bool) -> Proven:
    """Compare sizes, headers and receipts of shards with the plan. Reads no tensor.

    Args:
        plan: What is published.
        shards: Which of its shards.
        folder: Where they lie.
        checked: Whether a receipt must say that all pieces were compared with their checksums.

    Returns:
        What each is, or what is wrong with it.

    Raises:
        OSError: Reading fails.
    """
    with ThreadPoolExecutor(READERS) as threads:
        results = threads.map(lambda shard: _look(plan, shard, folder, checked=checked), shards)
        by_name = dict(zip((shard.name for shard in shards), results, strict=True))
    return Proven(
        seen={name: result for name, result in by_name.items() if isinstance(result, Seen)},
        wrong=tuple(f"{name} {result}" for name, result in by_name.items() if isinstance(result, str)),
    )


def read_again(
    plan: Plan,
    shards: Sequence[Adopted | Assembled],
    folder: Path,
    unread: Proven,
    options: AssemblyOptions,
) -> Proven:
    """Read shards whole, and compare them with the manifests and their receipts.

    Args:
        plan: What is published.
        shards: Which of its shards.
        folder: Where they lie.
        unread: What `look` said of these, and perhaps of others.
        options: Who reads.

    Returns:
        What is known now of these and of the others.

    Raises:
        CorruptFileError: An adopted shard does not have its checksums; several such as ProblemsFoundError.
        WorkerDiedError, OSError: Reading fails.
    """
    if not shards:
        return unread
    began, num_bytes = time.monotonic(), sum(unread.seen[shard.name].num_bytes for shard in shards)
    adopted = [shard for shard in shards if isinstance(shard, Adopted)]
    stamps = verified(plan, adopted, folder, (), options.talk) if adopted else {}
    seen = unread.seen | {shard.name: seen_as_adopted(shard, stamps[shard.name]) for shard in adopted}
    wrong = list(unread.wrong)
    assembled = [shard for shard in shards if isinstance(shard, Assembled)]
    for shard in _reread(plan, assembled, folder, options):
        receipt_digest = receipts.digest(shard.receipt) if shard.receipt else ""
        if shard.stamp and receipt_digest == seen[shard.name].xxh3_128:
            seen[shard.name] = Seen(shard.num_bytes, receipt_digest, shard.stamp)
        else:
            del seen[shard.name]
            wrong.append(f"{shard.name} is not what its receipt says{shard.reason and f': {shard.reason}'}")
    took = Reread(tuple(shard.name for shard in shards), num_bytes, round(time.monotonic() - began, 3))
    return Proven(seen, tuple(wrong), took)


def _reread(
    plan: Plan, shards: Sequence[Assembled], folder: Path, options: AssemblyOptions
) -> Iterator[RereadShard]:
    """Read assembled shards in the processes that may also write. Yields what each is."""
    if not shards:
        return
    progress = Progress("reading again", sum(shard.num_bytes for shard in shards), options.talk)
    tasks = (task(plan, shard, check=True, plan_digest=plan.digest) for shard in shards)
    with running(options, len(shards)) as executor:
        for shard in each(reread, tasks, folder, executor):
            yield shard
            progress.advance(shard.num_bytes)
    progress.close()


def planned(plan: Plan, shard: Adopted | Assembled) -> Planned:
    """Return what the file of a shard must be."""
    if isinstance(shard, Adopted):
        file = shard.fragment.file
        return Planned(file.num_bytes, file.header_bytes, file.header_xxh3_128)
    tensors = (plan.expected[tensor] for tensor in shard.tensors.tolist())
    dtypes = (DTYPES[plan.ledger.rows.dtype[plan.rows_of(tensor)[0]]] for tensor in shard.tensors.tolist())
    described = ((tensor.name, dtype, tensor.shape) for tensor, dtype in zip(tensors, dtypes, strict=True))
    head, header = safetensors_header.build(described)
    return Planned(header.file_bytes, len(head), xxhash.xxh3_128_hexdigest(head))


def _look(plan: Plan, shard: Adopted | Assembled, folder: Path, *, checked: bool) -> Seen | str:
    """Compare a file and its receipt with the plan. Returns what it is, or what is wrong with it."""
    want = planned(plan, shard)
    try:
        file, head = _first_bytes(folder / shard.name, folder, want.header_bytes)
    except FileNotFoundError:
        return "is missing"
    except CorruptFileError as error:
        return f"cannot be a shard: {error.reason}"
    if file.num_bytes != want.num_bytes:
        return f"has {file.num_bytes:,} bytes instead of {want.num_bytes:,}"
    if xxhash.xxh3_128_hexdigest(head) != want.header_xxh3_128:
        return "has another header than was planned"
    if isinstance(shard, Adopted):
        return seen_as_adopted(shard, file)
    receipt = _receipt(folder, shard.name)
    return (
        Seen(file.num_bytes, receipts.digest(receipt), file)
        if _fits(receipt, plan, want, checked=checked)
        else UNFIT
    )


def _first_bytes(path: Path, folder: Path, count: int) -> tuple[Stamp, bytes]:
    file = regular_files.open_for_reading(path, folder)
    try:
        with durable.naming(path):
            return stamp_of(file, path), regular_files.read_at(file, count, 0)
    finally:
        os.close(file)


def _fits(receipt: Receipt | None, plan: Plan, want: Planned, *, checked: bool) -> TypeGuard[Receipt]:
    """Whether a receipt is of the planned shard, and of a verified one if `checked` asks for that."""
    if receipt is None or (checked and not receipt.checked):
        return False
    recorded = (receipt.plan_digest, receipt.num_bytes, receipt.header_xxh3_128)
    return recorded == (plan.digest, want.num_bytes, want.header_xxh3_128)


def _receipt(folder: Path, name: str) -> Receipt | None:
    """Return the receipt of a shard, None if it has none that is whole."""
    try:
        return receipts.read(folder, name)
    except CorruptFileError:
        return None
