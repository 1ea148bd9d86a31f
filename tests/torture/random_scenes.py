"""The random sweep, in the manner of RocksDB's crash test: scenes, and chains of points on them, made from a seed.

Everything follows from a name, `random-SEED-NUMBER`: whoever has it can repeat what was found.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from random import Random

from tests.dumps.dumps import Topology

from .points import CUTS, MODES, PAIR, SINGLE, Point
from .scenes import OTHER_THETA, RANK, RANKS, THETA, Scene, Step, dump, merge, metadata
from .shim import Call

CHAINS = 20  # of each scene: to set one up costs as much as some chains
LONGEST = 4
TOPOLOGIES = (
    Topology(),
    Topology(tp=2),
    Topology(pp=2),
    Topology(tp=2, pp=2),
    Topology(ep=2),
    Topology(tp=2, ep=2),
)


def is_random(name: str) -> bool:
    """Whether a scene of this name is made from a seed."""
    return name.startswith("random-")


def scene_of(name: str) -> Scene:
    """The scene of a name, `random-SEED-NUMBER`."""
    chance = Random(name)
    make = chance.choice((_merging, _merging, _in_parts, _finalizing, _correcting, _dumping))
    return make(name, chance)


def _merging(name: str, chance: Random) -> Scene:
    topology, experts = _model(chance)
    options = _options(chance)
    workers = ("--workers", "2") if chance.random() < 0.1 else ()
    step = merge(*options, *workers)
    besides = (
        None,
        None,
        step,
        merge(*options, dump="dump2"),
        merge(*_options(chance)),
        merge(*options, "--part", "1/2"),
    )
    return Scene(name, step, topology, experts, beside=chance.choice(besides), processes=bool(workers))


def _in_parts(name: str, chance: Random) -> Scene:
    topology, experts = _model(chance)
    options, count = _options(chance), chance.randint(1, 3)
    parts = [merge(*options, "--part", f"{number}/{count}") for number in range(1, count + 1)]
    finalize = merge(*options, "--finalize")
    besides = (None, *parts, finalize, merge(*options), merge(*options, "--part", f"1/{count}", dump="dump2"))
    before = tuple(chance.sample(parts, chance.randint(0, count - 1)))
    step, finish = chance.choice(parts), (*parts, finalize)
    beside = chance.choice(besides)
    return Scene(name, step, topology, experts, before, beside=beside, finish=finish, probe=finalize)


def _finalizing(name: str, chance: Random) -> Scene:
    topology, experts = _model(chance)
    options, count = _options(chance), chance.randint(1, 3)
    parts = [merge(*options, "--part", f"{number}/{count}") for number in range(1, count + 1)]
    finalize = merge(*options, "--finalize")
    beside = chance.choice((None, finalize, *parts))
    finish = (*parts, finalize) if beside else ()
    return Scene(name, finalize, topology, experts, tuple(parts), beside=beside, finish=finish)


def _correcting(name: str, chance: Random) -> Scene:
    topology, experts = _model(chance)
    published = merge(*_options(chance))
    steps: tuple[Step, ...] = (
        metadata(*THETA),
        metadata("--hf-reference", "@reference2"),
        metadata(*OTHER_THETA, "--hf-reference", "@reference"),
        Step((*published.words, *THETA)),
        published,
    )
    step, beside = chance.choice(steps), chance.choice((None, None, *steps, Step(("add-notes",))))
    return Scene(name, step, topology, experts, (published,), beside=beside, piecewise=True)


def _dumping(name: str, chance: Random) -> Scene:
    before = (dump(1),) if chance.random() < 0.5 else ()
    beside = chance.choice((None, dump(0)) if before else (None, dump(0), dump(1)))
    return Scene(name, dump(0), before=before, beside=beside, out=RANK, own=RANKS)


def _model(chance: Random) -> tuple[Topology, int]:
    topology = chance.choice(TOPOLOGIES)
    return topology, 4 if topology.ep > 1 else 0


def _options(chance: Random) -> Sequence[str]:
    found = ["--max-shard-size", chance.choice(("500B", "1000B", "3000B", "5GB"))]
    if chance.random() < 0.3:
        found += ["--layout", "canonical"]
    elif chance.random() < 0.3:
        found += ["--min-shard-size", "400B"]
    if chance.random() < 0.3:
        found += ["--verify", "size"]
    return found


def chains(scene: Scene, calls: Sequence[Call], disk: str) -> Iterator[tuple[str, tuple[Point, ...]]]:
    """Name and points of every chain on a random scene."""
    modes = [*SINGLE, *(("kill-one",) if scene.processes else ()), *(PAIR * 4 if scene.beside else ())]
    modes += CUTS * 4 if disk else ()
    for number in range(1, CHAINS + 1):
        name = str(Point(scene.name, number, "chain", disk))
        chance = Random(name)
        length = 1 + min(int(chance.expovariate(1.0)), LONGEST - 1)
        yield name, tuple(_point(scene, calls, chance.choice(modes), disk, chance) for _ in range(length))


def _point(scene: Scene, calls: Sequence[Call], mode: str, disk: str, chance: Random) -> Point:
    """A point of a mode, at a call to which it can happen if there is one."""
    possible = [number for number, call in enumerate(calls, 1) if call.kind in MODES[mode].kinds]
    return Point(scene.name, chance.choice(possible or [1]), mode, disk)
