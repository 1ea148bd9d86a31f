"""The comparison of bytes notices faults, each where it was put: only then does its silence mean anything.

The model is square wherever it can be (hidden = expert width = heads x head channels), so that no shape helps.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.phase1_dump.dumped import assembled, differing, pieces_of, shapes_of
from tests.phase1_dump.faults import EXPERT, LAYER, LIVE, TABLES, dump_with_fault
from tests.worlds.checkpoints import read_hf_tensors, write_hf_checkpoint
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import SINGLE
from tests.worlds.widths import Experts

SQUARE = Family(
    "square",
    "Qwen3MoeForCausalLM",
    qk_norm=True,
    layers=2,
    hidden=48,
    heads=4,
    groups=2,
    head_channels=12,
    dense_width=48,
    experts=Experts(num_experts=4, width=48),
)
MLP = f"model.layers.{LAYER}.mlp.experts."
ATTENTION = f"model.layers.{LAYER}.self_attn."
THREE = ("down", "gate", "up")
VISIBLE: dict[str, set[str]] = {
    "none": set(),
    "strided, no fault": set(),
    "gate and up of an expert swapped": {f"{MLP}{EXPERT}.{name}_proj.weight" for name in ("gate", "up")},
    "experts shifted": {f"{MLP}{expert}.{name}_proj.weight" for expert in range(4) for name in THREE},
    "down projection transposed": {f"{MLP}{EXPERT}.down_proj.weight"},
    "output projection transposed": {f"{ATTENTION}o_proj.weight"},
    "query heads swapped": {f"{ATTENTION}q_proj.weight"},
    "gate and up swapped in the table": {
        f"model.layers.{layer}.mlp.experts.{expert}.{name}_proj.weight"
        for layer in range(2)
        for expert in range(4)
        for name in ("gate", "up")
    },
    "q and k norms swapped in the table": {
        f"model.layers.{layer}.self_attn.{name}_norm.weight" for layer in range(2) for name in "qk"
    },
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_hf_checkpoint(SQUARE, tmp_path_factory.mktemp("square"))


def test_every_fault_has_an_expectation() -> None:
    assert VISIBLE.keys() == {"none", *LIVE, *TABLES}


@pytest.mark.parametrize("fault", VISIBLE)
def test_bytes_differ_exactly_where_the_fault_is(
    fault: str, ranks: GlooRanks, checkpoint: Path, tmp_path: Path
) -> None:
    ranks.run(dump_with_fault, SINGLE, SQUARE, checkpoint, tmp_path, fault)

    got = assembled(list(pieces_of(tmp_path, load=True)), shapes_of(checkpoint))
    assert set(differing(got, read_hf_tensors(checkpoint))) == VISIBLE[fault]


def test_the_model_is_square_where_it_can_be(checkpoint: Path) -> None:
    shapes = shapes_of(checkpoint)

    for name in ("self_attn.o_proj", "self_attn.q_proj", "mlp.experts.3.down_proj", "mlp.experts.3.up_proj"):
        assert shapes[f"model.layers.1.{name}.weight"] == (48, 48)
