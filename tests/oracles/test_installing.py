"""Megatron-Bridge is installed whole or not at all: the next `make test-oracles` would take half of it for all."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# pip, as far as make calls it: the folder after --target gets a package, and then the network may be gone
PIP = """#!/bin/bash
while [ "$1" != --target ]; do shift; done
mkdir -p "$2/megatron"
test ! -e "$(dirname "$0")/offline" && touch "$2/megatron/bridge"
"""


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_an_interrupted_installation_is_begun_anew(tmp_path: Path) -> None:
    python, bridge = tmp_path / "peers" / "bin" / "python", tmp_path / "build" / "bridge"
    python.parent.mkdir(parents=True)
    python.write_text(PIP)
    python.chmod(0o755)

    def install() -> int:
        names = [f"PEERS={tmp_path / 'peers'}", f"BRIDGE={bridge}", f"{bridge}/.installed"]
        return subprocess.run(["make", "-s", "-C", ROOT, *names], capture_output=True, check=False).returncode

    (python.parent / "offline").touch()
    assert install() != 0
    assert not bridge.exists()
    (python.parent / "offline").unlink()
    assert install() == 0
    assert (bridge / "megatron" / "bridge").exists()
    assert sorted(path.name for path in bridge.parent.iterdir()) == ["bridge"]
    installed = (bridge / ".installed").stat().st_mtime_ns
    assert install() == 0
    assert (bridge / ".installed").stat().st_mtime_ns == installed
