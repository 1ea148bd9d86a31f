"""Nothing split: what a merge writes then, how long it takes beside cp, and beside reading the bytes once."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from tests.scale.models import Case

from . import peers
from .line import Bound, Line, of_time, seconds
from .making import GB_200, SMALLEST, WHOLE, Made, filled, model, sparse
from .merging import merged
from .rounds import COLD, WARM, Contestant, Turns, remove, take_turns

FULL, SIZE, LARGE, START_UP = "--verify full", "--verify size", "--verify size, 200 GB", "start-up"
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
    small, large = filled(SMALLEST, folder / "small"), sparse(GB_200, folder / "large")
    contestants = {
        START_UP: _merge(small, SIZE),
        LARGE: _merge(large, SIZE),
        SIZE: _merge(made, SIZE),
        FULL: _merge(made, FULL),
        peers.READ: Contestant(made.dump, partial(peers.read_once, made.dump)),
        peers.CP: Contestant(made.dump, partial(peers.copied, made.dump)),
    }
    for cache in (WARM, COLD):
        turns = take_turns(cache, folder, contestants, ROUNDS)
        yield from _size_lines(cache, turns, made, large)
        yield from _full_lines(cache, turns)
    for one in ("whole", "small", "large"):
        remove(folder / one)


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


def _size_lines(cache: str, turns: Turns, made: Made, large: Made) -> Iterator[Line]:
    """200 GB do not fit beside a bench: cp of them is extrapolated from its rate in this run."""
    fragments, ours = len(large.fragments()), turns.seconds(LARGE)
    what = f"merge {SIZE}, nothing split, {large.num_bytes / 1e9:.0f} GB (sparse), {fragments} fragments"
    start = turns.seconds(START_UP)
    allowed = start + fragments * FRAGMENT_S
    value = ours / allowed
    peer = f"start-up: {seconds(start)}"
    each = f"{(ours - start) / fragments * 1e3:.2f} ms a fragment"
    yield Line(what, cache, turns.told(LARGE), peer, each, value, START_UP_BOUND)
    rate = made.num_bytes / turns.seconds(peers.CP)
    copy = large.num_bytes / rate
    peer = f"cp: {copy:.0f} s, extrapolated from {rate / 1e9:.2f} GB/s"
    yield Line(what, cache, turns.told(LARGE), peer, f"{ours / copy:.2%} of its time", ours / copy, CP_SHARE)
    what, value = f"merge {SIZE}, nothing split", turns.ratio(SIZE, peers.CP)
    yield Line(what, cache, turns.told(SIZE), _peer(turns, peers.CP), of_time(value))


def _full_lines(cache: str, turns: Turns) -> Iterator[Line]:
    what, ours = f"merge {FULL}, nothing split", turns.told(FULL)
    entire = turns.ratio(FULL, peers.READ)
    value = turns.ratio(FULL, peers.READ, without=turns.seconds(START_UP))
    told = f"{of_time(entire)}, beyond start-up {value:.2f}"
    yield Line(what, cache, ours, _peer(turns, peers.READ), told, value, READ_BOUND)
    yield Line(what, cache, ours, _peer(turns, peers.CP), of_time(turns.ratio(FULL, peers.CP)))


def _peer(turns: Turns, name: str) -> str:
    return f"{name}: {turns.told(name)}"
