"""A pool of long-lived processes that become the ranks of one gloo world after another.

Decides how processes start, are given work, are waited for and are ended. Must not know models.
"""

import multiprocessing
import os
import pickle
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, Self
from unittest import mock

from tests.worlds.gloo_worker import Answer, Task, raise_ranks
from tests.worlds.topology import Topology

SPAWN = multiprocessing.get_context("spawn")  # the ranks must not inherit what pytest has loaded
START_S = 180.0  # importing torch and megatron-core takes five seconds on an idle machine
EXIT_S = 5.0
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


class GlooRanks:
    """Up to `size` processes with torch and megatron-core loaded; use as a context manager.

    Processes start at the first call. With `te_path` (a folder that holds the pure Python Transformer Engine
    package) the stub of `te_stub` is installed in each, before megatron-core is imported.
    """

    def __init__(self, size: int = 8, *, te_path: str | None = None, timeout_s: float = 300.0) -> None:
        self.size = size
        self.te_path = te_path
        self.timeout_s = timeout_s
        self._parent: SpawnProcess | None = None
        self._connections: list[Connection] = []
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
        for connection in self._connections:
            connection.close()
        if self._parent is not None:
            self._parent.join(EXIT_S)
        self._kill()
        self._folder.cleanup()

    def _call(self, tasks: list[Task]) -> list[Any]:
        if self._parent is None:
            self._start()
        for connection, task in zip(self._connections, tasks, strict=False):  # the world may be smaller
            connection.send_bytes(pickle.dumps(task))
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
        waiting = {self._connections[rank]: rank for rank in range(count)}
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

    def _start(self) -> None:
        """Spawn the process that loads everything, and let it fork the ranks."""
        pipes = [SPAWN.Pipe() for _ in range(self.size)]
        self._connections = [ours for ours, _ in pipes]
        theirs = [their for _, their in pipes]
        self._parent = SPAWN.Process(target=raise_ranks, args=(theirs, self.te_path), daemon=True)
        # the child would import this program's main script, and with it perhaps megatron before TE's stub
        with mock.patch.dict(sys.modules, {"__main__": ModuleType("__main__")}):
            self._parent.start()
        for connection in theirs:
            connection.close()
        self._await_ranks()

    def _await_ranks(self) -> None:
        for rank, connection in enumerate(self._connections):
            ready = _receive(connection) if connection.poll(START_S) else None
            if ready is None or ready.failure:
                self._kill()
                raise RankTimeoutError([rank], START_S, {} if ready is None else {rank: ready.failure})

    def _kill(self) -> None:
        """End every process of the pool by force, unless all have ended; the next call starts anew."""
        for connection in self._connections:
            connection.close()
        self._connections = []
        if self._parent is not None and self._parent.exitcode != 0 and self._parent.pid is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._parent.pid, signal.SIGKILL)
            self._parent.kill()  # should it not have made its group yet
            self._parent.join()
        self._parent = None


def _receive(connection: Connection) -> Answer | None:
    """Return the answer that is ready, None if the process died instead."""
    try:
        answer = pickle.loads(connection.recv_bytes())
    except (EOFError, ConnectionResetError):
        return None
    assert isinstance(answer, Answer)
    return answer
