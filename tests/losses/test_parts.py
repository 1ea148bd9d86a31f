"""A merge in parts: what happened to shards between a part and --finalize is seen, and a finalize can be repeated."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.dumps.dumps import Topology, load, tree
from tests.dumps.worlds import MakeWorld, World
from tests.losses.commands import KILL, Gate, Strike, end, exit_code, line, merge, run, start


def partial(one: World) -> Path:
    return one.folder / "out.partial"


def parts(one: World) -> list[int]:
    return [exit_code(*merge(one, "--part", part)) for part in ("1/2", "2/2")]


def change(path: Path, how: str) -> None:
    """Spoil a file. One of the dump that is linked stays as it is."""
    data = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(data[:-1])
    elif how == "other bytes":
        path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


@pytest.mark.parametrize("how", ["gone", "cut", "other bytes", "receipt of another shard"])
@pytest.mark.parametrize("which", [0, -1], ids=["adopted", "assembled"])
def test_finalize_publishes_no_shard_that_is_not_what_its_part_wrote(
    one: World, which: int, how: str
) -> None:
    assert parts(one) == [0, 0]
    shards = sorted(partial(one).glob("model-*.safetensors"))
    if how.startswith("receipt"):
        receipts = sorted((partial(one) / ".shardmerge" / "receipts").glob("model-*.json"))
        receipts[which].write_bytes(receipts[1].read_bytes())
    else:
        change(shards[which], how)
    code, said = run(*merge(one, "--finalize"))
    assert code in (3, 4), said
    assert not one.out.exists()
    assert parts(one) == [0, 0]
    assert exit_code(*merge(one, "--finalize")) == 0
    assert load(one.out) == one.model.tensors


def test_the_record_of_a_part_names_dump_plan_and_each_shard(one: World) -> None:
    assert parts(one) == [0, 0]
    records = (partial(one) / ".shardmerge" / "receipts").glob("part-*-of-2.json")
    told = [json.loads(path.read_bytes()) for path in records]
    assert {(part["ledger_digest"], part["plan_digest"], part["checked"]) for part in told} == {
        (told[0]["ledger_digest"], told[0]["plan_digest"], True)
    }
    assert {part["generation"] for part in told} == {"run run-1, step 100, attempt 0"}
    sizes = {name: seen["num_bytes"] for part in told for name, seen in part["shards"].items()}
    assert sizes == {path.name: path.stat().st_size for path in partial(one).glob("model-*.safetensors")}
    assert all(len(seen["xxh3_128"]) == 32 for part in told for seen in part["shards"].values())
    assert len(told[0]["ledger_digest"]) == len(told[0]["plan_digest"]) == 32


def in_container(command: list[str]) -> list[str]:
    """A command line that runs another one among processes of its own: its id is the same in each of them."""
    return ["unshare", "--pid", "--fork", "--kill-child", "sh", "-c", '"$@" & wait $!', "sh", *command]


def containers() -> bool:
    if shutil.which("unshare") is None:
        return False
    return subprocess.run(in_container(["true"]), check=False, capture_output=True).returncode == 0


@pytest.mark.skipif(not containers(), reason="may not make namespaces of processes")
def test_a_part_that_runs_twice_in_two_containers_with_one_process_id_spoils_nothing(
    world: MakeWorld, tmp_path: Path
) -> None:
    """The second is killed while it writes the shard that the first has written half of."""
    one = world(Topology(tp=2)).write()
    gate = Gate(tmp_path / "gate")
    half_way = [Strike("os.write", ".model*", "pass"), Strike("os.write", ".model*", gate.act)]
    given = ["merge", one.dump, one.out, "--hf-reference", one.reference, "--workers", 1]
    first = start(in_container(line(*given, "--part", "1/1", strikes=half_way)))
    assert gate.reached(first)
    killed = [Strike("os.write", ".model*", KILL)]
    with start(in_container(line(*given, "--part", "1/1", strikes=killed))) as second:
        refused = end(second)
    gate.open()
    assert end(first)[0] == 0
    assert exit_code(*given, "--finalize") == 0
    assert load(one.out) == one.model.tensors
    assert refused[0] == 6, refused


def test_a_part_of_another_step_that_is_still_running_is_not_mixed_in(one: World, tmp_path: Path) -> None:
    """It writes a shard of step 100 when the parts of step 200 are complete, and is killed before its receipt."""
    old = one.dump.rename(one.folder / "step-100")
    one.model.tensors = {
        name: (dtype, shape, bytes(byte ^ 1 for byte in data))
        for name, (dtype, shape, data) in one.model.tensors.items()
    }
    one.write(step=200)
    gate = Gate(tmp_path / "gate")
    late = [
        Strike("os.rename", "model-*.safetensors", gate.act),
        Strike("os.rename", "model-*.safetensors.json", KILL),
    ]
    first = start(line("merge", old, *merge(one)[2:], "--part", "2/2", strikes=late))
    assert gate.reached(first)
    codes = parts(one)
    gate.open()
    assert end(first)[0] == -signal.SIGKILL
    code, said = run(*merge(one, "--finalize"))
    assert code in (0, 3), said
    assert code or load(one.out) == one.model.tensors  # and no shard of step 100
    assert codes == [6, 6]
    assert parts(one) == [0, 0]
    assert exit_code(*merge(one, "--finalize")) == 0
    assert load(one.out) == one.model.tensors


MOMENTS = ["plan.json", "config.json", "model.safetensors.index.json", "out"]


@pytest.mark.parametrize(
    "act", [KILL, "raise OSError(28, os.strerror(28), given[1])"], ids=["killed", "failed"]
)
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_finalize_that_was_killed_or_failed_can_be_repeated(one: World, moment: str, act: str) -> None:
    assert parts(one) == [0, 0]
    before = {path: os.stat(path).st_mtime_ns for path in partial(one).glob("model-*.safetensors")}
    code, said = run(*merge(one, "--finalize"), strikes=[Strike("os.rename", moment, act)])
    assert code in (1, -9), said
    assert exit_code(*merge(one, "--finalize")) == 0
    assert load(one.out) == one.model.tensors
    assert {path: os.stat(one.out / path.name).st_mtime_ns for path in before} == before
    assert "Nothing was published" in said or code == -9
    assert not partial(one).exists()
    assert not any(name.startswith(".shardmerge/receipts/part-") for name in tree(one.out))
