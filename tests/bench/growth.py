"""Thousands of small tensors in a thousand fragments: seconds beyond start-up must grow as tensors plus files do."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.scale.models import Case, World

from .line import Bound, Line, mib
from .making import MODEL, SMALLEST_SPLIT, filled
from .merging import merged
from .rounds import COLD, WARM, Contestant, Turns, remove, take_turns

# 801 tensors a layer. Ranks: a stage of 64 x 4 cuts every matrix into four; each rank writes a fragment of what is
# cut, and some a second one of norms and routers.
TINY = MODEL | {"hidden_size": 64, "num_experts": 264, "moe_intermediate_size": 32, "vocab_size": 512,
                "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 16}  # fmt: skip
LAYERS = {1: 5, 2: 10, 4: 20}  # by pipeline stages
SHARD_SIZE = "8MiB"
START_UP = "start-up"
LINEAR = Bound(1.25, "at most 1.25")
OPEN_FILES = Bound(128, "at most 128")


def lines(folder: Path) -> Iterator[Line]:
    """Three sizes, warm and cold; what was written is removed at the end."""
    here = folder / "growth"
    cases = {
        pp: Case("growth", TINY | {"num_hidden_layers": n}, World(pp, 64, 4, 4)) for pp, n in LAYERS.items()
    }
    made = {str(pp): filled(case, here / str(pp)) for pp, case in cases.items()}
    made[START_UP] = filled(SMALLEST_SPLIT, here / START_UP)
    contestants = {
        name: Contestant(one.dump, partial(merged, one, shard_size=shard_size(name)))
        for name, one in made.items()
    }
    counts = {name: (one.tensors(), len(one.fragments())) for name, one in made.items()}
    for cache in (WARM, COLD):
        turns = take_turns(cache, here, contestants)
        for pp in LAYERS:
            yield from _told(cache, turns, str(pp), counts)
    remove(here)


def shard_size(name: str) -> str:
    """Start-up is that of a merge which needs its two workers."""
    return "256KiB" if name == START_UP else SHARD_SIZE


def _told(cache: str, turns: Turns, name: str, counts: dict[str, tuple[int, int]]) -> Iterator[Line]:
    tensors, fragments = counts[name]
    what = f"merge, {tensors:,} tensors in {fragments:,} fragments"
    first = str(min(LAYERS))
    value = _each(turns, name, counts[name]) / _each(turns, first, counts[first])
    each = f"{_each(turns, name, counts[name]) * 1e6:.0f} us per tensor or file"
    told = f"{value:.2f} x as long for each as with {counts[first][0]:,}"
    memory = f"{mib(turns.worker_peak(name))} a worker, {mib(turns.parent_peak(name))} parent"
    yield Line(what, cache, f"{turns.told(name)}, {each}", "", told, value, LINEAR, memory)
    opened = turns.open_files(name)
    yield Line(f"open files of {what}", cache, f"{opened}", "", f"{opened}", opened, OPEN_FILES)


def _each(turns: Turns, name: str, counts: tuple[int, int]) -> float:
    """Seconds beyond start-up, for every tensor and every file."""
    return (turns.seconds(name) - turns.seconds(START_UP)) / sum(counts)
