"""A merge in parts: any order, any time, killed and run again; the same bytes as a merge in one piece."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import xxhash

from shardmerge.common import safetensors_header
from shardmerge.common.errors import (
    BadInputError,
    CorruptFileError,
    MissingPartsError,
    OutputExistsError,
    OutputLockedError,
)
from shardmerge.common.processes import owner
from shardmerge.phase2_merge import merge, merge_part
from shardmerge.phase2_merge.commands import merge as merge_command
from shardmerge.phase2_merge.output import publish, receipts
from tests.dumps.dumps import Topology, load, moe_config, tree
from tests.dumps.worlds import MakeWorld, World

SHAPE: dict[str, Any] = {"max_shard_bytes": 500}


def part(one: World, number: int, count: int, **how: Any) -> Any:
    given = {"hf_reference": one.reference, "workers": 1, **SHAPE, **how}
    return merge_part([one.dump], one.out, f"{number}/{count}", **given)


def whole(one: World) -> dict[str, Any]:
    """What a merge in one piece publishes."""
    out = one.folder / "in-one-piece"
    merge([one.dump], out, hf_reference=one.reference, workers=1, **SHAPE)
    return tree(out)


@pytest.fixture
def split(world: MakeWorld) -> World:
    """Adopted shards, and some that are assembled."""
    return world(Topology(tp=2, ep=2), moe_config()).write()


@pytest.mark.parametrize("count", [1, 3, 40])
def test_parts_in_any_order_give_the_bytes_of_one_merge(split: World, count: int) -> None:
    reports = [part(split, number, count) for number in reversed(range(1, count + 1))]
    assert not split.out.exists()
    found = split.merge(finalize=True, **SHAPE)
    assert sum(one.num_shards for one in reports) == found.num_shards
    assert sum(one.num_bytes for one in reports) == found.adopted_bytes + found.assembled_bytes
    assert found.adopted_by == {"hard link": found.adopted_shards}
    assert tree(split.out) == whole(split)
    assert not split.out.with_name("out.partial").exists()


def test_parts_share_the_bytes_evenly(split: World) -> None:
    sizes = [part(split, number, 3).num_bytes for number in (1, 2, 3)]
    largest = max(path.stat().st_size for path in split.out.with_name("out.partial").glob("*.safetensors"))
    assert max(sizes) - min(sizes) <= largest


def test_finalize_names_the_parts_that_are_missing_and_leaves_what_is_there(split: World) -> None:
    part(split, 2, 3)
    with pytest.raises(MissingPartsError) as found:
        split.merge(finalize=True, **SHAPE)
    assert found.value.exit_code == 3
    assert found.value.parts == ("1/3", "3/3")
    assert found.value.message().startswith(f"{found.value.absent_shards} of {found.value.num_shards} shards")
    assert not split.out.exists()
    for number in (1, 3):
        part(split, number, 3)
    split.merge(finalize=True, **SHAPE)
    assert tree(split.out) == whole(split)


def test_finalize_without_any_part_says_so(split: World) -> None:
    with pytest.raises(MissingPartsError, match="No part is complete"):
        split.merge(finalize=True, **SHAPE)


def test_a_part_that_is_complete_is_left_alone(split: World) -> None:
    part(split, 1, 2)
    partial = split.out.with_name("out.partial")
    before = {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")}
    again = part(split, 1, 2)
    assert again.kept_shards + sum(again.adoption.by.values()) == again.num_shards == len(before)
    assert {path.name: path.stat().st_mtime_ns for path in partial.glob("*.safetensors")} == before
    part(split, 2, 2)
    split.merge(finalize=True, **SHAPE)
    published = tree(split.out)
    assert part(split, 1, 2).kept_shards == again.num_shards  # it is published: nothing was looked at again
    assert tree(split.out) == published


def test_a_part_that_was_not_verified_does_not_count_for_a_merge_that_verifies(split: World) -> None:
    part(split, 1, 2, verify="size")
    part(split, 2, 2)
    with pytest.raises(MissingPartsError) as found:
        split.merge(finalize=True, **SHAPE)
    assert found.value.parts == ("1/2",)
    assert split.merge(finalize=True, verify="size", **SHAPE).num_shards > 2


@pytest.mark.parametrize("gone", ["model-*.safetensors", ".shardmerge/receipts/model-*.json"])
def test_a_shard_that_a_part_recorded_and_that_is_gone_counts_as_missing(split: World, gone: str) -> None:
    part(split, 1, 2)
    part(split, 2, 2)
    partial = split.out.with_name("out.partial")
    paths = sorted(partial.glob(gone))
    for path in (paths[0], paths[-1]):  # the first shard is adopted, the last is assembled
        content = path.read_bytes()
        path.unlink()
        with pytest.raises(MissingPartsError) as found:
            split.merge(finalize=True, **SHAPE)
        assert (found.value.absent_shards, len(found.value.parts)) == (1, 1)
        path.write_bytes(content)
    split.merge(finalize=True, **SHAPE)
    assert tree(split.out) == whole(split)


def test_a_part_of_another_dump_takes_back_what_earlier_parts_promised(
    split: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It replaces shards of the same name and size: were the others' records still there, they would be published."""
    part(split, 1, 2)
    part(split, 2, 2)
    first = split.dump.rename(split.folder / "first")
    split.write(step=200)

    def die(*_: object) -> None:
        raise ZeroDivisionError

    with monkeypatch.context() as patched:
        patched.setattr("shardmerge.phase2_merge.shards.parts.write", die)
        with pytest.raises(ZeroDivisionError):
            part(split, 1, 2)
    with pytest.raises(MissingPartsError):
        merge([first], split.out, hf_reference=split.reference, finalize=True, workers=1, **SHAPE)
    with pytest.raises(MissingPartsError):
        split.merge(finalize=True, **SHAPE)


