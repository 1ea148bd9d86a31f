"""Dumps with real bytes: those of `make scale`, with their holes filled and their checksums made true.

Decides models, worlds and bytes. Must not know what a merge makes of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import xxhash

from shardmerge.common import manifest as manifests
from shardmerge.common.manifest import Manifest
from shardmerge.common.places import MANIFEST
from tests.scale.generate import generate
from tests.scale.models import QWEN3_235B, Case, World

WRITE_BYTES = 256 << 10
PATTERN_BYTES = 8 << 20
LAYER_BYTES = 2 * (32 * 3 * 2048 * 1024 + 2 * 2048 * (32 + 4) * 128)
MODEL: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "model_type": "qwen3_moe",
    "hidden_size": 2048,
    "intermediate_size": 2048,
    "moe_intermediate_size": 1024,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "num_experts": 32,
    "vocab_size": 8192,
}
WHOLE = World(pp=1, ep=2, etp=1, tp=1)
TINY = {
    "hidden_size": 64,
    "num_experts": 2,
    "moe_intermediate_size": 64,
    "num_hidden_layers": 1,
    "vocab_size": 64,
}
SMALLEST = Case("start-up", MODEL | TINY, World(pp=1, ep=1, etp=1, tp=1))
SMALLEST_SPLIT = Case("start-up", MODEL | TINY, World(pp=1, ep=1, etp=2, tp=2))
LARGE = QWEN3_235B | {"num_hidden_layers": 40}
GB_200 = tuple(
    Case("200 GB", LARGE, World(pp=8, ep=ep, etp=1, tp=1)) for ep in (16, 128)
)  # ranks: 128 and 1,024


@dataclass(frozen=True, slots=True)
class Made:
    """A dump, and the Hugging Face directory that it belongs to."""

    dump: Path
    reference: Path

    def manifests(self) -> Iterator[Manifest]:
        return (manifests.read(path) for path in sorted(self.dump.glob(f"*/{MANIFEST}")))

    def fragments(self) -> list[Path]:
        return sorted(self.dump.glob("*/*.safetensors"))

    @property
    def num_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.fragments())

    def tensors(self) -> int:
        return len({name for one in self.manifests() for name in one.names})


def model(gib: float) -> dict[str, Any]:
    """A Qwen3-MoE of about `gib` GiB in bfloat16: two thirds of it are cut by rows, one third by columns."""
    return MODEL | {"num_hidden_layers": max(1, round(gib * (1 << 30) / LAYER_BYTES))}


def split(tp: int) -> World:
    """Everything cut, experts too."""
    return World(pp=1, ep=1, etp=tp, tp=tp)


def sparse(case: Case, folder: Path) -> Made:
    """A dump without bytes: only --verify size can pass."""
    generate(case, folder)
    return Made(folder / "dump", folder / "reference")


def filled(case: Case, folder: Path) -> Made:
    """A dump with random bytes. Nothing is in doubt about it afterwards: --verify full passes."""
    made = sparse(case, folder)
    with ProcessPoolExecutor(2) as pool:
        list(pool.map(fill_rank, sorted(made.dump.iterdir())))
    return made


def fill_rank(folder: Path) -> None:
    """Write bytes into every rectangle of a rank, and their checksums into its manifest."""
    given = manifests.read(folder / MANIFEST)
    generator = np.random.default_rng(given.rank)
    pattern = memoryview(generator.bytes(PATTERN_BYTES))
    checksums: list[str] = []
    for number, file in enumerate(given.files):
        columns = zip(given.columns.file, given.columns.begin, given.columns.end, strict=True)
        spans = [(begin, end) for at, begin, end in columns if at == number]
        with open(folder / file.name, "r+b", buffering=0) as opened:
            checksums += [_fill(opened, begin, end, pattern, generator) for begin, end in spans]
    columns_now = replace(given.columns, xxh3_128=checksums)
    (folder / MANIFEST).write_bytes(manifests.encode(replace(given, columns=columns_now)))


def _fill(file: BinaryIO, begin: int, end: int, pattern: memoryview, generator: np.random.Generator) -> str:
    """Bytes from random places of the pattern; their checksum."""
    checksum = xxhash.xxh3_128()
    file.seek(begin)
    for position in range(begin, end, WRITE_BYTES):
        at = int(generator.integers(PATTERN_BYTES - WRITE_BYTES))
        block = pattern[at : at + min(WRITE_BYTES, end - position)]
        checksum.update(block)
        file.write(block)
    return checksum.hexdigest()


def column_share(made: Made) -> float:
    """Which part of all bytes is cut by columns: pieces narrower than their tensor."""
    total = narrow = 0
    for one in made.manifests():
        for placed in one.placed():
            size, rectangle = placed.end - placed.begin, placed.rectangle
            total += size
            narrow += size * (rectangle.local_shape[-1] < rectangle.global_shape[-1])
    return narrow / total
