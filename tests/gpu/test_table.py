"""The table of a measurement, from figures written by hand: medians, the best floor, the worst stall. Needs no GPU."""

from __future__ import annotations

from typing import Any

from tests.gpu.__main__ import table


def floor(by: str, *seconds: float) -> list[dict[str, Any]]:
    return [{"ranks": 2, "what": "floor", "place": "fast", "by": by, "seconds": one} for one in seconds]


def stall(number: int, bare: float, call: float) -> dict[str, Any]:
    return {"ranks": 2, "what": "stall", "number": number, "bare": bare, "call": call}


def steps(cycle: int, quiet: float, busy: float, idle: float) -> dict[str, Any]:
    given = {"ranks": 2, "what": "steps", "place": "disk", "streams": 2, "cycle": cycle}
    beside = {"beside_busy": [quiet] * 3, "beside_idle": [quiet] * 3}
    return given | beside | {"busy": [busy] * 5, "idle": [idle] * 4 + [idle + 0.05]}


def line(lines: list[str], what: str) -> str:
    (found,) = [one for one in lines if what in one]
    return found


def test_a_dump_is_compared_with_the_best_median_floor() -> None:
    figures = [*floor("1", 4.0, 1.0, 4.0), *floor("8", 2.0, 2.0, 9.0), *floor("dump", 2.1, 2.2, 9.0)]
    lines = list(table(figures))
    assert "the floor of 8 writers | 1.10 of its time | 1.1" in line(
        lines, "fast: dump 2.20 s (2.10 to 9.00)"
    )
    assert "4.00 s (1.00 to 4.00)" in line(lines, "floor, 1 writers")


def test_the_worst_stall_but_the_first_is_judged() -> None:
    lines = list(table([stall(0, 0.5, 9.0), stall(1, 0.5, 0.6), stall(2, 0.6, 0.95), stall(3, 0.5, 0.7)]))
    assert "bare copy: 0.50 s | 0.70 s (0.60 to 0.95); at most 1.1 x bare + 0.29 s" in line(
        lines, "dump_async keeps"
    )


def test_steps_are_compared_within_their_cycle() -> None:
    figures = [steps(0, 0.10, 0.11, 0.1), steps(1, 0.20, 0.202, 0.2), steps(2, 0.10, 0.10, 0.1)]
    lines = list(table(figures))
    beside = "without: 100 ms | 1.010 (1.000 to 1.100); of means 1.010 (1.000 to 1.100) | 1.02"
    assert beside in line(lines, "training step while the child writes to disk with 2 threads, 15 steps")
    assert "1.000 (1.000 to 1.000); of means 1.100 (1.050 to 1.100) | " in line(lines, "nothing is written")