def test_parts_of_another_plan_do_not_count(split: World) -> None:
    part(split, 1, 1, max_shard_bytes=400)
    with pytest.raises(MissingPartsError):
        split.merge(finalize=True, **SHAPE)


def test_a_damaged_fragment_fails_the_part_that_adopts_it(split: World) -> None:
    fragment = split.rank(0) / "whole-00001.safetensors"
    data = bytearray(fragment.read_bytes())
    data[-1] ^= 1
    fragment.write_bytes(data)
    with pytest.raises(CorruptFileError, match="rank-00000/whole-00001"):
        part(split, 1, 1)
    with pytest.raises(MissingPartsError):
        split.merge(finalize=True, **SHAPE)


def test_parts_run_together_but_never_beside_a_whole_merge(split: World) -> None:
    digest = plan_digest(split)
    with publish.building(split.out, owner.here("part 2/2 of a merge", digest), None):
        assert part(split, 1, 2).num_shards > 0
        with pytest.raises(OutputLockedError, match=r"by part 2/2 of a merge \(process"):
            part(split, 2, 2)
        for finalize in (True, False):
            with pytest.raises(OutputLockedError):
                split.merge(finalize=finalize, **SHAPE)
    with (
        publish.building(split.out, owner.here("a merge"), None),
        pytest.raises(OutputLockedError, match="by a merge"),
    ):
        part(split, 2, 2)


def plan_digest(one: World) -> str:
    digest: str = one.merge(dry_run=True, **SHAPE).plan_digest
    return digest


def test_parts_of_two_dumps_never_write_at_the_same_time(split: World) -> None:
    """Else a shard of one may stand beside a receipt of the other."""
    other = owner.here("part 2/2 of a merge", "of another plan")
    with (
        publish.building(split.out, other, None),
        pytest.raises(OutputLockedError, match="part 2/2 of a merge"),
    ):
        part(split, 1, 2)
    assert part(split, 1, 2).num_shards > 0


