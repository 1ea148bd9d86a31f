"""Killed anywhere, run again: the same bytes, and what was finished is not written a second time."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import xxhash

from shardmerge.common.errors import OutputExistsError
from shardmerge.phase2_merge import merge, merge_part, verify
from shardmerge.phase2_merge.output import receipts
from tests.dumps.dumps import Topology, tree
from tests.dumps.worlds import MakeWorld, World

KILLED = """
import os, signal, sys
from pathlib import Path
from shardmerge.phase2_merge import merge

def die_at(step):
    def count(method):
        def counted(*given, **more):
            nonlocal step
            if not step:
                os.kill(os.getpid(), signal.SIGKILL)
            step -= 1
            return method(*given, **more)
        return counted
    for name in ("rename", "unlink", "mkdir"):
        setattr(Path, name, count(getattr(Path, name)))
    for name in ("link", "ftruncate", "pwrite"):
        setattr(os, name, count(getattr(os, name)))

dump, reference, first, *outs = sys.argv[1:]
for step, out in enumerate(outs, int(first)):
    child = os.fork()
    if not child:
        die_at(step)
        merge([dump], out, hf_reference=reference, workers=1, max_shard_bytes=500)
        os._exit(0)
    print(os.waitpid(child, 0)[1], flush=True)
"""
STEPS = 64


def killed(one: World, outs: list[Path], first: int = 0) -> list[str]:
    """Merge into each of `outs`, killed one file operation later each time; the exit statuses, 9 if killed."""
    given = [str(one.dump), str(one.reference), str(first), *map(str, outs)]
    command = [sys.executable, "-W", "ignore", "-c", KILLED, *given]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def test_killed_at_any_step_a_second_run_gives_the_same_bytes(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2)).write()
    one.merge(max_shard_bytes=500)
    outs = [tmp_path / f"killed-{step}" for step in range(STEPS)]
    codes = killed(one, outs)
    assert (codes[0], codes[-1]) == ("9", "0")  # at last there were fewer steps than that
    kept = []
    for out in outs:
        report = merge([one.dump], out, hf_reference=one.reference, workers=1, max_shard_bytes=500)
        kept.append(report.kept_shards)
        assert tree(out) == tree(one.out)
        assert not out.with_name(f"{out.name}.partial").exists()
    assembled = len(list((one.out / ".shardmerge" / "receipts").iterdir()))
    assert assembled > 2
    assert set(range(assembled + 1)) == set(kept)


def late(one: World) -> Path:
    """OUT.partial of a merge that was killed when six of its nine split shards were finished."""
    outs = [one.folder / "tries" / str(step) for step in range(STEPS)]
    outs[0].parent.mkdir()
    killed(one, outs)
    partials = [out.with_name(f"{out.name}.partial") for out in outs]
    last = max(partial for partial in partials if partial.exists() and _receipts(partial) == 6)
    return last.rename(one.folder / "out.partial")


def _receipts(partial: Path) -> int:
    return len(list((partial / ".shardmerge" / "receipts").glob("model-*.json")))


def _is_same(old: os.stat_result, new: os.stat_result) -> bool:
    """Not the inode alone: a new file may get the number of one that was just removed."""
    return (old.st_ino, old.st_mtime_ns) == (new.st_ino, new.st_mtime_ns)


def test_finished_shards_are_kept_as_they_are_and_a_spoiled_one_is_written_again(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    partial = late(one)
    receipts = (partial / ".shardmerge" / "receipts").glob("model-*.json")
    shards = [partial / path.stem for path in sorted(receipts)]
    before = {path.name: path.stat() for path in shards}
    shards[0].write_bytes(shards[0].read_bytes()[:-1])
    (partial / f".{shards[1].name}.0123456789abcdef.tmp").write_text("")
    report = one.merge(max_shard_bytes=500)
    assert report.kept_shards == len(shards) - 1
    assert f"{len(shards) - 1:,} shards were finished by an earlier attempt, and kept" in report.text()
    after = {path.name: path.stat() for path in one.out.glob("*.safetensors")}
    same = [name for name, old in before.items() if _is_same(old, after[name])]
    assert same == [path.name for path in shards[1:]]
    fresh = one.folder / "fresh"
    merge([one.dump], fresh, hf_reference=one.reference, workers=1, max_shard_bytes=500)
    assert tree(one.out) == tree(fresh)


def test_shards_of_another_plan_are_not_kept(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    late(one)
    assert one.merge(max_shard_bytes=400).kept_shards == 0


def test_shards_of_another_dump_are_not_kept(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    late(one)
    shutil.rmtree(one.dump)
    one.write(step=200)
    assert one.merge(max_shard_bytes=500).kept_shards == 0


def test_shards_that_were_not_checked_are_not_kept_by_a_merge_that_checks(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    partial = late(one)
    for path in (partial / ".shardmerge" / "receipts").iterdir():
        told = json.loads(path.read_bytes()) | {"checked": False}
        del told["xxh3_128"]
        body = json.dumps(told, sort_keys=True, separators=(",", ":")).encode() + b"\n"
        path.write_text(json.dumps(told | {"xxh3_128": xxhash.xxh3_128_hexdigest(body)}))
    assert one.merge(max_shard_bytes=500).kept_shards == 0


def test_a_shard_whose_receipt_was_damaged_is_written_again(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    partial = late(one)
    count = _receipts(partial)
    path = next((partial / ".shardmerge" / "receipts").glob("model-*.json"))
    name, digest = next(iter(json.loads(path.read_bytes())["tensors"].items()))
    other = ("0" if digest[0] != "0" else "1") + digest[1:]
    path.write_text(path.read_text().replace(f'"{name}":"{digest}"', f'"{name}":"{other}"'))
    assert one.merge(max_shard_bytes=500).kept_shards == count - 1
    assert verify(one.out).checksums_compared == len(one.model.tensors)


def test_names_that_no_merge_creates_stay_in_a_partial_output(world: MakeWorld) -> None:
    one = world(Topology(tp=2)).write()
    partial = late(one)
    records = partial / ".shardmerge"
    mine = [
        "notes.txt", "README.md", "eval.json", ".hidden", "model.safetensors.bak", ".shardmerge/notes.json",
        ".shardmerge/receipts/notes.json",
    ]  # fmt: skip
    ours = [
        "config.json", "hf_quant_config.json", "model.safetensors.index.json", "vocab.json", "tokenizer.model.v3",
        "modeling_tiny.py", "model-00099-of-00099.safetensors", ".config.json.0123456789abcdef.tmp",
        ".shardmerge/plan.json", ".shardmerge/report.json", ".shardmerge/ledger.parquet",
        ".shardmerge/.plan.json.0123456789abcdef.tmp", ".shardmerge/receipts/stale.safetensors.json",
        ".shardmerge/receipts/part-1-of-2.json", ".shardmerge/receipts/.part-1-of-2.json.0123456789abcdef.tmp",
    ]  # fmt: skip
    for name in mine + ours:
        (partial / name).write_text(f"{name}, of another attempt")
    (partial / "model.safetensors").symlink_to(records)
    one.merge(max_shard_bytes=500)
    fresh = one.folder / "fresh"
    merge([one.dump], fresh, hf_reference=one.reference, workers=1, max_shard_bytes=500)
    kept = {name: f"{name}, of another attempt".encode() for name in mine}
    assert tree(one.out) == tree(fresh) | kept
    assert not (one.out / "model.safetensors").is_symlink()


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_weights_that_no_merge_made_are_never_published(world: MakeWorld, kind: str) -> None:
    """Readers that take every safetensors file of a folder would load them."""
    one = world(Topology(tp=2)).write()
    stranger = late(one) / "stranger.safetensors"
    if kind == "file":
        stranger.write_text("mine")
    elif kind == "folder":
        stranger.mkdir()
    else:
        stranger.symlink_to(one.reference)
    with pytest.raises(OutputExistsError, match=r"holds stranger.safetensors, which no merge"):
        one.merge(max_shard_bytes=500)
    assert os.path.lexists(stranger)
    assert not one.out.exists()


def test_a_receipt_goes_before_the_shard_that_it_describes_is_written_again(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a merge that is killed between the two leaves another dump's shard beside a receipt of this one."""
    one = world(Topology(tp=2)).write()
    partial = late(one)
    shutil.rmtree(one.dump)
    one.write(step=200)

    def die(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(receipts, "write", die)
    with pytest.raises(ZeroDivisionError):  # a part leaves what is there
        merge_part([one.dump], one.out, "1/1", hf_reference=one.reference, workers=1, max_shard_bytes=500)
    assert _receipts(partial) == 0
