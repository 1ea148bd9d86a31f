"""The bench measures what it says: peers make the bytes that a merge makes, sampling sees workers, bounds break."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from shardmerge.phase2_merge import check, merge
from tests.bench import peers, pieces
from tests.bench.line import Bound, Line, at_least
from tests.bench.making import MODEL, Made, column_share, filled, split
from tests.bench.rounds import COLD, WARM, Contestant, Turns, extents, rotated, take_turns
from tests.bench.watching import Ran, ran
from tests.dumps import dumps
from tests.scale.models import Case

MIB = 1 << 20
TINY = MODEL | {
    "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 4, "head_dim": 16, "num_experts": 4,
    "moe_intermediate_size": 32, "num_hidden_layers": 1, "vocab_size": 128,
}  # fmt: skip
WORKER = """
import multiprocessing as m, time
def work():
    held = b"x" * (80 << 20); files = [open("/dev/null") for _ in range(50)]; time.sleep(0.5)
if __name__ == "__main__":
    child = m.get_context("spawn").Process(target=work); child.start(); child.join()
"""


@pytest.fixture
def made(tmp_path: Path) -> Made:
    return filled(Case("tiny", TINY, split(2)), tmp_path / "made")


def test_a_filled_dump_is_sound_to_the_last_byte(made: Made) -> None:
    assert check([made.dump], hf_reference=made.reference, verify="full").world_size == 2


def test_the_share_of_columns_is_that_of_down_and_output_projections(made: Made) -> None:
    # 4 experts of three [32, 64] and o_proj [64, 64]; q, k, v [64, 64] each, two embeddings [128, 64], router [4, 64],
    # norms of 64, 64, 64, 16 and 16
    narrow = 4 * 32 * 64 + 64 * 64
    total = 3 * 4 * 32 * 64 + 4 * 64 * 64 + 2 * 128 * 64 + 4 * 64 + 3 * 64 + 2 * 16
    assert column_share(made) == pytest.approx(narrow / total)


@pytest.mark.parametrize("peer", [peers.consolidate, peers.concatenate])
def test_a_peer_makes_of_its_pieces_what_a_merge_makes(made: Made, tmp_path: Path, peer: peers.Peer) -> None:
    merge([made.dump], tmp_path / "ours", hf_reference=made.reference, workers=1)
    ours = dumps.load(tmp_path / "ours")
    source, theirs = pieces.convert(made.dump, tmp_path / "pieces"), tmp_path / "theirs"
    theirs.mkdir()
    peer(source, dict.fromkeys(ours, 1), theirs)()
    assert dumps.load(theirs) == ours


def test_the_copy_past_the_cache_is_a_copy(made: Made, tmp_path: Path) -> None:
    peers.copied_past_the_cache(made.dump, tmp_path / "copy")
    for path in made.fragments():
        assert (tmp_path / "copy" / f"{path.parent.name}-{path.name}").read_bytes() == path.read_bytes()


def test_memory_and_open_files_are_those_of_the_worker_where_it_has_more(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(WORKER)
    found = ran([sys.executable, script])
    assert found.worker_peak_bytes > 80 * MIB > found.parent_peak_bytes > 0
    assert 50 < found.open_files < 80


def test_where_the_disk_is_in_the_way_a_copy_is_the_bound() -> None:
    assert not at_least(4, copy=10).kept(3.9)
    assert at_least(4, copy=10).kept(4.1)
    assert not at_least(4, copy=2.2).kept(1.9)
    assert at_least(4, copy=2.2).kept(2.1)


def test_holes_of_a_sparse_file_are_not_read(tmp_path: Path) -> None:
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.write(b"x" * 4096)
        file.truncate(1 << 40)
    with open(path, "rb") as file:
        if not hasattr(os, "SEEK_DATA") or len(found := list(extents(file.fileno()))) != 1:
            pytest.skip("this file system knows no holes")
        begin, end = found[0]
        assert begin == 0
        assert end < MIB


@pytest.mark.parametrize("cache", [WARM, COLD])
def test_every_contestant_runs_in_every_round_and_leaves_nothing(tmp_path: Path, cache: str) -> None:
    inputs, order = tmp_path / "inputs", []
    inputs.mkdir()
    (inputs / "file").write_bytes(b"x")

    def work(name: str, out: Path) -> Ran:
        order.append(name)
        out.mkdir()
        return Ran(1)

    contestants = {name: Contestant(inputs, lambda out, name=name: work(name, out)) for name in "ab"}  # type: ignore[misc]
    take_turns(cache, tmp_path, contestants, rounds=2)
    assert order == ["a", "b", "b", "a"]
    assert os.listdir(tmp_path) == ["inputs"]


def test_rotation_moves_the_first_ones_behind() -> None:
    assert rotated([1, 2, 3], 4) == [2, 3, 1]


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    turns = Turns({"ours": [Ran(2), Ran(3), Ran(10)], "peer": [Ran(1), Ran(1), Ran(20)]})
    assert turns.ratio("ours", "peer") == 2
    assert turns.ratio("ours", "peer", without=1) == 1


def test_a_bound_breaks_on_the_side_it_was_given_for() -> None:
    above, below = Bound(4, "at least 4", at_least=True), Bound(1, "at most 1")
    assert "BROKEN" not in Line("what", ratio="4.0", value=4, bound=above).row()
    assert "3.9 BROKEN" in Line("what", ratio="3.9", value=3.9, bound=above).row()
    assert "BROKEN" not in Line("what", ratio="1.00", value=1, bound=below).row()
    assert "1.01 BROKEN" in Line("what", ratio="1.01", value=1.01, bound=below).row()
