"""Shards as tasks of a dask cluster: the executor behind `merge --scheduler`.

Its workers need this package installed, and see the dump and the output under the same paths. The only module that
knows dask, which is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager

from shardmerge.common.errors import BadInputError, WorkerDiedError

CONNECT_SECONDS = 30


@contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """Open an executor on the cluster of this scheduler. The cluster goes on when the block ends.

    Raises BadInputError (dask is not installed, nobody answers), WorkerDiedError (a task killed several workers).
    """
    try:
        from distributed import Client, KilledWorker
    except ModuleNotFoundError as error:
        raise BadInputError(
            f"--scheduler needs {error.name}, which is not installed", "pip install 'shardmerge[dask]'."
        ) from None
    try:
        client = Client(address, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise BadInputError(
            f"no dask scheduler answers at {address}: {error}", "Give its address, as tcp://node7:8786."
        ) from None
    with client:
        try:
            yield client.get_executor()  # type: ignore[no-untyped-call]
        except KilledWorker as error:
            raise WorkerDiedError((str(error.task),)) from error
