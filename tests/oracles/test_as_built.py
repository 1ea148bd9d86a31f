"""A model as Megatron-Bridge or mcore-bridge built and wrapped it goes into `dump`: its bytes are those they export."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from shardmerge.phase2_merge import merge
from tests.demo.compare import differing
from tests.oracles.table import BRIDGE, MCORE_BRIDGE

pytestmark = pytest.mark.peers

ROOT = Path(__file__).resolve().parents[2]
BUILDS = {ROOT / "build" / "bridge": "megatron/bridge", ROOT / "build" / "mcore-bridge": "mcore_bridge"}


@pytest.mark.skipif(
    not all((build / package).exists() for build, package in BUILDS.items()),
    reason="make test-oracles installs both",
)
@pytest.mark.parametrize("program", [BRIDGE, MCORE_BRIDGE])
def test_a_model_goes_into_dump_as_it_was_built(program: str, tmp_path: Path) -> None:
    paths = [str(ROOT / ".ns"), str(ROOT), *map(str, BUILDS)]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.oracles.as_built", program, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    wrappers = done.stdout.splitlines()[-1]
    assert wrappers.startswith("DistributedDataParallel Float16Module ")
    merge([tmp_path / "dump"], tmp_path / "out", hf_reference=tmp_path / "hf", workers=1)
    assert differing(tmp_path / "exported", tmp_path / "out") == []
