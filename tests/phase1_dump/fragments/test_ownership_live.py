"""Replicas share the work: each writes about its part of the bytes, and every rectangle has one writer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from math import prod
from pathlib import Path

import pytest

from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import Piece, dump_world, pieces_of
from tests.worlds.families import by_name
from tests.worlds.topology import Topology

ELEMENT_BYTES = 2
Kind = Callable[[Piece], bool]


@pytest.fixture(scope="module")
def dumps(
    references: References, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str, Topology], Path]:
    """Dumps of whole worlds, each made once."""
    folder = tmp_path_factory.mktemp("dumps")

    def of(name: str, topology: Topology) -> Path:
        out = folder / f"{name}-{topology.name}"
        if not out.exists():
            dump_world(by_name(name), topology, out, references.config(name))
        return out

    return of


def is_expert(piece: Piece) -> bool:
    return ".experts." in piece.name


def is_dense(piece: Piece) -> bool:
    return not is_expert(piece)


def spread(pieces: list[Piece], members: tuple[int, ...], kind: Kind) -> tuple[int, int, int]:
    """(fewest, most) bytes that one of these ranks wrote of a kind, and the largest tensor."""
    own = [(p.rank, prod(p.shape) * ELEMENT_BYTES) for p in pieces if p.rank in members and kind(p)]
    loads = Counter(dict.fromkeys(members, 0))
    for rank, size in own:
        loads[rank] += size
    return min(loads.values()), max(loads.values()), max(size for _, size in own)


SHARED: list[tuple[str, Topology, tuple[int, ...], Kind]] = [
    ("llama", Topology(dp=2), (0, 1), is_dense),
    ("llama", Topology(cp=2), (0, 1), is_dense),
    ("qwen3_moe", Topology(dp=2), (0, 1), is_expert),  # expert data parallel 2
    ("qwen3_moe", Topology(ep=2, dp=4), (0, 2), is_expert),
    ("qwen3_moe", Topology(ep=2, dp=4), (1, 3), is_expert),
    ("qwen3_moe", Topology(ep=2, dp=4), (0, 1, 2, 3), is_dense),
    ("qwen3_moe", Topology(ep=2, dp=2), (0, 1), is_dense),
    ("qwen3_moe", Topology(cp=2, ep=2, dp=2), (0, 2), is_expert),
    ("deepseek_v3", Topology(tp=2, pp=2, ep=2, dp=2), (4, 6), is_expert),
]


@pytest.mark.parametrize(
    ("name", "topology", "members", "kind"),
    [pytest.param(*case, id=f"{case[0]}-{case[1].name}-{case[2]}-{case[3].__name__}") for case in SHARED],
)
def test_replicas_write_equal_shares_within_the_largest_tensor(
    name: str,
    topology: Topology,
    members: tuple[int, ...],
    kind: Kind,
    dumps: Callable[[str, Topology], Path],
) -> None:
    fewest, most, largest = spread(list(pieces_of(dumps(name, topology))), members, kind)

    assert fewest > 0
    assert most - fewest <= largest


@pytest.mark.parametrize(
    "topology", [Topology(dp=2), Topology(cp=2), Topology(ep=2, dp=4)], ids=lambda t: t.name
)
def test_each_rectangle_has_one_writer(topology: Topology, dumps: Callable[[str, Topology], Path]) -> None:
    writers = Counter((piece.name, piece.offset) for piece in pieces_of(dumps("qwen3_moe", topology)))

    assert (
        len(writers) == 4 * (9 + 8 * 3) + 3
    )  # attention, norms and router, 8 experts of three; embeddings, norm
    assert set(writers.values()) == {1}


def test_two_replicas_halve_the_work(dumps: Callable[[str, Topology], Path]) -> None:
    total = Counter[int]()
    for piece in pieces_of(dumps("llama", Topology(dp=2))):
        total[piece.rank] += prod(piece.shape)

    assert total[0] == pytest.approx(total[1], rel=0.05)


@pytest.mark.parametrize("topology", [Topology(pp=2), Topology(tp=2, pp=2, dp=2)], ids=lambda t: t.name)
def test_a_tied_embedding_is_written_by_the_first_stage_alone(
    topology: Topology, dumps: Callable[[str, Topology], Path]
) -> None:
    pieces = list(pieces_of(dumps("llama_tied", topology)))
    embedding = [piece for piece in pieces if piece.name == "model.embed_tokens.weight"]

    assert sum(prod(piece.shape) for piece in embedding) == 211 * 72
    assert {piece.rank for piece in embedding} <= set(range(topology.stage_size))
    assert all(not piece.name.startswith("lm_head") for piece in pieces)


def test_manifests_name_the_rank_itself_as_owner(references: References, tmp_path: Path) -> None:
    manifests = dump_world(
        by_name("qwen3_moe"), Topology(ep=2, dp=2), tmp_path, references.config("qwen3_moe")
    )

    assert [set(manifest.columns.owner) for manifest in manifests] == [{0}, {1}]
    for manifest in manifests:
        sizes = [end - begin for begin, end in zip(manifest.columns.begin, manifest.columns.end, strict=True)]
        assert manifest.statistics["written_bytes"] == sum(sizes)
