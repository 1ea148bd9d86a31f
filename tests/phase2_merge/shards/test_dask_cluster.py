"""Executors that are not ours: threads, and a real dask cluster of two worker processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import distributed
import pytest

from shardmerge.common.errors import BadInputError, CorruptFileError, WorkerDiedError
from shardmerge.phase2_merge import merge
from shardmerge.phase2_merge.shards.dask_cluster import cluster
from tests.dumps.dumps import Topology, load, tree
from tests.dumps.worlds import MakeWorld, World

pytestmark = pytest.mark.xdist_group("dask")  # one cluster is enough
COMMAND = [
    sys.executable,
    "-W",
    "ignore",
    "-c",
    "from shardmerge.common.command.group import main; main()",
    "merge",
]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A scheduler with two worker processes on this host."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as local:
        yield local.scheduler_address


def given(one: World) -> list[str]:
    return [str(one.dump), str(one.out), "--hf-reference", str(one.reference), "--max-shard-size", "500B"]


def in_one_process(one: World) -> dict[str, bytes]:
    out = one.folder / "here"
    merge([one.dump], out, hf_reference=one.reference, workers=1, max_shard_bytes=500)
    return tree(out)


class Counting(ThreadPoolExecutor):
    """Somebody else's executor."""

    tasks = 0

    def submit(self, fn: Any, /, *args: Any, **kwargs: Any) -> Future[Any]:
        self.tasks += 1
        return super().submit(fn, *args, **kwargs)


def test_an_injected_executor_gets_every_shard_and_is_left_running(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    with Counting(3) as executor:
        found = one.merge(executor=executor, max_shard_bytes=500)
        assert executor.tasks == found.num_shards - found.adopted_shards > 3
        assert executor.submit(os.getpid).result() == os.getpid()
    assert tree(one.out) == in_one_process(one)


def test_a_dask_cluster_writes_the_same_bytes(world: MakeWorld, address: str) -> None:
    one = world(Topology(tp=2)).write()
    subprocess.run([*COMMAND, *given(one), "--scheduler", address], check=True, capture_output=True)
    assert load(one.out) == one.model.tensors
    assert tree(one.out) == in_one_process(one)


def test_other_processes_than_this_one_wrote_them(world: MakeWorld, address: str) -> None:
    with cluster(address) as executor:
        assert isinstance(executor, Executor)
        assert executor.submit(os.getpid).result() != os.getpid()


def test_an_error_of_a_task_comes_back_as_itself(world: MakeWorld, address: str) -> None:
    one = world(Topology(tp=2)).write()
    path = one.rank(1) / "split-00001.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with cluster(address) as executor, pytest.raises(CorruptFileError) as found:
        one.merge(executor=executor, max_shard_bytes=500)
    assert (found.value.path, found.value.rank) == (str(path), 1)
    assert not one.out.exists()


def test_a_task_that_kills_its_workers_is_told(address: str) -> None:
    with pytest.raises(WorkerDiedError, match="kill"), cluster(address) as executor:
        executor.submit(_suicide).result()


def _suicide() -> None:
    time.sleep(0.1)
    os.kill(os.getpid(), signal.SIGKILL)


def test_nobody_at_the_address_is_told(world: MakeWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shardmerge.phase2_merge.shards.dask_cluster.CONNECT_SECONDS", 0.5)
    with (
        pytest.raises(BadInputError, match=r"no dask scheduler answers at tcp://127.0.0.1:9"),
        cluster("tcp://127.0.0.1:9"),
    ):
        raise AssertionError("it answered")


def test_scheduler_and_workers_exclude_each_other(world: MakeWorld, tmp_path: Path) -> None:
    one = world().write()
    command = [*COMMAND, *given(one), "--scheduler", "tcp://127.0.0.1:9", "--workers", "2"]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (done.returncode, "The cluster decides" in done.stderr) == (2, True)