@pytest.mark.parametrize("how", ["gone", "cut", "other bytes", "other bytes and size", "receipt"])
@pytest.mark.parametrize("which", [0, -1], ids=["adopted", "assembled"])
def test_a_shard_that_changed_since_its_part_wrote_it_is_never_published(
    split: World, which: int, how: str
) -> None:
    part(split, 1, 2)
    part(split, 2, 2)
    partial = split.out.with_name("out.partial")
    shard = sorted(partial.glob("model-*.safetensors"))[which]
    data = shard.read_bytes()
    shard.unlink()  # an adopted one is a file of the dump, which stays as it is
    if how == "cut":
        shard.write_bytes(data[:-1])
    elif how == "other bytes":
        shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    elif how == "other bytes and size":
        shard.write_bytes(b"{}")
    elif how == "receipt":
        shard.write_bytes(data)
        for receipt in (partial / ".shardmerge" / "receipts").glob("model-*.json"):
            receipt.write_text(receipt.read_text().replace('"checked":true', '"checked":false'))
    with pytest.raises((MissingPartsError, CorruptFileError)) as found:
        split.merge(finalize=True, **SHAPE)
    assert not split.out.exists()
    assert shard.name in str(found.value) or how == "receipt" or isinstance(found.value, CorruptFileError)
    for number in (1, 2):
        part(split, number, 2)
    split.merge(finalize=True, **SHAPE)
    assert tree(split.out) == whole(split)


def test_a_left_shard_of_another_plan_does_not_keep_finalize_from_reading(split: World) -> None:
    """It is not of this plan, and says nothing about the shards that are."""
    part(split, 1, 1)
    partial = split.out.with_name("out.partial")
    shard = sorted(partial.glob("model-*.safetensors"))[-1]
    data = shard.read_bytes()
    shard.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (partial / "model-00099-of-00099.safetensors").write_bytes(data)
    with pytest.raises(MissingPartsError, match=f"{shard.name} is not what its receipt says"):
        split.merge(finalize=True, **SHAPE)
    assert not split.out.exists()
    part(split, 1, 1)
    split.merge(finalize=True, **SHAPE)
    assert tree(split.out) == whole(split)


def test_a_forged_receipt_beside_a_forged_shard_is_seen(split: World) -> None:
    """What is believed are the checksums of the ranks alone."""
    part(split, 1, 1)
    partial = split.out.with_name("out.partial")
    shard = sorted(partial.glob("model-*.safetensors"))[-1]
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)
    header = safetensors_header.read(shard)
    told = receipts.read(partial, shard.name)
    assert told is not None
    sums = {
        e.name: xxhash.xxh3_128_hexdigest(data[header.data_offset + e.begin : header.data_offset + e.end])
        for e in header.entries
    }
    forged = dataclasses.replace(told, tensors=sums)
    receipts.write(partial, forged)
    record = partial / ".shardmerge" / "receipts" / "part-1-of-1.json"
    record.write_text(record.read_text().replace(receipts.digest(told), receipts.digest(forged)))
    with pytest.raises(MissingPartsError, match=f"{shard.name} is not what its receipt says"):
        split.merge(finalize=True, **SHAPE)
    assert not split.out.exists()


