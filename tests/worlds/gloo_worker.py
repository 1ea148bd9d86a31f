"""What one process of the gloo pool does: wait for a task, be a rank, answer, wait again.

Importing this module loads torch and megatron-core, so a fork server that preloads it pays for them once.
Must not know how the pool is kept (`gloo`).
"""

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


def serve(connection: Connection, te_path: str | None) -> None:
    """Answer pickled tasks from `connection` until it closes; `te_path` installs the stub of `te_stub` first."""
    # A daemon may have no children, but the torch_dist writer starts some. The parent still sees a daemon.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    ready = _answer(Task(_prepare, (te_path,)))
    connection.send_bytes(_encode(ready))
    while not ready.failure:
        try:
            task = pickle.loads(connection.recv_bytes())
        except EOFError:
            return
        connection.send_bytes(_encode(_answer(task)))


def _prepare(te_path: str | None) -> None:
    if te_path is not None:
        from tests.worlds.te_stub import install

        install(te_path)
    from tests.worlds import fake  # loads megatron-core, after the stub
    from tests.worlds.cpu import prepare

    del fake
    prepare()


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
