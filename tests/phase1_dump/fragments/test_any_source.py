"""A source that is not a model: written, proven and read back where torch cannot be imported."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import xxhash

from shardmerge.common.manifest import Manifest, read
from shardmerge.phase1_dump.fragments.write_rank import write_rank
from shardmerge.phase1_dump.source import Holding, Seen
from tests.dumps.dumps import Topology, cuts_of, load, model_of, moe_config, piece_bytes
from tests.phase1_dump.fragments.without_torch import ArraySource, sources

RANKS = 2
Events = Iterator[memoryview | Seen]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, set[str]]:
    """The dump of a process without torch, and what it had imported in the end."""
    folder = tmp_path_factory.mktemp("arrays")
    command = [sys.executable, "-m", "tests.phase1_dump.fragments.without_torch", str(folder)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return folder / "dump", set(json.loads(result.stdout))


def manifest(dump: Path, rank: int) -> Manifest:
    return read(dump / f"rank-{rank:05d}" / "manifest.json")


def test_nothing_that_writes_needs_torch(written: tuple[Path, set[str]]) -> None:
    _, imported = written
    for name in ("fragments.write_rank", "rectangles.holdings", "rectangles.layouts.qkv", "source"):
        assert f"shardmerge.phase1_dump.{name}" in imported
    assert not {name for name in imported if name.split(".")[0] in {"torch", "megatron"}}
    assert "shardmerge.phase1_dump.sources" not in imported


def test_the_safetensors_library_reads_the_bytes_of_the_arrays(written: tuple[Path, set[str]]) -> None:
    """Each rank has its half of every matrix, and one of the two has what is not cut."""
    dump, _ = written
    model, expected = model_of(moe_config()), {}
    found: dict[str, tuple[str, tuple[int, ...], bytes]] = {}
    for name, cuts in cuts_of(model, Topology(tp=RANKS)).items():
        for cut in cuts:
            whole = cut.shape == model.tensors[name][1]
            key = name if whole else f"{name}@{','.join(map(str, cut.offset))}"
            expected[key] = ("BF16", cut.shape, piece_bytes(model, name, cut))
    for rank in range(RANKS):
        own = load(dump / f"rank-{rank:05d}")
        assert not own.keys() & found.keys()
        found |= own
    assert found == expected


def test_every_row_points_at_its_bytes_and_ends_with_the_file(written: tuple[Path, set[str]]) -> None:
    dump, _ = written
    for rank in range(RANKS):
        one = manifest(dump, rank)
        ends = dict.fromkeys(range(len(one.files)), 0)
        for row in one.placed():
            if row.file >= 0:
                data = (dump / f"rank-{rank:05d}" / one.files[row.file].name).read_bytes()
                assert row.xxh3_128 == xxhash.xxh3_128_hexdigest(data[row.begin : row.end])
                ends[row.file] = max(ends[row.file], row.end)
        assert [ends[number] for number in ends] == [file.num_bytes for file in one.files]
        assert len(one.files) > 2


def test_what_the_other_rank_writes_is_recorded_with_the_same_checksum(
    written: tuple[Path, set[str]],
) -> None:
    dump, _ = written
    rows = [list(manifest(dump, rank).placed()) for rank in range(RANKS)]
    for rank in range(RANKS):
        mine = {row.rectangle: row.xxh3_128 for row in rows[rank] if row.file >= 0}
        held = {row.rectangle: row.xxh3_128 for row in rows[1 - rank] if row.file < 0}
        assert held == {rectangle: mine[rectangle] for rectangle in held}
        assert {row.owner for row in rows[1 - rank] if row.file < 0} == {rank}
        assert held.keys() == {rectangle for rectangle in mine if rectangle.is_whole}


def test_a_manifest_says_what_its_source_says(written: tuple[Path, set[str]]) -> None:
    dump, _ = written
    found = manifest(dump, 1)
    assert (found.run_id, found.step, found.attempt, found.rank, found.world_size) == (
        "run",
        7,
        "0",
        1,
        RANKS,
    )
    assert (found.coordinates["tp"], found.groups["tp"]) == (1, [0, 1])
    assert (found.architecture, found.facts.dtype) == ("Qwen3MoeForCausalLM", "BF16")
    assert found.producer == {"arrays": "1"}


class EarlyEnd(ArraySource):
    """Its stream ends after all bytes of the last holding, without the `Seen` that closes them."""

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Events:
        remaining = len(holdings)
        for block in super().read(holdings, inspect=inspect):
            remaining -= isinstance(block, Seen)
            if remaining or not isinstance(block, Seen):
                yield block


class EarlyEndOfReplicas(EarlyEnd):
    """The same, only where another rank's rectangles are hashed."""

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Events:
        return ArraySource.read(self, holdings) if inspect else super().read(holdings, inspect=inspect)


@pytest.mark.parametrize("kind", [EarlyEnd, EarlyEndOfReplicas])
def test_a_source_that_ends_too_early_is_refused_and_leaves_nothing(
    tmp_path: Path, kind: type[ArraySource]
) -> None:
    whole = sources(model_of(moe_config()))[0]
    source = kind(whole.world, whole.generation, whole.facts, whole.holdings)
    with pytest.raises(RuntimeError, match="the source ended before it had delivered model"):
        write_rank(source, tmp_path / "dump", check_replicas=True)
    assert list((tmp_path / "dump").iterdir()) == []


class TooMuch(ArraySource):
    """It goes on after the `Seen` of the last holding."""

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Events:
        yield from super().read(holdings, inspect=inspect)
        yield memoryview(b"more")


class TooManyReplicas(TooMuch):
    """The same, only where another rank's rectangles are hashed."""

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Events:
        return ArraySource.read(self, holdings) if inspect else super().read(holdings, inspect=inspect)


@pytest.mark.parametrize("kind", [TooMuch, TooManyReplicas])
def test_a_source_that_goes_on_too_long_is_refused_and_leaves_nothing(
    tmp_path: Path, kind: type[ArraySource]
) -> None:
    whole = sources(model_of(moe_config()))[0]
    source = kind(whole.world, whole.generation, whole.facts, whole.holdings)
    with pytest.raises(RuntimeError, match=r"the source delivered more than the \d+ rectangles"):
        write_rank(source, tmp_path / "dump", check_replicas=True)
    assert list((tmp_path / "dump").iterdir()) == []


class Short(ArraySource):
    """It leaves out the last block of the first holding that has two."""

    def read(self, holdings: Sequence[Holding], *, inspect: bool = True, streams: int = 1) -> Events:
        blocks = 0
        for block, after in pairwise([*super().read(holdings, inspect=inspect), Seen()]):
            blocks = 0 if isinstance(block, Seen) else blocks + 1
            if not (blocks == 2 and isinstance(after, Seen)):
                yield block


def test_a_source_that_delivers_too_few_bytes_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    whole = sources(model_of(moe_config()))[0]
    source: ArraySource = Short(whole.world, whole.generation, whole.facts, whole.holdings)
    with pytest.raises(RuntimeError, match=r"the source delivered \d+ bytes of model"):
        write_rank(source, tmp_path / "dump")
    assert list((tmp_path / "dump").iterdir()) == []
