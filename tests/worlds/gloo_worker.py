"""What one process of the gloo pool does: wait for a task, be a rank, answer, wait again.

A parent process loads torch and megatron-core and forks the ranks, so loading is paid for once. Must not know
how the pool is kept (`gloo`).
"""

import importlib
import multiprocessing
import os
import pickle
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import FileStore

from tests.worlds.topology import Topology


@dataclass(frozen=True, slots=True)
class Task:
    """One call on one rank; without a topology no process group is made and the function gets no rank."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    topology: Topology | None = None
    rank: int = 0
    store_path: str = ""
    timeout_s: float = 300.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What a rank returned, or the traceback of what it raised."""

    result: Any = None
    failure: str = ""


def raise_ranks(connections: list[Connection], te_path: str | None) -> None:
    """Load torch and megatron-core once, then become the parent of one rank process per connection.

    `te_path` installs the stub of `te_stub` first. If loading fails every connection gets the traceback.
    """
    os.setpgid(0, 0)  # the pool ends the whole group, also what a rank has started
    # A daemon may have no children, but this one has, and the torch_dist writer too. The pool still sees one.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    loaded = _answer(Task(_load, (te_path,)))
    if loaded.failure:
        for connection in connections:
            connection.send_bytes(_encode(loaded))
        return
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=_serve, args=(connections, place)) for place in range(len(connections))]
    for process in processes:
        process.start()
    for connection in connections:
        connection.close()  # so that the pool sees the end of a connection when its rank dies
    for process in processes:
        process.join()


def _load(te_path: str | None) -> None:
    if te_path is not None:
        from tests.worlds.te_stub import install

        install(te_path)
    importlib.import_module("tests.worlds.oracle")  # and with it megatron-core, after the stub
    importlib.import_module("modelopt.torch.export")  # each task would import it again
    from tests.worlds.cpu import prepare

    prepare()


def _serve(connections: list[Connection], place: int) -> None:
    """Say that this process is there, then let a fork of it answer each pickled task, until the connection closes.

    A fork for every task, because what a world leaves behind ends with it: the threads of gloo's groups stay after
    destroy_process_group where megatron-core still refers to one, 800 a process after a hundred worlds.
    """
    for other, connection in enumerate(connections):
        if other != place:
            connection.close()
    connection = connections[place]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    connection.send_bytes(_encode(Answer()))
    fork = multiprocessing.get_context("fork")
    while True:
        try:
            task = connection.recv_bytes()
        except EOFError:
            return
        answering = fork.Process(target=_reply, args=(connection, task))
        answering.start()
        answering.join()
        if answering.exitcode:
            return  # it died without an answer: the pool sees the connection end


def _reply(connection: Connection, task: bytes) -> None:
    connection.send_bytes(_encode(_answer(pickle.loads(task))))


def _encode(answer: Answer) -> bytes:
    """Pickle plainly: the connection's own pickler would pass tensors as shared memory of this process."""
    try:
        return pickle.dumps(answer)
    except Exception:
        return pickle.dumps(Answer(failure=traceback.format_exc()))


def _answer(task: Task) -> Answer:
    try:
        return Answer(_run(task))
    except BaseException:
        return Answer(failure=traceback.format_exc())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def _run(task: Task) -> Any:
    if task.topology is None:
        return task.function(*task.arguments)
    from tests.worlds.fake import join_model_parallel, leave_model_parallel

    world = task.topology.world_size
    store = FileStore(task.store_path, world)
    limit = timedelta(seconds=task.timeout_s)
    dist.init_process_group("gloo", store=store, rank=task.rank, world_size=world, timeout=limit)
    try:
        join_model_parallel(task.topology)
        return task.function(task.rank, *task.arguments)
    finally:
        leave_model_parallel()
