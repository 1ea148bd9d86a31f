"""Names spoken of by layer and expert."""

from __future__ import annotations

import pytest

from shardmerge.phase2_merge.ledger.names import expert_of, grouped, layer_of, ranges, ranges_without, summary


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        ([0, 1, 2, 3], "0-3"),
        ([3, 17], "3 and 17"),
        ([9, 1, 2, 5, 10], "1-2, 5 and 9-10"),
        ([], ""),
    ],
)
def test_ranges_read_as_people_write_them(numbers: list[int], text: str) -> None:
    assert ranges(numbers) == text


def test_layer_and_expert_are_found_in_names() -> None:
    name = "model.layers.12.mlp.experts.17.up_proj.weight"
    assert (layer_of(name), expert_of(name)) == (12, 17)
    assert (layer_of("lm_head.weight"), expert_of("model.layers.3.mlp.shared_experts.up_proj.weight")) == (
        None,
        None,
    )


def test_summary_of_a_lost_expert_parallel_rank() -> None:
    names = [
        f"model.layers.{layer}.mlp.experts.{expert}.{part}.weight"
        for layer in range(24, 36)
        for expert in range(40, 48)
        for part in ("gate_proj", "up_proj", "down_proj")
    ]
    assert summary(names) == "288 tensors, experts 40-47 of layers 24-35"


def test_summary_counts_what_is_not_routed_beside_experts() -> None:
    names = [
        "model.layers.1.mlp.experts.3.up_proj.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "lm_head.weight",
    ]
    assert summary(names) == "3 tensors, expert 3 of layer 1, 1 other of layer 1, lm_head.weight"


def test_grouped_joins_experts_then_layers() -> None:
    names = [f"m.layers.{layer}.mlp.experts.{expert}.up.weight" for layer in (1, 2) for expert in (3, 17)]
    assert grouped([*names, "m.layers.0.norm.weight", "m.layers.1.norm.weight", "lm_head.weight"]) == [
        "norm.weight of layers 0-1",
        "lm_head.weight",
        "up.weight of experts 3 and 17 of layers 1-2",
    ]


def test_what_is_not_known_is_written_without_being_listed() -> None:
    assert ranges_without([0, 1, 5], 10) == "2-4 and 6-9"
    assert ranges_without([], 1 << 60) == "0-1152921504606846975"
    assert ranges_without(range(3), 3) == ""
