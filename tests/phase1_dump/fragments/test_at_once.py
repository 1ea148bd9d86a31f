"""Several fragments at once: bytes as of one by one, an error of one ends all, memory is shared and given back."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from shardmerge.phase1_dump.fragments import at_once, plan
from shardmerge.phase1_dump.fragments.at_once import streams_for, write_fragments
from shardmerge.phase1_dump.fragments.plan import PlannedFragment, plan_fragments
from shardmerge.phase1_dump.source import Holding
from shardmerge.phase1_dump.sources.host_memory.host_buffers import HostBuffers
from tests.phase1_dump.dumped import dumped
from tests.phase1_dump.hand_made import Copying, numbers, raw, source_of, whole
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.fake import build_model, fake_world
from tests.worlds.filling import fill
from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS, quantize, recipe
from tests.worlds.topology import SINGLE

FILES = 6


def planned() -> tuple[list[Holding], tuple[PlannedFragment, ...]]:
    """Six files of three tensors each."""
    held = [whole(f"t{number:02}", numbers(64, 100 + number % 3, seed=number)) for number in range(3 * FILES)]
    fragments = plan_fragments(held, max_bytes=64 * 103 * 2 * 3)
    assert [len(fragment.holdings) for fragment in fragments] == [3] * FILES
    return held, fragments


@pytest.mark.parametrize("streams", [2, 3, 8])
def test_the_bytes_are_those_of_one_after_another(streams: int, tmp_path: Path) -> None:
    held, fragments = planned()
    buffers = Copying(40_000)
    found = {}
    for number in (1, streams):
        folder = tmp_path / str(number)
        folder.mkdir()
        learnt = write_fragments(folder, fragments, source_of(held, buffers), lambda _: None, number)
        found[number] = learnt, {path.name: path.read_bytes() for path in folder.iterdir()}
    assert found[1] == found[streams]
    assert len(found[1][1]) == FILES


def test_no_stream_uses_the_memory_of_another_and_all_is_given_back(tmp_path: Path) -> None:
    """Each waits in the middle of its first file until all three have begun."""
    held, fragments = planned()
    buffers, threads = Copying(60_000), torch.get_num_threads()  # larger blocks than those that are joined
    source, met, mine = source_of(held, buffers), threading.Barrier(3), threading.local()

    def progress(_: int) -> None:
        if not hasattr(mine, "has_met"):
            mine.has_met = True
            met.wait(30)

    write_fragments(tmp_path, fragments, source, progress, 3)
    assert [buffer.num_bytes for one in buffers.unused for buffer in one.buffers] == [60_000 // 3] * 3
    list(source.read(held))  # as replicas are hashed after all files were written: alone
    assert [buffer.num_bytes for one in buffers.unused for buffer in one.buffers] == [60_000 // 2] * 2
    source.release()
    assert buffers.unused == []
    assert torch.get_num_threads() == threads
    found = {name: raw(tensor) for path in tmp_path.iterdir() for name, tensor in load_file(path).items()}
    assert found == {one.rectangle.name: raw(one.recipe.parts[0].data) for one in held}


def test_an_error_of_one_ends_all_and_is_the_one_that_is_raised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held, fragments = planned()
    begun, opened, real = list[str](), threading.Event(), os.fsync

    def fsync(file: int) -> None:
        begun.append(os.readlink(f"/proc/self/fd/{file}"))
        if begun[-1].endswith("whole-00002.safetensors"):
            opened.wait(10)
            raise OSError(errno.EIO, "Input/output error")
        if len(begun) > 3:
            opened.set()
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    before = threading.active_count()
    with pytest.raises(OSError, match="Input/output error") as caught:
        write_fragments(tmp_path, fragments, source_of(held, HostBuffers(10_000)), lambda _: None, 2)
    assert caught.value.filename.endswith("whole-00002.safetensors")
    assert threading.active_count() == before


def test_what_a_caller_raises_ends_all(tmp_path: Path) -> None:
    """A command that is ended by a signal raises wherever its progress is shown."""

    class Ended(BaseException):
        pass

    def progress(_: int) -> None:
        raise Ended

    held, fragments = planned()
    with pytest.raises(Ended):
        write_fragments(tmp_path, fragments, source_of(held, HostBuffers(10_000)), progress, 3)


def test_a_large_rank_is_spread_over_so_many_files_and_a_small_one_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plan, "MIN_PARALLEL_BYTES", 20_000)
    for count, files in ((1, 1), (8, 1), (9, 2), (96, 12), (192, 12)):
        held = [whole(f"t{number:03}", numbers(10, 125, seed=number)) for number in range(count)]
        assert len(plan_fragments(held, 10**9, 12)) == files
    uneven = [whole("large", numbers(10, 4001)), *held]
    assert len(plan_fragments(uneven, 10**9, 12)) == 12  # a file more would be written when all others are
    assert len(plan_fragments(held, 10**9)) == 1
    assert len(plan_fragments(held, 5_000, 12)) == 96
    parts = [fragment.header.file_bytes for fragment in plan_fragments(held, 10**9, 12)]
    assert max(parts) - min(parts) <= 2 * 4096


def test_so_many_streams_as_this_ranks_share_of_the_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    _, fragments = planned()
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert streams_for(fragments, 8, {}) == 1  # they are small
    monkeypatch.setattr(at_once, "STREAM_BYTES", 1000)
    assert streams_for(fragments, 8, {}) == FILES
    assert streams_for(fragments, 8, {"LOCAL_WORLD_SIZE": "4"}) == 4
    assert streams_for(fragments, 8, {"SLURM_NTASKS_PER_NODE": "8"}) == 2
    assert streams_for(fragments, 8, {"LOCAL_WORLD_SIZE": "64"}) == 1
    assert streams_for(fragments, 2, {}) == 2


@pytest.mark.parametrize("name", ["NVFP4", "FP8_BLOCK"])
def test_what_is_packed_in_several_streams_is_the_same(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Scales and weights of one parameter are computed once, by whoever comes first, in whatever file they stand."""
    family = QWEN3_MOE_IN_BLOCKS if name == "FP8_BLOCK" else QWEN3_MOE
    reference = write_hf_checkpoint(family, tmp_path / "hf")
    with fake_world(SINGLE, 0):
        chunks = build_model(family, SINGLE)
        fill(chunks, family, SINGLE, 0)
        quantize(chunks, family, SINGLE, 0, recipe(name))
        one = dumped(chunks, tmp_path / "one", reference, max_fragment_bytes=30_000)
        monkeypatch.setattr(at_once, "STREAM_BYTES", 1)
        monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
        assert dumped(chunks, tmp_path / "eight", reference, max_fragment_bytes=30_000) == one
    assert len(one.files) > plan.FILES_AT_ONCE
    for file in one.files:
        bytes_of = [(tmp_path / way / "rank-00000" / file.name).read_bytes() for way in ("one", "eight")]
        assert bytes_of[0] == bytes_of[1]