def test_a_finalize_that_fails_can_be_repeated(split: World, monkeypatch: pytest.MonkeyPatch) -> None:
    part(split, 1, 1)
    with monkeypatch.context() as patched:
        patched.setattr(merge_command, "_describe", lambda *_: 1 // 0)
        with pytest.raises(ZeroDivisionError):
            split.merge(finalize=True, **SHAPE)
    split.merge(finalize=True, **SHAPE)
    assert tree(split.out) == whole(split)


def test_finalize_says_what_it_read_again_and_what_it_did_not(split: World) -> None:
    part(split, 1, 1)
    talk = split.merge(finalize=True, verify="size", **SHAPE).text()
    assert "were read again" not in talk
    assert "Bytes were NOT read" in talk
    shutil.rmtree(split.out)
    part(split, 1, 1)
    found = split.merge(finalize=True, **SHAPE)
    assert len(found.reread.shards) == found.num_shards - found.adopted_shards
    assert (
        f"{len(found.reread.shards)} shards that others wrote, or that changed, were read again"
        in found.text()
    )


def test_a_part_of_another_output_is_refused(split: World) -> None:
    split.out.mkdir()
    (split.out / "precious").write_text("mine")
    with pytest.raises(OutputExistsError):
        part(split, 1, 2)
    assert tree(split.out) == {"precious": b"mine"}


def test_a_part_of_an_output_with_other_shards_is_refused(split: World) -> None:
    split.merge(**SHAPE)
    with pytest.raises(OutputExistsError, match="into other shards"):
        part(split, 1, 2, max_shard_bytes=400)


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "1/0", "a/b", "-1/4", "1/4/2"])
def test_a_part_that_is_none_is_refused(split: World, text: str) -> None:
    with pytest.raises(BadInputError, match="number/count"):
        merge_part([split.dump], split.out, text, hf_reference=split.reference)


START = "from shardmerge.common.command.group import main; main()"
COMMAND = [sys.executable, "-W", "ignore", "-c", START, "merge"]


def test_an_array_of_processes_and_a_last_one_publish(split: World) -> None:
    given = [
        str(split.dump),
        str(split.out),
        "--hf-reference",
        str(split.reference),
        "--max-shard-size",
        "500B",
    ]
    array = [
        subprocess.Popen([*COMMAND, *given, "--part", f"{number}/3"], stdout=subprocess.PIPE, text=True)
        for number in (1, 2, 3)
    ]
    told = [process.communicate()[0] for process in array]
    assert [process.returncode for process in array] == [0, 0, 0]
    assert told[0].startswith("Part 1/3 of ")
    done = subprocess.run(
        [*COMMAND, *given, "--finalize", "--json"], capture_output=True, text=True, check=True
    )
    assert json.loads(done.stdout)["num_shards"] == len(list(split.out.glob("*.safetensors")))
    assert tree(split.out) == whole(split)


@pytest.mark.parametrize("other", ["--finalize", "--dry-run"])
def test_part_goes_with_neither_finalize_nor_dry_run(split: World, other: str) -> None:
    given = [str(split.dump), str(split.out), "--hf-reference", str(split.reference), "--part", "1/2", other]
    done = subprocess.run([*COMMAND, *given], check=False, capture_output=True, text=True)
    assert done.returncode == 2
    assert "--part with --finalize or --dry-run" in done.stderr
    assert not Path(f"{split.out}.partial").exists()


def test_small_fragments_are_joined_and_large_ones_stay(world: MakeWorld) -> None:
    one = world(Topology(ep=4, pp=2), moe_config()).write()
    sizes = {path: path.stat().st_size for path in one.dump.rglob("whole-*.safetensors")}
    plain = one.merge()
    assert plain.adopted_shards == len(sizes) > 4
    threshold = sorted(shard[1] for shard in plain.largest_shards)[-2]
    joined = merge(
        [one.dump], one.folder / "joined", hf_reference=one.reference, workers=1, min_shard_bytes=threshold
    )
    assert joined.adopted_shards == sum(size >= threshold for _, size in plain.largest_shards)
    assert joined.num_shards == joined.adopted_shards + 1
    assert load(one.folder / "joined") == load(one.out) == one.model.tensors
    shards = {os.stat(path).st_ino for path in (one.folder / "joined").glob("*.safetensors")}
    assert len(shards & {os.stat(path).st_ino for path in sizes}) == joined.adopted_shards


def test_a_least_size_above_the_largest_is_refused(world: MakeWorld) -> None:
    with pytest.raises(BadInputError, match="smallest shard is to have 501 B, the largest 500 B"):
        world().write().merge(min_shard_bytes=501, max_shard_bytes=500)
