"""The ways in which a call goes wrong, and every point of the fixed sweep: (scene, call, mode).

Must not know how a point is judged.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from random import Random

from .scenes import Scene
from .shim import CHANGING, GROWING, INTERRUPTIBLE, PARTIAL, Act, Call, Kind, Strike

EVERY = frozenset(Kind)
BESIDE, KILLED, CROSSED, POWER = "beside", "killed", "crossed", "power"
FILLING = frozenset({Kind.CREATE, Kind.WRITE, Kind.COPY, Kind.MKDIR})


@dataclass(frozen=True, slots=True)
class Mode:
    """A way in which a call goes wrong.

    Attributes:
        act: What the library does.
        kinds: Of the calls to which it can happen.
        error: What they fail with.
        sticky: Whether all later ones fail too.
        then: What the harness does while the call waits. BESIDE: it runs the second command to its end, and the first
            goes on. KILLED: likewise, and the first is killed. CROSSED: it runs the second command up to a call of its
            own, the first one to its end, and then the second. POWER: it cuts the power.
    """

    act: Act
    kinds: Collection[Kind] = EVERY
    error: int = 0
    sticky: bool = False
    then: str = ""


MODES = {
    "kill": Mode(Act.KILL),
    "kill-one": Mode(Act.KILL_ONE),
    "half": Mode(Act.HALF, {Kind.WRITE}),
    "short": Mode(Act.SHORT, PARTIAL),
    "EIO": Mode(Act.FAIL, EVERY, errno.EIO),
    "ENOSPC": Mode(Act.FAIL, GROWING, errno.ENOSPC),
    "EDQUOT": Mode(Act.FAIL, GROWING, errno.EDQUOT),
    "EINTR": Mode(Act.FAIL, INTERRUPTIBLE, errno.EINTR),
    "ENOLCK": Mode(Act.FAIL, {Kind.LOCK}, errno.ENOLCK),
    "full": Mode(Act.FAIL, FILLING, errno.ENOSPC, sticky=True),
    "read-only": Mode(Act.FAIL, CHANGING, errno.EROFS, sticky=True),
    "beside": Mode(Act.PAUSE, then=BESIDE),
    "beside-killed": Mode(Act.PAUSE, then=KILLED),
    "crossed": Mode(Act.PAUSE, then=CROSSED),
    "power": Mode(Act.PAUSE, CHANGING, then=POWER),
    "power-flushed": Mode(Act.PAUSE, CHANGING, then=POWER),
}
SINGLE = ("kill", "half", "short", "EIO", "ENOSPC", "EDQUOT", "EINTR", "ENOLCK", "full", "read-only")
PAIR = ("beside", "beside-killed", "crossed")
CUTS = ("power", "power-flushed")


@dataclass(frozen=True, slots=True)
class Point:
    """One call that goes wrong in one way, on a file system of our own where `disk` names one."""

    scene: str
    call: int
    mode: str
    disk: str = ""

    def __str__(self) -> str:
        place = f"@{self.disk}" if self.disk else ""
        return f"{self.scene}{place}:{self.call}:{self.mode}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """The point of a name. Raises ValueError."""
        place, call, mode = text.rsplit(":", 2)
        scene, _, disk = place.partition("@")
        return cls(scene, int(call), mode, disk)


def strike(scene: Scene, point: Point) -> Strike:
    """What the library is told."""
    mode = MODES[point.mode]
    given = Strike(mode.act, point.call, mode.kinds, mode.error, mode.sticky)
    return replace(given, link_error=scene.link_error, lock_error=scene.lock_error)


def second_strike(scene: Scene, point: Point, num_calls: int) -> Strike:
    """What is done to the second command, which makes so many calls alone: it waits at one of them where they cross."""
    quiet = Strike(link_error=scene.link_error, lock_error=scene.lock_error)
    if MODES[point.mode].then != CROSSED:
        return quiet
    return replace(quiet, act=Act.PAUSE, at=Random(str(point)).randint(1, max(num_calls, 1)))


def modes_of(scene: Scene, disk: str) -> tuple[str, ...]:
    """The modes of a scene in the fixed sweep."""
    if disk:
        return CUTS
    if scene.beside:
        return PAIR
    return (*SINGLE, "kill-one") if scene.processes else SINGLE


def sweep(scene: Scene, calls: Sequence[Call], disk: str = "") -> Iterator[Point]:
    """Every point of a scene: each mode at each call to which it can happen; power can also fail after the last one."""
    for mode in modes_of(scene, disk):
        kinds = MODES[mode].kinds
        for number, call in enumerate(calls, 1):
            whole = MODES[mode].act in (Act.HALF, Act.SHORT) and call.size < 2
            if call.kind in kinds and not whole and number % scene.stride == 0:
                yield Point(scene.name, number, mode, disk)
        if disk:
            yield Point(scene.name, len(calls) + 1, mode, disk)
