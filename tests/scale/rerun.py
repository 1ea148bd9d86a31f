"""What `shardmerge metadata` costs for an output with a million tensors: the command itself, start-up included.

The output is a real one: a dump without tensor bytes in which nothing is cut, merged by link.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from .generate import generate
from .models import QWEN3_235B, Case, World

MILLION = Case(
    "a million tensors",
    QWEN3_235B
    | {"num_hidden_layers": 108, "num_experts": 3072, "hidden_size": 64, "moe_intermediate_size": 32},
    World(pp=9, ep=8, etp=1, tp=1),
)
BOUND_S = 5
COMMAND = [sys.executable, "-W", "ignore", "-c", "from shardmerge.common.command.group import main; main()"]
CORRECTIONS = ("config.rope_theta=500000", "config.rope_theta=1000000")


@dataclass(frozen=True, slots=True)
class Rerun:
    """Seconds of each metadata rerun, and how many tensors the output has."""

    tensors: int
    seconds: tuple[float, ...]


def measure(folder: Path) -> Rerun:
    """Generate, merge, rewrite metadata twice. Raises CalledProcessError, and RuntimeError if a shard was touched."""
    tensors = generate(MILLION, folder)
    out, reference = folder / "out", folder / "reference"
    _run("merge", folder / "dump", out, "--hf-reference", reference, "--verify", "size")
    before = _shards(out)
    seconds = tuple(_run("metadata", out, "--set-new", correction) for correction in CORRECTIONS)
    if _shards(out) != before:
        raise RuntimeError(f"shardmerge metadata touched shards of {out}")
    return Rerun(tensors, seconds)


def _run(*arguments: str | Path) -> float:
    began = time.monotonic()
    subprocess.run([*COMMAND, *map(str, arguments)], check=True, stdout=subprocess.DEVNULL)
    return time.monotonic() - began


def _shards(out: Path) -> dict[str, tuple[int, int]]:
    return {path.name: ((stat := path.stat()).st_ino, stat.st_mtime_ns) for path in out.glob("*.safetensors")}
