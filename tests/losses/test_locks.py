"""The lock of an output as commands meet it: spoiled, left by the dead or by another host, on disks without locks."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest

from tests.dumps.dumps import load
from tests.dumps.worlds import World
from tests.losses.commands import KILL, Gate, Strike, end, exit_code, line, merge, run, start

NO_LOCKS = {
    "ENOSYS": "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n",
    "ENOLCK": "import errno, fcntl\ndef flock(*_): raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))\n",
    "of each host alone": "import fcntl\ndef flock(*_): pass\n",
}


@pytest.mark.parametrize("data", [bytes(40), b"proc", b"\xff" * 9], ids=["NULs", "half", "noise"])
def test_a_lock_that_a_power_loss_spoiled_blocks_nobody(one: World, data: bytes) -> None:
    assert run(*merge(one), strikes=[Strike("os.rename", "plan.json", KILL)])[0] == -signal.SIGKILL
    records = one.folder / "out.partial" / ".shardmerge"
    (records / "lock").write_bytes(data)
    for record in (records / "owners").glob("*"):
        record.write_bytes(data)
    code, said = run(*merge(one))
    assert code == 0, said
    assert load(one.out) == one.model.tensors
    (one.out / ".shardmerge" / "lock").write_bytes(data)
    assert exit_code("metadata", one.out, "--set", "config.rope_theta=5") == 0


@pytest.mark.parametrize("kind", NO_LOCKS)
@pytest.mark.parametrize("other", [[], ["--part", "1/1"], ["--finalize"]], ids=["merge", "part", "finalize"])
def test_where_locks_do_not_work_a_second_writer_is_refused(
    one: World, tmp_path: Path, kind: str, other: list[str]
) -> None:
    gate, without = Gate(tmp_path / "gate"), NO_LOCKS[kind] + "fcntl.flock = flock"
    at_work = [Strike("os.rename", "model-00012-of-*.safetensors", gate.act)]
    first = start(line(*merge(one), strikes=at_work, before=without))
    assert gate.reached(first)
    code, said = end(start(line(*merge(one, *other), before=without)))
    gate.open()
    ended, text = end(first)
    assert code == 6, said
    assert f"is being written by a merge (process {first.pid} on " in said
    assert ended == 0, text
    assert load(one.out) == one.model.tensors


@pytest.mark.parametrize("kind", NO_LOCKS)
def test_where_locks_do_not_work_a_killed_merge_blocks_nobody(one: World, kind: str) -> None:
    without = NO_LOCKS[kind] + "fcntl.flock = flock"
    killed = [Strike("os.rename", "plan.json", KILL)]
    assert end(start(line(*merge(one), strikes=killed, before=without)))[0] == -signal.SIGKILL
    code, said = end(start(line(*merge(one), before=without)))
    assert code == 0, said
    assert load(one.out) == one.model.tensors


def test_an_owner_on_another_host_is_named_and_goes_with_break_lock_alone(one: World) -> None:
    assert run(*merge(one), strikes=[Strike("os.rename", "plan.json", KILL)])[0] == -signal.SIGKILL
    (record,) = (one.folder / "out.partial" / ".shardmerge" / "owners").iterdir()
    left = json.loads(record.read_bytes()) | {"host": "node7", "machine": "another", "boot": "another"}
    record.write_text(json.dumps(left))
    for more in ([], ["--part", "1/2"], ["--finalize"]):
        code, said = run(*merge(one, *more))
        assert code == 6, said
        assert f"by a merge (process {left['process']} on node7, since {left['since']})" in said
        assert "--break-lock" in said
    assert exit_code(*merge(one, "--break-lock")) == 0
    assert load(one.out) == one.model.tensors
    shutil.copy(one.out / "config.json", one.folder / "before")
    (one.out / ".shardmerge" / "owners" / record.name).write_text(json.dumps(left))
    change = ["metadata", one.out, "--set", "config.rope_theta=5"]
    assert exit_code(*change) == 6
    assert (one.out / "config.json").read_bytes() == (one.folder / "before").read_bytes()
    assert exit_code(*change, "--break-lock") == 0


@pytest.mark.parametrize(
    ("event", "name"),
    [
        ("os.mkdir", ".shardmerge"),
        ("open", "lock"),
        ("os.mkdir", "owners"),
        ("os.rename", "*.json"),
        ("os.mkdir", "receipts"),
        ("os.rename", "commit.json"),
        ("os.rename", "out"),
    ],
)
def test_a_merge_that_is_killed_while_it_locks_or_publishes_blocks_nobody(
    one: World, event: str, name: str
) -> None:
    assert run(*merge(one), strikes=[Strike(event, name, KILL)])[0] == -signal.SIGKILL
    code, said = run(*merge(one))
    assert code == 0, said
    assert load(one.out) == one.model.tensors
    assert not (one.folder / "out.partial").exists()
