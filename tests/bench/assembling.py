"""Everything split: a merge with checksums and two workers beside cp, a consolidator and a script with torch.cat."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from shardmerge.common.places import INDEX
from shardmerge.common.reference import weight_map
from tests.scale.models import Case

from . import peers, pieces
from .line import Bound, Line, at_least, of_time, times_as_fast
from .making import Made, column_share, filled, model, split
from .merging import MERGE, memory_line, merged
from .rounds import COLD, WARM, Contestant, Turns, remove, take_turns

TP_SIZES = (2, 8)
CP_BOUND = Bound(1, "at most 1")
TORCH_TIMES = 4


def lines(gib: float, folder: Path, sizes: Sequence[int] | None = None) -> Iterator[Line]:
    """Warm and cold, by default TP 2 and TP 8; what was written is removed at the end."""
    for tp in sizes or TP_SIZES:
        here = folder / f"tp-{tp}"
        made = filled(Case("bench", model(gib), split(tp)), here)
        yield Line(
            f"TP {tp}: {made.num_bytes / 1e9:.2f} GB, of which {column_share(made):.0%} cut by columns"
        )
        contestants = _contestants(made, here)
        for cache in (WARM, COLD):
            yield from _told(f"merge, everything split, TP {tp}", cache, take_turns(cache, here, contestants))
        remove(here)


def _contestants(made: Made, here: Path) -> dict[str, Contestant]:
    """All write the same tensors into the same shards: those that a first merge made."""
    converted, shards = pieces.convert(made.dump, here / "pieces"), here / "shards.json"
    merged(made, here / "first")
    names = weight_map(here / "first" / INDEX)
    numbers = {shard: number for number, shard in enumerate(sorted(set(names.values())), 1)}
    shards.write_text(json.dumps({name: numbers[shard] for name, shard in names.items()}))
    remove(here / "first")
    return {
        MERGE: Contestant(made.dump, partial(merged, made)),
        peers.CP: Contestant(made.dump, partial(peers.copied, made.dump)),
        peers.UNCACHED: Contestant(made.dump, partial(peers.copied_past_the_cache, made.dump)),
        peers.CONSOLIDATE: Contestant(converted, partial(peers.consolidated, converted, shards)),
        peers.CONCATENATE: Contestant(converted, partial(peers.concatenated, converted, shards)),
    }


def _told(what: str, cache: str, turns: Turns) -> Iterator[Line]:
    ours = turns.told(MERGE)
    for name, bound in ((peers.CP, CP_BOUND), (peers.UNCACHED, None)):
        peer, value = f"{name}: {turns.told(name)}", turns.ratio(MERGE, name)
        yield Line(what, cache, ours, peer, of_time(value), value, bound)
    for name in (peers.CONSOLIDATE, peers.CONCATENATE):
        peer, value = f"{name}: {turns.told(name)}", 1 / turns.ratio(MERGE, name)
        bound = at_least(TORCH_TIMES, 1 / turns.ratio(peers.UNCACHED, name))
        yield Line(what, cache, ours, peer, times_as_fast(value), value, bound)
    yield memory_line(what, cache, turns)
