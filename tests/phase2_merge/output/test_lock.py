"""The lock of an output: where flock works, where it does not, where it lies; and what every crash leaves of it."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import CorruptFileError, LockLostError, OutputLockedError, ShardmergeError
from shardmerge.common.processes import owner
from shardmerge.phase2_merge import metadata
from tests.dumps.dumps import Cut, load
from tests.dumps.worlds import MakeWorld, World

ELSEWHERE = "another-host"


def records(folder: Path) -> Path:
    return folder / ".shardmerge" / "owners"


def leave_record(folder: Path, **facts: Any) -> Path:
    """Leave in an output the record of an owner who is not here."""
    other = dataclasses.replace(owner.here("a merge"), **facts)
    records(folder).mkdir(parents=True, exist_ok=True)
    path = records(folder) / f"{other.token}.json"
    path.write_text(json.dumps(other.as_json()))
    return path


class Meddling(ThreadPoolExecutor):
    """An executor that does something else in the middle of a merge."""

    def __init__(self, act: Callable[[], None]) -> None:
        super().__init__(1)
        self.act = act

    def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
        self.act()
        return super().submit(fn, *args, **kwargs)


@pytest.fixture
def one(world: MakeWorld) -> World:
    """A dump with one tensor that is assembled, so that an executor is used."""
    made = world()
    made.cuts["lm_head.weight"] = [Cut(0, (0, 0), (12, 8)), Cut(0, (12, 0), (12, 8))]
    return made.write()


def without_flock(code: int) -> Callable[..., None]:
    def flock(_file: int, _how: int) -> None:
        raise OSError(code, os.strerror(code))

    return flock


@pytest.fixture(
    params=["flock", errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, "on every host its own"], ids=str
)
def locks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """File systems on which flock works, does not exist, or succeeds for everybody."""
    if isinstance(request.param, int):
        monkeypatch.setattr(fcntl, "flock", without_flock(request.param))
    elif request.param != "flock":
        monkeypatch.setattr(fcntl, "flock", lambda _file, _how: None)


@pytest.mark.usefixtures("locks")
def test_a_second_merge_is_refused_and_told_who_writes_and_since_when(one: World) -> None:
    seen: list[OutputLockedError] = []

    def try_too() -> None:
        with pytest.raises(OutputLockedError) as error:
            one.merge()
        seen.append(error.value)

    with Meddling(try_too) as executor:
        one.merge(executor=executor)
    assert f"a merge (process {os.getpid()} on " in seen[0].holder
    assert " UTC)" in seen[0].holder
    assert seen[0].exit_code == 6
    assert load(one.out) == one.model.tensors
    assert list(records(one.out).iterdir()) == []


@pytest.mark.usefixtures("locks")
def test_metadata_waits_for_nobody_and_disturbs_nobody(one: World) -> None:
    one.merge()
    leave_record(one.out, token="00", process=os.getpid())
    with pytest.raises(OutputLockedError):
        metadata(one.out, corrections=["config.rope_theta=5"])
    with pytest.raises(OutputLockedError):
        one.merge()
    assert json.loads((one.out / "config.json").read_bytes()).get("rope_theta") != 5


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize(
    "facts",
    [{"process": 0, "started": 0}, {"started": 1}, {"boot": "an earlier start of this machine"}],
    ids=["the process ended", "its id was used again", "the machine was started again"],
)
def test_a_dead_owner_of_this_host_is_taken_over(one: World, facts: dict[str, Any]) -> None:
    left = leave_record(one.folder / "out.partial", **facts)
    one.merge()
    assert load(one.out) == one.model.tensors
    assert not left.exists()
    assert list(records(one.out).iterdir()) == []


@pytest.mark.usefixtures("locks")
def test_an_owner_on_another_host_is_named_and_goes_with_break_lock_only(one: World) -> None:
    leave_record(
        one.folder / "out.partial",
        host=ELSEWHERE,
        boot="another",
        process=12,
        since="2026-01-02 03:04:05 UTC",
    )
    with pytest.raises(OutputLockedError) as error:
        one.merge()
    for words in ("a merge (process 12 on another-host, since 2026-01-02 03:04:05 UTC)", "--break-lock"):
        assert words in error.value.message()
    one.merge(break_lock=True)
    assert load(one.out) == one.model.tensors
    leave_record(one.out, host=ELSEWHERE, boot="another")
    with pytest.raises(OutputLockedError, match="--break-lock"):
        metadata(one.out, corrections=["config.rope_theta=5"])
    metadata(one.out, corrections=["config.rope_theta=5"], break_lock=True)
    assert json.loads((one.out / "config.json").read_bytes())["rope_theta"] == 5


@pytest.mark.usefixtures("locks")
def test_break_lock_does_not_take_it_from_a_process_that_runs_here(one: World) -> None:
    leave_record(one.folder / "out.partial", token="00")
    with pytest.raises(OutputLockedError) as error:
        one.merge(break_lock=True)
    assert "--break-lock" not in error.value.message()


def test_another_container_of_this_host_is_judged_by_flock_where_there_is_one(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Process ids of another container mean nothing here, but one kernel keeps the locks of both."""
    left = leave_record(one.folder / "out.partial", namespace="pid:[1]", process=1)
    with monkeypatch.context() as patched:
        patched.setattr(fcntl, "flock", without_flock(errno.ENOLCK))
        with pytest.raises(OutputLockedError, match="--break-lock"):
            one.merge()
    one.merge()
    assert load(one.out) == one.model.tensors
    assert not left.exists()


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize("data", [b"", bytes(300), b'{"token": "half', b"[]", b"\xff\xfe"], ids=repr)
def test_a_record_that_a_power_loss_spoiled_blocks_nobody(one: World, data: bytes) -> None:
    leave_record(one.folder / "out.partial").write_bytes(data)
    one.merge()
    assert load(one.out) == one.model.tensors


