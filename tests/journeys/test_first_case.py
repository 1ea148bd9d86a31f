"""The project's first case: hundreds of experts over many ranks, rank by rank in one process.

108 layers and 512 experts at PP 9 x EP 8 came out of other exporters with 64 experts a layer, because local ids
collide. Every weight holds a function of its own name, row and column (`tests.worlds.filling`, which does its own
rank arithmetic), so what is expected of any Hugging Face element is written down here by hand.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import merge
from tests.worlds.checkpoints import config_json
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.filling import expected, fill
from tests.worlds.topology import Topology
from tests.worlds.widths import Experts


def narrow(layers: int, num_experts: int) -> Family:
    """A Qwen3-MoE as deep and as wide in experts as asked, and as narrow as it can be; no weight is square."""
    experts = Experts(num_experts=num_experts, width=12)
    return Family(
        "narrow",
        "Qwen3MoeForCausalLM",
        qk_norm=True,
        layers=layers,
        hidden=40,
        heads=4,
        groups=4,
        head_channels=8,
        dense_width=20,
        vocab=61,
        experts=experts,
    )


CASES = [
    pytest.param(narrow(108, 512), Topology(pp=9, ep=8, dp=8), id="72-ranks-108-layers-512-experts"),
    pytest.param(narrow(4, 64), Topology(tp=4, ep=8, dp=4), id="16-ranks-tp4-ep8-etp1"),
    pytest.param(narrow(16, 64), Topology(tp=4, pp=8, ep=16, cp=2, dp=16), id="1024-ranks"),
]


def river(family: Family, topology: Topology, folder: Path) -> Path:
    """Dump every rank in turn, merge, and return the output."""
    (folder / "hf").mkdir()
    config = config_json(family)
    (folder / "hf" / "config.json").write_text(json.dumps(config))
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(family, topology)
            fill(chunks, family, topology, rank)
            dump(chunks, folder / "dump", hf_reference=folder / "hf", run_id="first", step=1)
    merge([folder / "dump"], folder / "merged", hf_reference=folder / "hf", workers=1)
    return folder / "merged"


def expected_layer(family: Family, layer: int) -> dict[str, torch.Tensor]:
    """Every Hugging Face tensor of a layer, from the identities of Megatron's tensors, by hand."""
    assert family.experts is not None
    hidden, head, per_group = range(family.hidden), family.head_channels, family.heads // family.groups + 2
    mcore, hf = f"decoder.layers.{layer}.", f"model.layers.{layer}."
    qkv, proj = mcore + "self_attention.linear_qkv.weight", mcore + "self_attention.linear_proj.weight"
    blocks = [range(block * head, block * head + head) for block in range(family.groups * per_group)]
    queries = [
        row for number, rows in enumerate(blocks) if number % per_group < per_group - 2 for row in rows
    ]
    keys = [row for number, rows in enumerate(blocks) if number % per_group == per_group - 2 for row in rows]
    values = [
        row for number, rows in enumerate(blocks) if number % per_group == per_group - 1 for row in rows
    ]
    found = {
        "input_layernorm.weight": expected(mcore + "input_layernorm.weight", hidden),
        "post_attention_layernorm.weight": expected(mcore + "pre_mlp_layernorm.weight", hidden),
        "self_attn.q_proj.weight": expected(qkv, queries, hidden),
        "self_attn.k_proj.weight": expected(qkv, keys, hidden),
        "self_attn.v_proj.weight": expected(qkv, values, hidden),
        "self_attn.o_proj.weight": expected(proj, hidden, range(family.heads * head)),
        "self_attn.q_norm.weight": expected(mcore + "self_attention.q_layernorm.weight", range(head)),
        "self_attn.k_norm.weight": expected(mcore + "self_attention.k_layernorm.weight", range(head)),
        "mlp.gate.weight": expected(mcore + "mlp.router.weight", range(family.experts.num_experts), hidden),
    }
    width = family.experts.width
    for expert in range(family.experts.num_experts):
        fc1, fc2 = (f"{mcore}mlp.experts.{expert}.linear_fc{number}.weight" for number in (1, 2))
        found[f"mlp.experts.{expert}.gate_proj.weight"] = expected(fc1, range(width), hidden)
        found[f"mlp.experts.{expert}.up_proj.weight"] = expected(fc1, range(width, 2 * width), hidden)
        found[f"mlp.experts.{expert}.down_proj.weight"] = expected(fc2, hidden, range(width))
    return {hf + name: value for name, value in found.items()}


@pytest.mark.parametrize(("family", "topology"), CASES)
def test_every_expert_of_every_layer_is_in_the_index_with_its_own_values(
    family: Family, topology: Topology, tmp_path: Path
) -> None:
    merged = river(family, topology, tmp_path)
    weight_map = json.loads((merged / "model.safetensors.index.json").read_text())["weight_map"]
    files = {name: safe_open(merged / name, "pt") for name in set(weight_map.values())}
    left = set(weight_map)
    for layer in range(family.layers):
        wanted = expected_layer(family, layer)
        wrong = [
            name
            for name, value in wanted.items()
            if not equal(files[weight_map[name]].get_tensor(name), value)
        ]
        assert wrong == []
        left -= set(wanted)
    assert left == {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"}
    rows, hidden = range(family.vocab), range(family.hidden)
    for name, identity in (("model.embed_tokens", "embedding.word_embeddings"), ("lm_head", "output_layer")):
        value = files[weight_map[f"{name}.weight"]].get_tensor(f"{name}.weight")
        assert equal(value, expected(f"{identity}.weight", rows, hidden))


def equal(found: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Same shape and, in bfloat16, the same values."""
    return found.dtype == torch.bfloat16 and torch.equal(found, wanted.to(torch.bfloat16))
