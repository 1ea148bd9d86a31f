"""The child process: writes one rank after another as its parent tells, and ends as soon as the parent has ended.

It imports no torch. Signals that are sent to a whole job are left to the parent.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from queue import SimpleQueue

from shardmerge.common.manifest import Manifest

from ..fragments.failed_ranks import record_failure
from ..fragments.write_rank import write_planned
from .arriving import AbandonedError, Arrived, Arriving
from .messages import Abandon, Begin, Channel, Complete, Done, Failed, Filled, Freed, Job, Memory
from .shared_memory import SharedMemory
from .writer_process import LEFT_TO_THE_PARENT

LOOK_EVERY_SECONDS = 0.5
NICE = 10  # training goes first
FREED_SHARE = 8  # of the memory: so much is freed before the parent is told


@dataclass(slots=True)
class Child:
    """What the listening thread and the writing one share."""

    channel: Channel
    parent: int
    jobs: SimpleQueue[tuple[Job, Arrived, SharedMemory]] = field(default_factory=SimpleQueue)

    def listen(self) -> None:
        """Take every message of the parent, for ever. Ends the process, at once, when the parent is gone.

        It also ends the process, with a traceback and exit code 1, if a message cannot be taken: nobody else would
        notice then what the parent says, nor that it has ended.
        """
        try:
            self._listen()
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)

    def _listen(self) -> None:
        """Take messages. A forked process may keep the connection open after the parent: hence the look at its id."""
        memory: SharedMemory | None = None
        arrived = Arrived()
        while True:
            while not self.channel.is_waiting(LOOK_EVERY_SECONDS):
                if os.getppid() != self.parent:
                    os._exit(1)
            try:
                message, file = self.channel.receive()
            except EOFError:
                os._exit(0)
            match message:
                case Memory():
                    if memory is not None:
                        memory.close()
                    assert file is not None
                    memory = SharedMemory.received(file)
                case Begin(job):
                    arrived = Arrived()
                    assert memory is not None
                    self.jobs.put((job, arrived, memory))
                case _:
                    _take(arrived, message)

    def work(self) -> None:
        """Write what comes, for ever."""
        while True:
            job, arrived, memory = self.jobs.get()
            try:
                manifest = self._written(job, arrived, memory)
            except AbandonedError as error:
                self.channel.send(Failed(error))
            except Exception as error:
                record_failure(job.out, job.world.rank, job.generation.run_id, error)
                self.channel.send(Failed(_portable(error)))
            else:
                self.channel.send(Done(manifest))

    def _written(self, job: Job, arrived: Arrived, memory: SharedMemory) -> Manifest:
        free = self._freeing(job.memory_bytes) if job.num_bytes > job.memory_bytes else None
        with memoryview(memory.map) as whole, whole[: job.memory_bytes] as view:
            source = Arriving(job, view, arrived, free)
            return write_planned(
                source, job.plan, job.out, job.streams if free is None else 1, quiet=job.quiet
            )

    def _freeing(self, memory_bytes: int) -> Callable[[int], None]:
        told = 0

        def free(end: int) -> None:
            nonlocal told
            if end - told >= memory_bytes // FREED_SHARE:
                told = end
                self.channel.send(Freed(end))

        return free


def _take(arrived: Arrived, message: Filled | Complete | Abandon) -> None:
    with arrived.changed:
        match message:
            case Filled(end, seen):
                arrived.end = end
                arrived.seen += seen
            case Complete(statistics):
                arrived.statistics = statistics
            case Abandon():
                arrived.is_abandoned = True
        arrived.changed.notify_all()


def _portable(error: Exception) -> Exception:
    """Return an error that survives being pickled, with its notes."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")
    return error


def main(file: int, parent: int) -> None:
    """Be the child of `parent`, which holds the other end of the socket `file`."""
    for one in LEFT_TO_THE_PARENT:
        signal.signal(one, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, LEFT_TO_THE_PARENT)
    os.nice(NICE)
    child = Child(Channel(socket.socket(fileno=file)), parent)
    threading.Thread(target=child.listen, daemon=True).start()
    try:
        child.work()
    except OSError as error:  # the parent has ended: the listener will see it too
        print(f"the writer of process {parent} ends: {error}", file=sys.stderr)
        os._exit(1)
