"""A failing rank waits for the others, but not for ever."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from shardmerge.phase1_dump.fragments import failed_ranks
from shardmerge.phase1_dump.fragments.failed_ranks import forget_failure, record_failure, wait_for_others


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(failed_ranks, "LOOK_EVERY_SECONDS", 0.01)


def steps(*actions: Callable[[], object]) -> Callable[[float], None]:
    """A sleep during which the next thing happens."""
    left = list(actions)

    def sleep(_seconds: float) -> None:
        left.pop(0)()

    return sleep


def complete(out: Path, rank: int) -> None:
    """A rank that is done, as far as those who wait can see."""
    (out / f"rank-{rank:05d}").mkdir()
    (out / f"rank-{rank:05d}" / "manifest.json").touch()


def test_nobody_waits_when_all_are_done(tmp_path: Path) -> None:
    complete(tmp_path, 0)
    (tmp_path / "rank-00001.failed.json").touch()

    assert wait_for_others(tmp_path, 2, 100, steps()) == ()


def test_the_wait_ends_with_the_last_rank(tmp_path: Path) -> None:
    (tmp_path / "rank-00001.failed.json").touch()
    happening = steps(
        (tmp_path / ".rank-00000.0123456789abcdef.partial").mkdir,  # begun is not done
        lambda: complete(tmp_path, 2),
        (tmp_path / "rank-00000").mkdir,  # somebody's folder without a manifest
        (tmp_path / "rank-00000" / "manifest.json").touch,
    )

    assert wait_for_others(tmp_path, 3, 100, happening) == ()


def test_the_wait_is_bounded_and_says_who_is_missing(tmp_path: Path) -> None:
    complete(tmp_path, 1)

    assert wait_for_others(tmp_path, 4, 0.1) == (0, 2, 3)


def test_no_patience_at_all_is_possible(tmp_path: Path) -> None:
    assert wait_for_others(tmp_path / "missing", 2, 0) == (0, 1)


@pytest.fixture
def another() -> Iterator[dict[str, Any]]:
    """The record of an owner that runs, and is another process of this host."""
    code = "import json, sys; from shardmerge.common.processes import owner; "
    code += "print(json.dumps(owner.here('it').as_json()))"
    waits = f"{code}; sys.stdout.flush(); sys.stdin.read()"
    command = [sys.executable, "-c", waits]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin
        assert process.stdout
        yield json.loads(process.stdout.readline())
        process.stdin.close()


def recorded(out: Path, held: object) -> Path:
    path = out / "rank-00003.failed.json"
    path.write_text(json.dumps(held))
    return path


def test_a_failure_that_a_running_process_recorded_is_not_forgotten(
    tmp_path: Path, another: dict[str, Any]
) -> None:
    path = recorded(tmp_path, {"failure": {"message": "no space left"}, "owner": another})

    forget_failure(tmp_path, 3)
    assert path.exists()

    recorded(tmp_path, {"failure": {"message": "no space left"}, "owner": another | {"started": 1}})
    forget_failure(tmp_path, 3)
    assert not path.exists()


@pytest.mark.parametrize("held", [[], {}, {"owner": 1}, {"owner": {"token": "x"}}, None])
def test_a_record_that_does_not_tell_whose_it_is_is_forgotten(tmp_path: Path, held: object) -> None:
    path = recorded(tmp_path, held)
    forget_failure(tmp_path, 3)
    assert not path.exists()


def test_what_this_process_recorded_is_forgotten_when_it_tries_again(tmp_path: Path) -> None:
    record_failure(tmp_path, 3, "run", RuntimeError("first"))
    assert json.loads((tmp_path / "rank-00003.failed.json").read_text())["failure"]["message"] == "first"
    forget_failure(tmp_path, 3)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_beside_an_attempt_that_runs_is_not_recorded(
    tmp_path: Path, another: dict[str, Any]
) -> None:
    """Others would take the rank for failed, although it may be complete in a minute."""
    attempt = tmp_path / ".rank-00003.0123456789abcdef.partial"
    attempt.mkdir()
    (attempt / "owner.json").write_text(json.dumps(another))

    record_failure(tmp_path, 3, "run", RuntimeError("second"))
    record_failure(tmp_path, 4, "run", RuntimeError("another rank"))

    assert {path.name for path in tmp_path.iterdir()} == {attempt.name, "rank-00004.failed.json"}


@pytest.mark.parametrize("kind", ["fifo", "directory", "dangling link"])
def test_something_else_in_place_of_a_record_neither_hangs_nor_is_destroyed(
    tmp_path: Path, kind: str
) -> None:
    path = tmp_path / "rank-00003.failed.json"
    {
        "fifo": lambda: os.mkfifo(path),
        "directory": path.mkdir,
        "dangling link": lambda: path.symlink_to("nowhere"),
    }[kind]()
    before = os.lstat(path)

    forget_failure(tmp_path, 3)
    error = RuntimeError("it failed")
    record_failure(tmp_path, 3, "run", error)

    assert "something else of that name" in error.__notes__[0]
    assert wait_for_others(tmp_path, 4, 0) == (0, 1, 2, 3)
    assert (os.lstat(path).st_ino, os.lstat(path).st_mode) == (before.st_ino, before.st_mode)
