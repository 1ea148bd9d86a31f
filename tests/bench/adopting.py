"""Nothing split: what a merge writes then, how long it takes beside cp, and beside reading the bytes once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.scale.models import Case

from . import peers
from .line import Bound, Line, of_time
from .making import GB_200, SMALLEST, WHOLE, Made, filled, model, sparse
from .merging import merged
from .rounds import COLD, WARM, Contestant, Turns, remove, take_turns

FULL, SIZE, START_UP = "--verify full", "--verify size", "start-up"
FRAGMENT_S = 0.001
ROUNDS = 5  # of what takes a second
NO_BYTE = Bound(0, "0 bytes")
START_UP_BOUND = Bound(1, "start-up + 1 ms a fragment")
CP_SHARE = Bound(0.01, "under 1 % of cp")
READ_BOUND = Bound(1.05, "beyond start-up at most 1.05")


def lines(gib: float, folder: Path) -> Iterator[Line]:
    """Warm and cold; what was written is removed at the end."""
    made = filled(Case("bench", model(gib), WHOLE), folder / "whole")
    yield _bytes_line(made, folder / "out")
    small = filled(SMALLEST, folder / "small")
    large = {f"200 GB, {number}": sparse(case, folder / str(number)) for number, case in enumerate(GB_200)}
    contestants = {
        START_UP: _merge(small, SIZE),
        **{name: _merge(one, SIZE) for name, one in large.items()},
        SIZE: _merge(made, SIZE),
        FULL: _merge(made, FULL),
        peers.CAT: Contestant(made.dump, partial(peers.read_by_cat, made.dump)),
        peers.READ: Contestant(made.dump, partial(peers.read_once, made.dump)),
        peers.CP: Contestant(made.dump, partial(peers.copied, made.dump)),
    }
    for cache in (WARM, COLD):
        turns = take_turns(cache, folder, contestants, ROUNDS)
        for name, one in large.items():
            yield from _large_lines(cache, turns, made.num_bytes / turns.seconds(peers.CP), one, name)
        yield from _lines(cache, turns)
    remove(folder / "whole")


def _merge(made: Made, options: str) -> Contestant:
    return Contestant(made.dump, lambda out: merged(made, out, *options.split()))


def _bytes_line(made: Made, out: Path) -> Line:
    """Bytes of shards whose inode is none of the dump's."""
    merged(made, out, *SIZE.split())
    known = {path.stat().st_ino for path in made.fragments()}
    shards = [path.stat() for path in sorted(out.glob("*.safetensors"))]
    written = sum(shard.st_size for shard in shards if shard.st_ino not in known)
    remove(out)
    what = f"merge, nothing split, {made.num_bytes / 1e9:.2f} GB: bytes of tensors written"
    told = f"{written:,} in {len(shards)} shards"
    return Line(what, "", told, "", f"{written:,}", written, NO_BYTE)


def _large_lines(cache: str, turns: Turns, rate: float, large: Made, name: str) -> Iterator[Line]:
    """200 GB do not fit beside a bench: cp of them is extrapolated from its rate in this run, in bytes a second."""
    fragments, ours, start = len(large.fragments()), turns.seconds(name), turns.seconds(START_UP)
    what = f"merge {SIZE}, nothing split, {large.num_bytes / 1e9:.0f} GB (sparse), {fragments:,} fragments"
    value = ours / (start + fragments * FRAGMENT_S)
    each = f"{(ours - start) / fragments * 1e3:.2f} ms a fragment"
    yield Line(what, cache, turns.told(name), _peer(turns, START_UP), each, value, START_UP_BOUND)
    share = ours * rate / large.num_bytes
    peer = f"cp: {large.num_bytes / rate:.0f} s, extrapolated from {rate / 1e9:.2f} GB/s"
    yield Line(what, cache, turns.told(name), peer, f"{share:.2%} of its time", share, CP_SHARE)


def _lines(cache: str, turns: Turns) -> Iterator[Line]:
    for options in (SIZE, FULL):
        what, value = f"merge {options}, nothing split", turns.ratio(options, peers.CP)
        yield Line(what, cache, turns.told(options), _peer(turns, peers.CP), of_time(value))
    for peer, bound in ((peers.CAT, READ_BOUND), (peers.READ, None)):
        value = turns.ratio(FULL, peer, without=turns.seconds(START_UP))
        told = f"{of_time(turns.ratio(FULL, peer))}, beyond start-up {value:.2f}"
        yield Line(what, cache, turns.told(FULL), _peer(turns, peer), told, value, bound)


def _peer(turns: Turns, name: str) -> str:
    return f"{name}: {turns.told(name)}"
