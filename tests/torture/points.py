"""The ways in which a call goes wrong, and every point of the fixed sweep: (scene, call, mode).

Must not know how a point is judged.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from .scenes import Scene
from .shim import CHANGING, GROWING, INTERRUPTIBLE, PARTIAL, Act, Call, Kind, Strike

EVERY = frozenset(Kind)
FILLING = frozenset({Kind.CREATE, Kind.WRITE, Kind.COPY, Kind.MKDIR})


@dataclass(frozen=True, slots=True)
class Mode:
    """A way in which a call goes wrong.

    Attributes:
        act: What the library does.
        kinds: Of the calls to which it can happen.
        error: What they fail with.
        sticky: Whether all later ones fail too.
        then: What the harness does while the call waits: "beside", "beside-killed", "power".
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
    "beside": Mode(Act.PAUSE, then="beside"),
    "beside-killed": Mode(Act.PAUSE, then="beside-killed"),
    "power": Mode(Act.PAUSE, CHANGING, then="power"),
    "power-flushed": Mode(Act.PAUSE, CHANGING, then="power"),
}
SINGLE = ("kill", "half", "short", "EIO", "ENOSPC", "EDQUOT", "EINTR", "ENOLCK", "full", "read-only")
PAIR = ("beside", "beside-killed")


@dataclass(frozen=True, slots=True)
class Point:
    """One call that goes wrong in one way."""

    scene: str
    call: int
    mode: str

    def __str__(self) -> str:
        return f"{self.scene}:{self.call}:{self.mode}"

    @classmethod
    def parse(cls, text: str) -> Point:
        """The point of a name. Raises ValueError."""
        scene, call, mode = text.rsplit(":", 2)
        return cls(scene, int(call), mode)


def strike(scene: Scene, point: Point) -> Strike:
    """What the library is told."""
    mode = MODES[point.mode]
    given = Strike(mode.act, point.call, mode.kinds, mode.error, mode.sticky)
    return replace(given, link_error=scene.link_error, lock_error=scene.lock_error)


def modes_of(scene: Scene) -> tuple[str, ...]:
    """The modes of a scene in the fixed sweep."""
    if scene.beside:
        return PAIR
    return (*SINGLE, "kill-one") if scene.processes else SINGLE


def sweep(scene: Scene, calls: Sequence[Call], modes: Sequence[str] = ()) -> Iterator[Point]:
    """Every point of a scene: each mode at each call to which it can happen."""
    for mode in modes or modes_of(scene):
        kinds = MODES[mode].kinds
        for number, call in enumerate(calls, 1):
            whole = MODES[mode].act in (Act.HALF, Act.SHORT) and call.size < 2
            if call.kind in kinds and not whole and number % scene.stride == 0:
                yield Point(scene.name, number, mode)
