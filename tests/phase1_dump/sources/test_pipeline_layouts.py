"""Pipeline stages laid out by hand, as large models are trained: uneven, interleaved, and one without any tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.phase1_dump.conftest import References
from tests.phase1_dump.dumped import dump_world, pieces_of, shapes_of, tiling_faults
from tests.worlds import megatron_config
from tests.worlds.families import by_name
from tests.worlds.topology import Topology


@pytest.mark.parametrize(
    ("layout", "topology", "layers"),
    [
        # E embedding, t a layer, L output; stages go round the ranks, then round again for the second chunks
        ("Et|t|tt|L", Topology(pp=2, vpp=2), [{0, 2, 3}, {1}]),
        ("E|tt|t|tL", Topology(pp=2, vpp=2, ep=2, dp=2), [{2}, {2}, {0, 1, 3}, {0, 1, 3}]),
        ("Et||tt|tL", Topology(pp=4), [{0}, set(), {1, 2}, {3}]),
    ],
)
def test_layers_are_where_the_layout_puts_them(
    layout: str,
    topology: Topology,
    layers: list[set[int]],
    references: References,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    options = megatron_config._parallel_options

    def laid_out(*arguments: Any) -> dict[str, Any]:
        return options(*arguments) | {"pipeline_model_parallel_layout": layout}

    monkeypatch.setattr(megatron_config, "_parallel_options", laid_out)
    manifests = dump_world(by_name("qwen3_moe"), topology, tmp_path, references.config("qwen3_moe"))

    pieces = list(pieces_of(tmp_path))
    assert tiling_faults(pieces, shapes_of(references.weights("qwen3_moe"))) == []
    for rank, expected in enumerate(layers):
        names = [piece.name for piece in pieces if piece.rank == rank and ".layers." in piece.name]
        assert {int(name.split(".")[2]) for name in names} == expected
    assert [len(manifest.columns) == 0 for manifest in manifests] == [not held for held in layers]
