"""A failing rank waits for the others, but not for ever."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from shardmerge.phase1_dump.fragments import failed_ranks
from shardmerge.phase1_dump.fragments.failed_ranks import wait_for_others


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_ranks, "LOOK_EVERY_SECONDS", 0.01)


def steps(*actions: Callable[[], object]) -> Callable[[float], None]:
    """A sleep during which the next thing happens."""
    left = list(actions)

    def sleep(_seconds: float) -> None:
        left.pop(0)()

    return sleep


def test_nobody_waits_when_all_are_done(tmp_path: Path) -> None:
    (tmp_path / "rank-00000").mkdir()
    (tmp_path / "rank-00001.failed.json").touch()

    assert wait_for_others(tmp_path, 2, 100, steps()) == ()


def test_the_wait_ends_with_the_last_rank(tmp_path: Path) -> None:
    (tmp_path / "rank-00001.failed.json").touch()
    happening = steps(
        (tmp_path / ".rank-00000.partial").mkdir,  # begun is not done
        (tmp_path / "rank-00002").mkdir,
        (tmp_path / "rank-00000").mkdir,
    )

    assert wait_for_others(tmp_path, 3, 100, happening) == ()


def test_the_wait_is_bounded_and_says_who_is_missing(tmp_path: Path) -> None:
    (tmp_path / "rank-00001").mkdir()

    assert wait_for_others(tmp_path, 4, 0.1) == (0, 2, 3)


def test_no_patience_at_all_is_possible(tmp_path: Path) -> None:
    assert wait_for_others(tmp_path / "missing", 2, 0) == (0, 1)
