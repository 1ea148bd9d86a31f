"""How an output appears: never over something, never beside another merge, whole or not at all."""

from __future__ import annotations

import os
import shutil
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from shardmerge.common.errors import OutputExistsError, OutputLockedError
from shardmerge.phase2_merge.commands import merge as merge_dump
from shardmerge.phase2_merge.output import lock, publish
from tests.dumps.dumps import Cut, load
from tests.dumps.worlds import MakeWorld


@pytest.mark.parametrize("kind", ["file", "folder", "dangling link"])
def test_an_output_that_exists_is_left_alone(world: MakeWorld, kind: str) -> None:
    one = world().write()
    if kind == "file":
        one.out.write_text("mine")
    elif kind == "folder":
        one.out.mkdir()
    else:
        one.out.symlink_to("nowhere")
    with pytest.raises(OutputExistsError) as error:
        one.merge()
    assert error.value.exit_code == 6
    assert not one.folder.joinpath("out.partial").exists()


def test_a_partial_output_of_somebody_else_is_left_alone(world: MakeWorld) -> None:
    one = world().write()
    (one.folder / "out.partial").mkdir()
    (one.folder / "out.partial" / "mine").write_text("mine")
    with pytest.raises(OutputExistsError, match="no merge of shardmerge made it"):
        one.merge()
    assert (one.folder / "out.partial" / "mine").read_text() == "mine"


def test_an_output_that_appears_meanwhile_is_left_alone(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = world().write()
    describe = merge_dump._describe
    monkeypatch.setattr(
        merge_dump, "_describe", lambda *given: (describe(*given), one.out.write_text("mine"))
    )
    with pytest.raises(OutputExistsError):
        one.merge()
    assert one.out.read_text() == "mine"
    assert not (one.folder / "out.partial").exists()


def test_the_lock_names_its_holder(world: MakeWorld) -> None:
    one = world().write()
    seen = []

    class Nosy(ThreadPoolExecutor):
        """Tries to merge into the same output in the middle of a merge."""

        def submit(self, fn, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            with pytest.raises(OutputLockedError) as error:
                one.merge()
            seen.append(error.value)
            return super().submit(fn, *args, **kwargs)

    one.cuts["lm_head.weight"] = [Cut(0, (0, 0), (12, 8)), Cut(0, (12, 0), (12, 8))]
    shutil.rmtree(one.dump)
    one.write()
    with Nosy(1) as executor:
        one.merge(executor=executor)
    assert f"process {os.getpid()} on " in seen[0].holder
    assert seen[0].exit_code == 6
    assert load(one.out) == one.model.tensors


def test_a_lock_of_another_host_is_respected(world: MakeWorld) -> None:
    one = world().write()
    lock = one.folder / "out.partial" / ".shardmerge" / "lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("process 12 on another-host\n")
    with pytest.raises(OutputLockedError, match="process 12 on another-host"):
        one.merge()
    assert lock.read_text() == "process 12 on another-host\n"


def test_a_task_that_cannot_be_stopped_does_not_keep_the_partial_output(world: MakeWorld) -> None:
    """Somebody else's executor may still run what was cancelled."""
    one = world().write()

    def go_on(folder: Path) -> None:
        for number in range(30):
            if folder.exists():
                (folder / f"late-{number}").write_text("late")
                time.sleep(0.01)

    def fail_beside(executor: Executor) -> None:
        with publish.publishing(one.out, None) as folder:
            executor.submit(go_on, folder)
            while not (folder / "late-3").exists():
                time.sleep(0.001)
            raise ZeroDivisionError

    with ThreadPoolExecutor(1) as executor, pytest.raises(ZeroDivisionError):
        fail_beside(executor)
    assert {path.name for path in one.folder.iterdir()} == {"dump", "reference"}


def test_an_output_that_is_published_while_the_lock_is_asked_for_is_left_alone(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock that is got was that of the merge which has just ended: there is no partial output any more."""
    one = world().write()
    acquire = lock._acquire

    def late(*given: Any, **how: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(lock, "_acquire", acquire)
            one.merge()
        acquire(*given, **how)

    monkeypatch.setattr(lock, "_acquire", late)
    began = time.monotonic()
    with pytest.raises(OutputExistsError), publish.publishing(one.out, None):
        pytest.fail("it was published before")
    assert time.monotonic() - began < 2
    assert load(one.out) == one.model.tensors
    assert not (one.folder / "out.partial").exists()
