"""One real rank on the device, a reference without weights, and how several ranks are started."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeAlias

import pytest

from tests.gpu.test_cuda_dump import CONFIG
from tests.worlds.topology import Topology

ROOT = Path(__file__).parents[2]
LIMIT_S = 300
Facts: TypeAlias = dict[str, Any]
Launch: TypeAlias = Callable[..., list[Facts]]


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A world of one real rank."""
    import torch
    import torch.distributed as dist
    from megatron.core import parallel_state
    from megatron.core.tensor_parallel.random import model_parallel_cuda_manual_seed

    torch.cuda.set_device(0)
    dist.init_process_group(
        "nccl", init_method=f"file://{tmp_path_factory.mktemp('store')}/s", rank=0, world_size=1
    )
    parallel_state.initialize_model_parallel()
    model_parallel_cuda_manual_seed(7)
    yield
    parallel_state.destroy_model_parallel()
    dist.destroy_process_group()


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A reference without weights."""
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(CONFIG))
    return tmp_path / "hf"


def started(command: list[str], **environment: str) -> str:
    """Run Python to its end. Returns its stdout; a failure shows its stderr."""
    path = os.pathsep.join(filter(None, [str(ROOT), *sys.path]))
    found = subprocess.run(
        [sys.executable, "-W", "ignore", *command], cwd=ROOT, env=os.environ | {"PYTHONPATH": path} | environment,
        capture_output=True, text=True, timeout=LIMIT_S, check=False,
    )  # fmt: skip
    assert found.returncode == 0, found.stdout[-2000:] + found.stderr[-12000:]
    return found.stdout


@pytest.fixture(scope="session")
def launch() -> Launch:
    """`launch(job, folder, topology, *more)`: run a job of `jobs` on real ranks; what each rank saw, in their order.

    With `sharing`, several ranks use one GPU where there are fewer than ranks.
    """

    def launched(
        job: str, folder: Path, topology: Topology, *more: str, sharing: bool = False
    ) -> list[Facts]:
        import torch

        if torch.cuda.is_available() and not sharing and torch.cuda.device_count() < topology.world_size:
            pytest.skip(f"needs {topology.world_size} GPUs")
        sizes = {name: size for name, size in asdict(topology).items() if size != getattr(Topology(), name)}
        ranks = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={topology.world_size}"]
        text = started(
            [*ranks, "-m", "tests.gpu.jobs", job, str(folder), json.dumps(sizes), *more],
            TORCH_NCCL_TRACE_BUFFER_SIZE="2000", TORCH_FR_BUFFER_SIZE="2000", CUDA_DEVICE_MAX_CONNECTIONS="1",
        )  # fmt: skip
        lines = [line.split("SEEN ", 1)[1] for line in text.splitlines() if "SEEN " in line]
        facts = sorted(map(json.loads, lines), key=lambda one: int(one["rank"]))
        assert [one["rank"] for one in facts] == list(range(topology.world_size))
        return facts

    return launched