@pytest.mark.usefixtures("locks")
@pytest.mark.parametrize("data", [b"", bytes(300), b"process 12 on another-host\n"], ids=repr)
def test_what_the_lock_file_holds_does_not_matter(one: World, data: bytes) -> None:
    lock = one.folder / "out.partial" / ".shardmerge" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_bytes(data)
    inode = lock.stat().st_ino
    one.merge()
    assert (one.out / ".shardmerge" / "lock").stat().st_ino == inode  # it was never removed, and came along
    metadata(one.out, corrections=["config.rope_theta=5"])
    assert (one.out / ".shardmerge" / "lock").stat().st_ino == inode


@pytest.mark.parametrize("kind", ["folder", "FIFO", "link"])
def test_something_else_in_place_of_the_lock_is_refused(one: World, kind: str) -> None:
    lock = one.folder / "out.partial" / ".shardmerge" / "lock"
    lock.parent.mkdir(parents=True)
    if kind == "folder":
        lock.mkdir()
    elif kind == "FIFO":
        os.mkfifo(lock)
    else:
        lock.symlink_to(one.folder / "elsewhere")
    with pytest.raises(CorruptFileError, match="which a lock is"):
        one.merge()
    assert not (one.folder / "elsewhere").exists()


@pytest.mark.usefixtures("locks")
def test_whoever_lost_the_lock_publishes_nothing(one: World) -> None:
    def break_it() -> None:
        for record in records(one.folder / "out.partial").iterdir():
            record.unlink()

    with Meddling(break_it) as executor, pytest.raises(LockLostError, match="was taken away"):
        one.merge(executor=executor)
    assert not one.out.exists()
    one.merge()
    assert load(one.out) == one.model.tensors


def test_a_lock_that_is_got_when_its_folder_was_published_is_not_taken_for_one(
    one: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A merge waits to lock, another one publishes meanwhile: the lock that is got is that of OUT."""
    real = fcntl.flock
    first: list[int] = []

    def late(file: int, how: int) -> None:
        if not first:
            first.append(file)
            one.merge()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    with pytest.raises(ShardmergeError) as error:
        one.merge()
    assert error.value.exit_code == 6
    assert load(one.out) == one.model.tensors
    shutil.rmtree(one.out)
    one.merge()


def test_of_many_processes_at_once_one_publishes_and_the_others_are_refused(one: World) -> None:
    start = "from shardmerge.common.command.group import main; main()"
    command = [sys.executable, "-W", "ignore", "-c", start]
    given = ["merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", "1"]
    running = [
        subprocess.Popen([*command, *map(str, given)], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for _ in range(6)
    ]
    codes = sorted((process.communicate(), process.returncode)[1] for process in running)
    assert set(codes) <= {0, 6}
    assert 0 in codes  # whoever came after it was published wrote its metadata again
    assert load(one.out) == one.model.tensors
    assert not (one.folder / "out.partial").exists()


def test_what_cannot_be_removed_from_among_the_records_is_named_with_its_whole_path(one: World) -> None:
    one.merge()
    strange = one.out / ".shardmerge" / "owners" / "x"
    strange.mkdir()
    with pytest.raises(IsADirectoryError) as found:
        metadata(one.out)
    assert found.value.filename == str(strange)
