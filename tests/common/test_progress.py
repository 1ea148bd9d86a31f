"""Progress: silent when short, a line now and then, a line that rewrites itself on a terminal."""

from __future__ import annotations

import time
from io import StringIO

import pytest

from shardmerge.common.command.progress import Progress


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def run(progress: Progress, clock: list[float], *, seconds: float, step: float) -> None:
    for _ in range(int(seconds / step)):
        clock[0] += step
        progress.advance(10**8)
    progress.close()


def test_short_work_says_nothing(clock: list[float]) -> None:
    stream = StringIO()
    run(Progress("merging", 10**9, stream, started=1000.0), clock, seconds=2, step=0.5)
    assert stream.getvalue() == ""


def test_a_file_gets_a_plain_line_every_thirty_seconds(clock: list[float]) -> None:
    stream = StringIO()
    run(Progress("merging", 10**10, stream, started=1000.0), clock, seconds=70, step=1)
    lines = stream.getvalue().splitlines()
    assert lines[0] == "merging: 0.3 of 10.0 GB, 0.10 GB/s, 97 s left"
    assert len(lines) == 3
    assert "\r" not in stream.getvalue()


def test_a_terminal_gets_one_line_that_rewrites_itself(clock: list[float]) -> None:
    stream = Terminal()
    run(Progress("merging", 10**10, stream, started=1000.0), clock, seconds=10, step=0.1)
    assert stream.getvalue().count("\r") > 20
    assert stream.getvalue().count("\n") == 1


def test_the_time_that_is_left_is_never_negative_and_not_told_before_anything_is_done(
    clock: list[float],
) -> None:
    stream = StringIO()
    progress = Progress("merging", 10**9, stream, started=1000.0)
    for clock[0], num_bytes in ((1040.0, 0), (1080.0, 2 * 10**9)):
        progress.advance(num_bytes)
    assert stream.getvalue() == (
        "merging: 0.0 of 1.0 GB, 0.00 GB/s\nmerging: 2.0 of 1.0 GB, 0.03 GB/s, 0 s left\n"
    )


def test_no_stream_is_silent(clock: list[float]) -> None:
    progress = Progress("merging", 10**9, None, started=1000.0)
    run(progress, clock, seconds=100, step=1)
    assert progress.done_bytes == 10**10
