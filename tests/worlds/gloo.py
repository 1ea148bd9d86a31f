"""A pool of long-lived processes that become the ranks of one gloo world after another.

Decides how processes start, are given work, are waited for and are ended. Must not know models.
"""

import multiprocessing
import os
import pickle
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self
from unittest import mock

from tests.worlds.gloo_worker import Answer, Task, serve
from tests.worlds.topology import Topology

PRELOADED = ["tests.worlds.gloo_worker", "tests.worlds.oracle"]
START_S = 180.0  # importing torch and megatron-core eight times on two cores takes half a minute
GRACE_S = 20.0  # how long the peers of a failed rank may take to fail too


class RankError(Exception):
    """A function raised on some ranks; the message holds each one's traceback."""

    def __init__(self, failures: dict[int, str]) -> None:
        self.failures = failures
        parts = [f"rank {rank} failed:\n{text}" for rank, text in sorted(failures.items())]
        super().__init__("\n".join(parts))


class RankTimeoutError(Exception):
    """Some ranks gave no answer in time, or died; `hung` and `failures` say which."""

    def __init__(self, hung: list[int], timeout_s: float, failures: dict[int, str]) -> None:
        self.hung = hung
        self.failures = failures
        text = "".join(
            f"\nrank {rank} failed before:\n{failure}" for rank, failure in sorted(failures.items())
        )
        super().__init__(f"ranks {hung} died or gave no answer (limit {timeout_s:.0f} s); pool killed{text}")


@dataclass(frozen=True, slots=True)
class _Worker:
    process: BaseProcess
    connection: Connection


class GlooRanks:
    """Up to `size` processes with torch and megatron-core loaded; use as a context manager.

    Processes start when first needed. With `te_path` (a folder that holds the pure Python Transformer Engine
    package) the stub of `te_stub` is installed in each, before megatron-core is imported.
    """

    def __init__(self, size: int = 8, *, te_path: str | None = None, timeout_s: float = 300.0) -> None:
        self.size = size
        self.te_path = te_path
        self.timeout_s = timeout_s
        self._workers: list[_Worker] = []
        self._folder = tempfile.TemporaryDirectory(prefix="gloo-ranks-")
        self._runs = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def run(self, function: Callable[..., Any], topology: Topology, *arguments: Any) -> list[Any]:
        """Call `function(rank, *arguments)` on every rank of a fresh world; return the results in rank order.

        `function` is importable by name from a module. Raises RankError, or RankTimeoutError (the pool is then
        started anew by the next call).
        """
        if topology.world_size > self.size:
            raise ValueError(f"{topology.name} needs {topology.world_size} ranks, the pool has {self.size}")
        self._runs += 1
        store = str(Path(self._folder.name) / f"store-{self._runs}")
        ranks = range(topology.world_size)
        return self._call(
            [Task(function, arguments, topology, rank, store, self.timeout_s) for rank in ranks]
        )

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call `function(*arguments)` in one process, without process group (fake worlds make their own)."""
        return self._call([Task(function, arguments)])[0]

    def close(self) -> None:
        """End all processes: by a closed connection, then by force."""
        for worker in self._workers:
            worker.connection.close()
        deadline = time.monotonic() + 5
        for worker in self._workers:
            worker.process.join(max(0.0, deadline - time.monotonic()))
        self._kill()
        self._folder.cleanup()

    def _call(self, tasks: list[Task]) -> list[Any]:
        self._start(len(tasks))
        for worker, task in zip(self._workers, tasks, strict=False):  # the pool may be larger than the world
            worker.connection.send_bytes(pickle.dumps(task))
        answers = self._collect(len(tasks))
        failures = {rank: answer.failure for rank, answer in answers.items() if answer.failure}
        if len(answers) < len(tasks):
            self._kill()
            raise RankTimeoutError(sorted(set(range(len(tasks))) - set(answers)), self.timeout_s, failures)
        if failures:
            raise RankError(failures)
        return [answers[rank].result for rank in range(len(tasks))]

    def _collect(self, count: int) -> dict[int, Answer]:
        """Gather answers until all are there, a process dies, or time is up."""
        answers: dict[int, Answer] = {}
        waiting = {self._workers[rank].connection: rank for rank in range(count)}
        deadline = time.monotonic() + self.timeout_s
        while waiting and (left := deadline - time.monotonic()) > 0:
            for ready in wait(list(waiting), left):
                assert isinstance(ready, Connection)
                answer = _receive(ready)
                rank = waiting.pop(ready)
                if answer is not None:
                    answers[rank] = answer
                if answer is None or answer.failure:
                    deadline = min(deadline, time.monotonic() + GRACE_S)
        return answers

    def _start(self, count: int) -> None:
        context = _context(self.te_path)
        new = range(len(self._workers), count)
        for _ in new:
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(theirs, self.te_path), daemon=True)
            # children would import this program's main script, and with it perhaps megatron before TE's stub
            with mock.patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):
                process.start()
            theirs.close()
            self._workers.append(_Worker(process, ours))
        for rank in new:
            self._await_start(rank)

    def _await_start(self, rank: int) -> None:
        connection = self._workers[rank].connection
        ready = _receive(connection) if connection.poll(START_S) else None
        if ready is None or ready.failure:
            self._kill()
            raise RankTimeoutError([rank], START_S, {} if ready is None else {rank: ready.failure})

    def _kill(self) -> None:
        for worker in self._workers:
            if worker.process.is_alive():
                worker.process.kill()
            worker.process.join()
            worker.connection.close()
        self._workers = []


def _context(te_path: str | None) -> ForkServerContext | SpawnContext:
    """A fork server loads torch and megatron once for all; with TE they must be loaded after its stub.

    The server is told the parent's import path through the environment: Python 3.11's ignores it otherwise,
    and then silently preloads nothing.
    """
    if te_path is not None:
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with mock.patch.dict(os.environ, {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}):
        forkserver.ensure_running()
    return context


def _receive(connection: Connection) -> Answer | None:
    """Return the answer that is ready, None if the process died instead."""
    try:
        answer = pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        return None
    assert isinstance(answer, Answer)
    return answer
