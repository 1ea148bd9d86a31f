"""Lets several processes of this machine take shares, and shows what all of them do as one line of progress.

They are forked, so that all have the plan without reading the checkpoint's description again. Must not know what a
share holds, nor how it is written.
"""

from __future__ import annotations

import mmap
import multiprocessing
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeAlias, TypeVar

from shardmerge.common.command.progress import Progress
from shardmerge.common.command.termination import TerminatedError

T = TypeVar("T")
Advance: TypeAlias = Callable[[int], None]  # called with a number of bytes that are done
COUNTER = struct.Struct("<q")
LOOK_EVERY_SECONDS = 0.2


def in_processes(work: Callable[[int, Advance], T], count: int, progress: Progress) -> list[T]:
    """Run a function in several processes, and wait for all of them.

    Args:
        work: Called in each process with its number, and with what it calls with numbers of bytes done.
        count: How many processes.
        progress: Shows the bytes that all have done.

    Returns:
        What the processes returned. One that was killed returned nothing.

    Raises:
        Exception: the first that a process raised, after all have ended.
    """
    context = multiprocessing.get_context("fork")
    with mmap.mmap(-1, count * COUNTER.size) as counters:
        pipes = [context.Pipe(duplex=False) for _ in range(count)]
        processes = [
            context.Process(target=_run, args=(work, number, counters, pipes[number][1]))
            for number in range(count)
        ]
        for process, (_, theirs) in zip(processes, pipes, strict=True):
            process.start()
            theirs.close()
        try:
            answers = _answers([ours for ours, _ in pipes], counters, progress)
        except BaseException:
            for process in processes:
                process.terminate()
            raise
        finally:
            for process in processes:
                process.join()
    for raised in (answer for answer in answers if isinstance(answer, Exception)):
        raise raised
    return answers


def _run(work: Callable[[int, Advance], T], number: int, counters: mmap.mmap, answer: Connection) -> None:
    """Be one process: do the work, and send what it returned or raised."""
    done = 0

    def advance(num_bytes: int) -> None:
        nonlocal done
        done += num_bytes
        COUNTER.pack_into(counters, number * COUNTER.size, done)

    with suppress(KeyboardInterrupt, TerminatedError):  # the parent tells
        try:
            answer.send(work(number, advance))
        except Exception as error:
            answer.send(error)


def _answers(connections: Sequence[Connection], counters: mmap.mmap, progress: Progress) -> list[Any]:
    """Return what the processes send, in the order in which they do, while showing their progress."""
    answers: list[Any] = []
    waiting = list(connections)
    while waiting:
        for ready in wait(waiting, LOOK_EVERY_SECONDS):
            assert isinstance(ready, Connection)
            with suppress(EOFError):  # it was killed
                answers.append(ready.recv())
            waiting.remove(ready)
        done = sum(COUNTER.unpack_from(counters, at * COUNTER.size)[0] for at in range(len(connections)))
        progress.advance(done - progress.done_bytes)
    progress.close()
    return answers
