"""The Nemotron-3 models as published, but narrow: their patterns of layers, numbers of experts and options.

Every Hugging Face tensor is written down here by hand, from the identities of Megatron's (`tests.worlds.filling`). Must
not know shardmerge.
Source: config.json of nvidia/NVIDIA-Nemotron-3-{Nano-30B-A3B,Super-120B-A12B,Ultra-550B-A55B}-BF16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch

from tests.worlds.families import Family
from tests.worlds.filling import expected
from tests.worlds.hf_config import hf_config
from tests.worlds.hybrid import IS_HYBRID
from tests.worlds.widths import Experts, Mamba, Steps

PATTERNS = {
    "nano": "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
    "super": "MEMEMEM*EMEMEMEM*EMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEMEM*EMEMEMEM*EMEMEMEME",
    "ultra": "MEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEM*EMEMEM*"
    "EMEMEMEM*EMEMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME",
}
STEP = "*E"
Tensors = dict[str, torch.Tensor]


def narrow(name: str) -> Family:
    """One of the three, with widths that blocks of 16 divide; no weight is square, and no width is another's.

    Nano has no latent experts and no steps. megatron-core 0.16 builds no steps of hybrids: there they are left away.
    """
    nano = name == "nano"
    experts = Experts(
        num_experts=128 if nano else 512,
        top_k=6 if nano else 22,
        width=48,
        shared_width=80,
        router_bias=True,
        scaling=2.5 if nano else 5.0,
        latent_width=0 if nano else 32,
    )
    return Family(
        f"nemotron_3_{name}",
        "NemotronHForCausalLM",
        layers=len(PATTERNS[name]),
        hidden=64,
        heads=8,
        groups=2,
        head_channels=16,
        dense_width=96,
        vocab=61,
        experts=experts,
        mamba=Mamba(PATTERNS[name], heads=16, head_channels=7, groups=8, state=6),
        mtp=Steps(1, STEP, passes=2) if IS_HYBRID and not nano else None,
    )


def shortened(family: Family, pattern: str, num_experts: int) -> Family:
    """The same with fewer layers and experts."""
    assert family.mamba is not None
    assert family.experts is not None
    return replace(
        family,
        layers=len(pattern),
        mamba=replace(family.mamba, pattern=pattern),
        experts=replace(family.experts, num_experts=num_experts),
    )


def config_json(family: Family) -> dict[str, Any]:
    """What config.json says, spelled as that of Super, which gives patterns as letters."""
    config = hf_config(family) | {
        "architectures": [family.architecture],
        "model_type": "nemotron_h",
        "conv_kernel": 4,
    }
    steps = {"num_nextn_predict_layers": 1, "mtp_hybrid_override_pattern": STEP} if family.mtp else {}
    return config | steps


def layers(family: Family) -> Iterator[tuple[str, str, str]]:
    """Yield of each layer what identities begin with, what Hugging Face names begin with, and its letter."""
    assert family.mamba is not None
    for layer, letter in enumerate(family.mamba.pattern):
        yield f"decoder.layers.{layer}.", f"backbone.layers.{layer}.", letter
    for layer, letter in enumerate(family.mtp.pattern if family.mtp else ""):
        yield f"mtp.layers.0.mtp_model_layer.layers.{layer}.", f"mtp.layers.{layer}.", letter


def layer_tensors(family: Family, mcore: str, hf: str, letter: str) -> Tensors:
    """Return every tensor of a layer, by its Hugging Face name."""
    norm = {"M": "norm.weight", "*": "input_layernorm.weight", "E": "pre_mlp_layernorm.weight"}[letter]
    mixer = KINDS[letter](family, mcore)
    found = {f"{hf}norm.weight": expected(mcore + norm, range(family.hidden))}
    return found | {f"{hf}mixer.{name}": tensor for name, tensor in mixer.items()}


def other_tensors(family: Family) -> Tensors:
    """Return what is in no layer, and what joins a step."""
    rows, hidden = range(family.vocab), range(family.hidden)
    found = {
        "backbone.embeddings.weight": expected("embedding.word_embeddings.weight", rows, hidden),
        "lm_head.weight": expected("output_layer.weight", rows, hidden),
        "backbone.norm_f.weight": expected("decoder.final_norm.weight", hidden),
    }
    if family.mtp:
        for name, layer in (("enorm", 0), ("hnorm", 0), ("final_layernorm", 1)):
            found[f"mtp.layers.{layer}.{name}.weight"] = expected(f"mtp.layers.0.{name}.weight", hidden)
        joined = expected("mtp.layers.0.eh_proj.weight", hidden, range(2 * family.hidden))
        found["mtp.layers.0.eh_proj.weight"] = joined
    return found


def _attention(family: Family, mcore: str) -> Tensors:
    """Rows of the fused projection go group by group: queries, key, value."""
    head, queries_of_group = family.head_channels, family.heads // family.groups
    blocks: dict[str, list[int]] = {"q": [], "k": [], "v": []}
    for group in range(family.groups):
        first = group * (queries_of_group + 2) * head
        blocks["q"] += range(first, first + queries_of_group * head)
        blocks["k"] += range(first + queries_of_group * head, first + (queries_of_group + 1) * head)
        blocks["v"] += range(first + (queries_of_group + 1) * head, first + (queries_of_group + 2) * head)
    qkv, hidden = f"{mcore}self_attention.linear_qkv.weight", range(family.hidden)
    found = {f"{name}_proj.weight": expected(qkv, rows, hidden) for name, rows in blocks.items()}
    proj = expected(f"{mcore}self_attention.linear_proj.weight", hidden, range(family.heads * head))
    return found | {"o_proj.weight": proj}


def _experts(family: Family, mcore: str) -> Tensors:
    assert family.experts is not None
    own, hidden = family.experts, range(family.hidden)
    every, width, shared = range(own.num_experts), range(own.width), range(own.shared_width)
    outside = range(own.latent_width) if own.latent_width else hidden
    found = {
        "gate.weight": expected(f"{mcore}mlp.router.weight", every, hidden),
        "gate.e_score_correction_bias": expected(f"{mcore}mlp.router.expert_bias", every),
        "shared_experts.up_proj.weight": expected(
            f"{mcore}mlp.shared_experts.linear_fc1.weight", shared, hidden
        ),
        "shared_experts.down_proj.weight": expected(
            f"{mcore}mlp.shared_experts.linear_fc2.weight", hidden, shared
        ),
    }
    if own.latent_width:
        found["fc1_latent_proj.weight"] = expected(f"{mcore}mlp.fc1_latent_proj.weight", outside, hidden)
        found["fc2_latent_proj.weight"] = expected(f"{mcore}mlp.fc2_latent_proj.weight", hidden, outside)
    for expert in every:
        at = f"{mcore}mlp.experts.{expert}."
        found[f"experts.{expert}.up_proj.weight"] = expected(f"{at}linear_fc1.weight", width, outside)
        found[f"experts.{expert}.down_proj.weight"] = expected(f"{at}linear_fc2.weight", outside, width)
    return found


def _mamba(family: Family, mcore: str) -> Tensors:
    assert family.mamba is not None
    own, hidden = family.mamba, range(family.hidden)
    inner, state = own.heads * own.head_channels, own.groups * own.state
    heads, channels, at = range(own.heads), range(inner + 2 * state), f"{mcore}mixer."
    found = {name: expected(at + name, heads) for name in ("A_log", "D", "dt_bias")}
    return found | {
        "in_proj.weight": expected(f"{at}in_proj.weight", range(2 * inner + 2 * state + own.heads), hidden),
        "conv1d.weight": expected(f"{at}conv1d.weight", channels, range(4)).unsqueeze(1),
        "conv1d.bias": expected(f"{at}conv1d.bias", channels),
        "norm.weight": expected(f"{at}norm.weight", range(inner)),
        "out_proj.weight": expected(f"{at}out_proj.weight", hidden, range(inner)),
    }


KINDS: dict[str, Callable[[Family, str], Tensors]] = {"M": _mamba, "*": _attention, "E": _experts}
