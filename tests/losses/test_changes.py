"""Files of a dump, or finished shards, that somebody changes while a merge runs or between two: nothing of it is
published, and nothing that is right is lost."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.dumps.dumps import load, tree
from tests.dumps.worlds import World
from tests.losses.commands import INTERRUPT, KILL, Gate, Strike, end, exit_code, line, merge, run, start

ADOPTED = "model-00001-of-*.safetensors"
EDIT = """
with open({path!r}, "r+b") as file:
    file.seek(-1, 2)
    last = file.read(1)[0]
    file.seek(-1, 2)
    file.write(bytes([last ^ 1]))
"""
REPLACE = """
with open({path!r}, "rb") as file:
    data = file.read()
os.unlink({path!r})
with open({path!r}, "wb") as file:
    file.write(data[:-1] + bytes([data[-1] ^ 1]))
"""


@pytest.mark.parametrize("how", [EDIT, REPLACE], ids=["edited", "replaced"])
@pytest.mark.parametrize(
    ("event", "name"), [("os.link", ADOPTED), ("os.rename", "plan.json")], ids=["linked", "described"]
)
def test_a_fragment_that_changes_while_it_is_merged_is_not_published(
    one: World, event: str, name: str, how: str
) -> None:
    """Just before it is linked, and when all shards are written."""
    fragment = next(path for path in sorted(one.dump.rglob("whole-*.safetensors")))
    (partial,) = (one.folder / "out.partial",)
    code, said = run(*merge(one), strikes=[Strike(event, name, how.format(path=str(fragment)))])
    if code == 0:  # what was linked before somebody replaced the fragment is as it was
        assert load(one.out) == one.model.tensors
        assert (name, how) == ("plan.json", REPLACE)
    else:
        assert code == 4, said
        assert str(fragment) in said
        assert "was recorded when they were written" in said
        assert not one.out.exists()
        assert partial.exists()


def shards_and_receipts(one: World) -> tuple[list[Path], list[Path]]:
    partial = one.folder / "out.partial"
    receipts = sorted((partial / ".shardmerge" / "receipts").glob("model-*.json"))
    return [partial / path.stem for path in receipts], receipts


@pytest.mark.parametrize("how", ["other bytes", "of another shard"])
def test_a_finished_shard_that_changed_beside_its_receipt_is_not_kept(one: World, how: str) -> None:
    """By a disk that forgets, or by somebody."""
    assert run(*merge(one), strikes=[Strike("os.rename", "plan.json", KILL)])[0] == -signal.SIGKILL
    shards, _ = shards_and_receipts(one)
    data = shards[0].read_bytes()
    if how == "other bytes":
        shards[0].write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    else:
        other = next(path for path in shards[1:] if path.stat().st_size == len(data))
        shards[0].write_bytes(other.read_bytes())
    code, said = run(*merge(one))
    assert code == 0, said
    assert load(one.out) == one.model.tensors
    assert f"{len(shards) - 1:,} shards were finished by an earlier attempt, and kept" in said


FULL = "raise OSError(28, os.strerror(28), given[1])"


@pytest.mark.parametrize(("act", "code"), [(INTERRUPT, 130), (FULL, 1)], ids=["Ctrl-C", "full disk"])
def test_a_merge_that_ends_early_deletes_no_finished_shard(one: World, act: str, code: int) -> None:
    moment = Strike("os.rename", "model-00012-of-*.safetensors", act)
    ended, said = run(*merge(one), strikes=[moment])
    assert ended == code, said
    shards, _ = shards_and_receipts(one)
    assert len(shards) >= 10
    assert f"What was written stays in {one.out}.partial for the next attempt." in said
    before = {path.name: path.stat().st_mtime_ns for path in shards}
    assert exit_code(*merge(one)) == 0
    assert {name: (one.out / name).stat().st_mtime_ns for name in before} == before
    assert load(one.out) == one.model.tensors


@pytest.mark.parametrize("how", ["gone", "cut", "longer", "other header"])
@pytest.mark.parametrize("which", [0, -1], ids=["adopted", "assembled"])
def test_a_merge_into_an_output_whose_shards_are_not_whole_says_so(one: World, which: int, how: str) -> None:
    assert exit_code(*merge(one)) == 0
    shard = sorted(one.out.glob("model-*.safetensors"))[which]
    data = shard.read_bytes()
    shard.unlink()
    if how == "cut":
        shard.write_bytes(data[:-1])
    elif how == "longer":
        shard.write_bytes(data + b"\0")
    elif how == "other header":
        shard.write_bytes(data.replace(b'"BF16"', b'"F16" ', 1))
    before = tree(one.out)
    code, said = run(*merge(one))
    assert code in (3, 4), said
    assert shard.name in said
    assert tree(one.out) == before
    if how != "other header":  # metadata looks at names and sizes
        assert exit_code("metadata", one.out, "--set", "config.rope_theta=5") in (3, 4)
        assert tree(one.out) == before


def test_a_merge_beside_one_that_was_interrupted_has_all_of_its_shards(one: World, tmp_path: Path) -> None:
    """If the first removes what it wrote, it removes the second's shards, just before that publishes them."""
    without_lock, without_shards, written = (Gate(tmp_path / name) for name in "abc")
    strikes = [
        Strike("os.rename", "model-00012-of-*.safetensors", INTERRUPT),
        Strike("os.rmdir", ".shardmerge", without_lock.act),
        Strike("os.remove", "report.json", without_shards.act),
    ]
    first = start(line(*merge(one), strikes=strikes, before=SHARDS_FIRST))
    without_lock.reached(first)
    second = start(line(*merge(one), strikes=[Strike("os.rename", "config.json", written.act)]))
    written.reached(second)
    without_lock.open()
    without_shards.reached(first)
    written.open()
    code, said = end(second)
    without_shards.open()
    assert end(first)[0] == 130
    assert code == 0, said
    assert load(one.out) == one.model.tensors
    assert exit_code("verify", one.out) == 0


# A folder is listed in any order. This one ends with .shardmerge.
SHARDS_FIRST = """
class Listed(list):
    def __enter__(self):
        return self
    def __exit__(self, *_):
        pass

def scandir(path, scan=os.scandir):
    with scan(path) as entries:
        return Listed(sorted(entries, key=lambda entry: entry.name, reverse=True))

os.scandir = scandir
"""
