"""`python -m tests.dumps.saved.record`: saves the small checkpoint anew, with the megatron-core that is installed.

Their files say where they were saved: that is a path relative to where this is run.
"""

from __future__ import annotations

import os
import pickle
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

from tests.phase1_dump.checkpoint.quantized import Case, save_quantized
from tests.worlds.checkpoints import write_config
from tests.worlds.families import Experts, Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.saving import Spelling, save_filled
from tests.worlds.topology import SINGLE, Topology

from . import AS_FILE, CONFIG, FILES, ITERATION, METADATA, STATES, VERSIONS

FAMILY = Family(
    "saved",
    "Qwen3MoeForCausalLM",
    qk_norm=True,
    layers=1,
    hidden=8,
    heads=4,
    groups=2,
    head_channels=6,
    vocab=21,
    experts=Experts(num_experts=3, top_k=2, width=10),
)
TOPOLOGY = Topology(tp=2)
CASES = (
    Case(FAMILY, "FP8", SINGLE, off=("*self_attention*",), kv_cache=True),
    Case(FAMILY, "NVFP4", SINGLE),
)


def main() -> None:
    """Save a checkpoint, and states of modules with FP8 quantizers."""
    installed = version("megatron-core")
    name = next(name for name in VERSIONS if installed.startswith(name.rpartition("-")[2]))
    recorded = FILES / name
    shutil.rmtree(recorded, ignore_errors=True)
    recorded.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as folder, GlooRanks(2) as ranks:
        os.environ["PYTHONPATH"] = f"{os.getcwd()}:{os.environ.get('PYTHONPATH', '')}"
        os.chdir(folder)
        Path("hf").mkdir()
        write_config(FAMILY, Path("hf"))
        ranks.run(save_filled, TOPOLOGY, FAMILY, TOPOLOGY, Path(ITERATION), Spelling())
        for case in CASES:
            ranks.run(save_quantized, SINGLE, case, Path(f"quantized-{CASES.index(case)}"))
        shutil.copytree(ITERATION, recorded / ITERATION)
        (recorded / ITERATION / METADATA).rename(recorded / ITERATION / AS_FILE)
        (recorded / "hf").mkdir()
        shutil.copy(Path("hf") / CONFIG, recorded / "hf" / CONFIG)
        (recorded / STATES).mkdir()
        states = set().union(*(_states(path) for path in Path().glob(f"quantized-*/{ITERATION}")))
        for number, state in enumerate(sorted(states, key=lambda state: (len(state), state))):
            (recorded / STATES / f"{number}.bin").write_bytes(state)


def _states(checkpoint: Path) -> set[bytes]:
    """Return the different archives in which modules of a checkpoint saved what they have beside parameters."""
    held = pickle.loads((checkpoint / METADATA).read_bytes()).storage_data
    places = [place for index, place in held.items() if "_extra_state" in index.fqn]
    files = {path.name: path.read_bytes() for path in checkpoint.glob("*.distcp")}
    return {files[one.relative_path][one.offset : one.offset + one.length] for one in places}


if __name__ == "__main__":
    main()
