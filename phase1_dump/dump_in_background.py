"""The story of a dump beside training: refuse, describe, copy; a child process writes while the model goes on.

Must not know how a model is read (`sources/`), nor how the child writes (`background/`).
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import RLock
from typing import Literal

from torch import nn

from shardmerge.common.architectures import Architecture
from shardmerge.common.command.talk import say
from shardmerge.common.errors import BadInputError, PinnedMemoryError, StillDumpingError, WriterDiedError
from shardmerge.common.processes import garbage_collector

from .background.arriving import LEAST_BYTES
from .background.dumping import Dumping
from .background.messages import Abandon, Begin, Complete, Job, Memory
from .background.outgoing import NoMoreError, Outgoing, with_spots
from .background.shared_memory import SharedMemory
from .background.writer_process import WriterProcess
from .dump_model import STAGING_BYTES
from .fragments.at_once import streams_for
from .fragments.failed_ranks import forget_failure, record_failure
from .fragments.rank_directory import refuse_existing
from .fragments.write_rank import MAX_FRAGMENT_BYTES, plan_rank
from .generation import Generation, attempt_of
from .source import Holding
from .sources.host_memory.copying_out import copy_out
from .sources.host_memory.pinned import PinnedMemory
from .sources.live_model import LiveModel, Options, live_model
from .sources.modules import unwrap
from .sources.process_groups import world_of
from .sources.refusals import refuse_foreign, refuse_uninitialized

HUGE_PAGE = 2 << 20  # sizes of the shared memory are multiples of it
STREAMS = 1  # of the child: with two a training step takes 2 % longer (docs/inside/performance.md)


@dataclass(slots=True)
class Background:
    """What dumps of this process share: the child, the memory, and the dump that is being written."""

    writer: WriterProcess | None = None
    shared: SharedMemory | None = None
    pinned: PinnedMemory | None = None
    current: Dumping | None = None
    lock: RLock = field(default_factory=RLock)

    def prepare(self, host_bytes: int) -> float:
        """Have a child that runs, and so much memory. Returns the seconds that it took.

        Raises HostMemoryError or PinnedMemoryError, and has no memory then.
        """
        began = time.perf_counter()
        if self.shared is None or self.shared.num_bytes < host_bytes:
            self.release()
            self.shared, self.pinned = _taken(-(-max(1, host_bytes) // HUGE_PAGE) * HUGE_PAGE)
        if self.writer is not None and not self.writer.runs():
            self.end_writer()
        if self.writer is None:
            self.writer = WriterProcess.started()
            self.writer.send(Memory(), self.shared.file)
        return time.perf_counter() - began

    def finish(self) -> None:
        """Wait for the dump that is being written, and end the child: the interpreter ends."""
        with self.lock:
            if (dumping := self.current) is not None and (error := self.settled()) is not None:
                say(sys.stderr, f"rank {dumping.rank} was not dumped to {dumping.out}: {error}")
            self.end_writer()

    def settled(self) -> Exception | None:
        """Wait until the dump before is written, and let go of it. Returns what went wrong, as its own `wait` tells."""
        dumping = self.current
        if dumping is None:
            return None
        try:
            error = dumping.settled()
        except Exception as unforeseen:
            dumping.failed(error := unforeseen)
        self.current = None
        return error

    def end_writer(self) -> None:
        """End the child. Nothing may be written by it any more."""
        if self.writer is not None:
            self.writer.end()
            self.writer = None

    def release(self) -> None:
        """Give the shared memory back, and end the child, which maps it too."""
        self.end_writer()
        if self.pinned is not None:
            self.pinned.release()
        if self.shared is not None:
            self.shared.close()
        self.pinned = self.shared = None


def _taken(num_bytes: int) -> tuple[SharedMemory, PinnedMemory]:
    """Return new memory, pinned if there is a GPU. Raises HostMemoryError or PinnedMemoryError, and takes none then."""
    shared = SharedMemory.made(num_bytes)
    try:
        return shared, PinnedMemory.of(shared.map)
    except BaseException as error:
        shared.discard()
        if isinstance(error, RuntimeError):
            raise PinnedMemoryError(num_bytes, str(error)) from error
        raise


@cache
def background_of(process: int) -> Background:
    """Return what all dumps of this process share. One that was forked from it has its own."""
    background = Background()
    atexit.register(lambda: background.finish() if os.getpid() == process else None)
    return background


def prepare(host_bytes: int) -> None:
    """Start the process that writes and take the memory that `dump_async` copies to, so that no dump has to.

    Args:
        host_bytes: as many as the rank owns, for a dump that keeps training for the time of a copy. Pinning takes about
            half a second a GB.

    Raises:
        HostMemoryError: there is not so much memory; none was taken.
        PinnedMemoryError: CUDA refused to pin it; it was given back.
    """
    background = background_of(os.getpid())
    with background.lock:
        _let_finish(background, "wait", 0, Path())
        background.prepare(host_bytes)


def dump_async(
    model: nn.Module | Sequence[nn.Module],
    out: str | Path,
    *,
    hf_reference: str | Path,
    run_id: str,
    step: int,
    attempt: str | None = None,
    params_synced: bool = False,
    dtype_from_reference: bool = False,
    dequantize: bool = False,
    drop_mtp: bool = False,
    drop_vision: bool = False,
    experts: Literal["packed", "per-expert"] | None = None,
    architecture: str | Architecture | None = None,
    check_replicas: bool = False,
    max_fragment_bytes: int = MAX_FRAGMENT_BYTES,
    staging_bytes: int = STAGING_BYTES,
    host_bytes: int | None = None,
    if_busy: Literal["wait", "raise"] = "wait",
    on_error: Literal["raise", "record"] = "raise",
    quiet: bool = False,
) -> Dumping:
    """Copy what this rank owns of a live model, and let another process write it to `out/rank-NNNNN`.

    When the call returns, all bytes have left the model, which may be stepped, quantized or freed at once. Call it on
    every rank; no collective is entered. The copy is behind everything on the current CUDA stream. Call `wait()` of
    the result before the process ends; without it the end of the interpreter waits. A process that is killed takes the
    writer with it, and leaves nothing that looks complete.

    Args:
        model: a module, or the list of this rank's virtual pipeline chunks, wrapped (DDP, Float16Module) or not.
        out: directory of the dump, shared by all ranks.
        hf_reference: Hugging Face directory with the model's config.json; weights there, if any, give dtypes.
        run_id: name of the dump. It, `step` and `attempt` must be the same on all ranks.
        step: training step of the parameters.
        attempt: by default the launcher's job and restart.
        params_synced: the caller has gathered the parameters of a DDP with overlap_param_gather.
        dtype_from_reference: let the reference narrow tensors that are otherwise kept float32 (router biases).
        dequantize: write Transformer Engine's quantized parameters in the precision they stand for.
        drop_mtp: leave out multi-token prediction; the merge then takes it from the reference or drops it too.
        drop_vision: leave out a vision tower beside the language model though it was not frozen.
        experts: write routed experts as one tensor for all of a layer, or one by one; by default as the reference does.
        architecture: a table of one's own, or `package.module:TABLE`.
        check_replicas: also record checksums of what this rank holds and another writes; these bytes are copied too.
        max_fragment_bytes: size of a fragment file.
        staging_bytes: how much is computed at once of what is written otherwise than it lies in memory.
        host_bytes: host memory to copy to, by default all that is copied. With less the call returns when the rest has
            found a place, which takes as long as the disk does. It is at least 4 KiB, and stays with the process for
            later dumps.
        if_busy: what to do while an earlier dump of this process is still being written.
        on_error: "record" lets `wait` return None where "raise" raises; both write rank-NNNNN.failed.json.
        quiet: show no progress; otherwise the child of each node's first rank does.

    Returns:
        The dump that is being written.

    Raises:
        ShardmergeError: before anything is copied: as `dump`; StillDumpingError; HostMemoryError; PinnedMemoryError.
    """
    began = time.perf_counter()
    folder, chunks = Path(os.path.abspath(out)), [model] if isinstance(model, nn.Module) else list(model)
    refuse_foreign(chunks)
    refuse_uninitialized(chunks)
    world, background = world_of(unwrap(chunks[0])), background_of(os.getpid())
    with background.lock, garbage_collector.paused():
        _let_finish(background, if_busy, world.rank, folder)
        forget_failure(folder, world.rank)
        dumping = Dumping(folder, world.rank, run_id, on_error, None)
        try:
            refuse_existing(folder, world.rank)
            generation = Generation(run_id, step, attempt_of() if attempt is None else attempt)
            options = Options(
                params_synced=params_synced,
                dtype_from_reference=dtype_from_reference,
                dequantize=dequantize,
                drop_mtp=drop_mtp,
                drop_vision=drop_vision,
                experts=experts,
                architecture=architecture,
                staging_bytes=staging_bytes,
            )
            source = live_model(chunks, world, generation, Path(hf_reference), options)
            plan = plan_rank(source, max_fragment_bytes=max_fragment_bytes, check_replicas=check_replicas)
            plan, holdings, num_bytes = with_spots(plan)
            memory_bytes = _memory_bytes(num_bytes, host_bytes)
            dumping.seconds_preparing = background.prepare(memory_bytes)
            job = Job(world, generation, source.facts, plan, folder, streams_for(plan.fragments, STREAMS),
                      num_bytes, memory_bytes, quiet)  # fmt: skip
            _hand_over(background, job, source, holdings, dumping, began)
        except Exception as error:
            record_failure(folder, world.rank, run_id, error)
            if on_error == "raise":
                raise
            dumping.failed(error)
    return dumping


def _memory_bytes(num_bytes: int, host_bytes: int | None) -> int:
    """Return through how much memory so many bytes pass. Raises BadInputError for a limit below 1."""
    if host_bytes is None:
        return max(1, num_bytes)
    if host_bytes < 1:
        raise BadInputError(
            f"host_bytes is {host_bytes}", "Give a positive number of bytes, or leave it out."
        )
    return max(1, min(num_bytes, max(host_bytes, LEAST_BYTES)))


def _let_finish(background: Background, if_busy: Literal["wait", "raise"], rank: int, out: Path) -> None:
    """Wait until the dump before this one is written, however it ends: its own `wait` tells."""
    if background.current is None:
        return
    if if_busy == "raise" and not background.current.done():
        raise StillDumpingError(background.current.rank, str(background.current.out))
    background.settled()


def _hand_over(
    background: Background,
    job: Job,
    source: LiveModel,
    holdings: Sequence[Holding],
    dumping: Dumping,
    began: float,
) -> None:
    """Tell the child what will come, and copy it."""
    writer, pinned = background.writer, background.pinned
    assert writer is not None
    assert pinned is not None
    _begin(writer, job)
    dumping.writer, background.current = writer, dumping
    outgoing = Outgoing(writer, job.num_bytes, job.memory_bytes)
    num_written = sum(len(fragment.holdings) for fragment in job.plan.fragments)
    try:
        copy_out(holdings, num_written, pinned.tensor, outgoing, source.reader.buffers.num_bytes)
        dumping.seconds_stalled = time.perf_counter() - began - dumping.seconds_preparing
        writer.send(Complete({
            "seconds_stalled": round(dumping.seconds_stalled, 4),
            "seconds_preparing": round(dumping.seconds_preparing, 4),
        }))  # fmt: skip
    except NoMoreError as error:
        dumping.failed(error.error)
    except (EOFError, BrokenPipeError, ConnectionResetError) as error:
        raise dumping.settled() or error from error
    except BaseException:
        _abandon(writer, dumping)
        raise


def _begin(writer: WriterProcess, job: Job) -> None:
    """Tell the child of a job. If that fails the child is ended, which may have half of it: the next dump has another.

    Raises WriterDiedError if the child had ended before.
    """
    try:
        writer.send(Begin(job))
    except (BrokenPipeError, ConnectionResetError) as error:
        raise WriterDiedError(job.world.rank, str(job.out), writer.end()) from error
    except BaseException:
        writer.end()
        raise


def _abandon(writer: WriterProcess, dumping: Dumping) -> None:
    """Have the child remove what it has written: the caller records why."""
    with suppress(OSError):  # it has ended, too
        writer.send(Abandon())
    dumping.settled()
