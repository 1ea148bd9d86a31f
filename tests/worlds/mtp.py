"""Families with steps of multi-token prediction (MTP), and their Hugging Face checkpoints, as published ones are.

transformers neither builds nor writes these tensors: they are made here from the names of the decoder's, as read in the
file that transformers wrote, and added to it. Must not know shardmerge's tables.
Source: vllm/model_executor/models/{deepseek_mtp,nemotron_h_mtp}.py (names); config.json of deepseek-ai/DeepSeek-V3 and
nvidia/NVIDIA-Nemotron-3-{Super-120B-A12B,Ultra-550B-A55B}-BF16.
"""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.worlds.by_hand import BY_HAND
from tests.worlds.checkpoints import read_hf_tensors, telling_values, write_config, write_hf_checkpoint
from tests.worlds.families import FAMILIES, Family, by_name
from tests.worlds.hybrid import IS_HYBRID
from tests.worlds.sparse import HAS_SPARSE
from tests.worlds.topology import Topology
from tests.worlds.widths import Mamba, Steps

Tensors = dict[str, torch.Tensor]
COPIES = {"embed_tokens.weight": "model.embed_tokens.weight", "shared_head.head.weight": "lm_head.weight"}
WORDS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}

DEEPSEEK_V3_MTP = replace(by_name("deepseek_v3"), name="deepseek_v3_mtp", mtp=Steps(count=2))
# wider, as the rows of a fused q/k/v would else be as many as the columns of eh_proj; trained as published ones are
NEMOTRON_H_MTP = replace(
    by_name("nemotron_h"), name="nemotron_h_mtp", hidden=88, mtp=Steps(1, "*E", passes=2)
)
NEMOTRON_H_LATENT_MTP = replace(
    by_name("nemotron_h_latent"), name="nemotron_h_latent_mtp", hidden=88, mtp=Steps(2, "*E")
)
# no published model has other layers than these in a step, but megatron-core builds them
NEMOTRON_H_MIXED_MTP = replace(
    NEMOTRON_H_MTP, name="nemotron_h_mixed_mtp", mamba=Mamba("ME*-"), mtp=Steps(2, "M-E*")
)

# of published models GLM-4.6 holds no copies of the embeddings below its step, GLM-4.7-Flash does
GLM4_MOE_MTP = replace(by_name("glm4_moe"), name="glm4_moe_mtp", qk_norm=False, mtp=Steps())
GLM4_MOE_LITE_MTP = replace(by_name("glm4_moe_lite"), name="glm4_moe_lite_mtp", mtp=Steps())
# its step is dense, though its last layer has experts
EXAONE_MOE_MTP = replace(by_name("exaone_moe"), name="exaone_moe_mtp", mtp=Steps(dense=True))

# a layer with attention, though most layers have a DeltaNet, and with experts where the decoder has some; not tied,
# which 0.16 cannot describe over stages
QWEN3_NEXT_MTP = replace(by_name("qwen3_next"), name="qwen3_next_mtp", mtp=Steps())
QWEN3_5_MTP = replace(by_name("qwen3_5"), name="qwen3_5_mtp", tied=False, mtp=Steps())
QWEN3_5_MOE_MTP = replace(by_name("qwen3_5_moe"), name="qwen3_5_moe_mtp", mtp=Steps())
QWEN3_5_VL_MTP = replace(by_name("qwen3_5_vl"), name="qwen3_5_vl_mtp", tied=False, mtp=Steps())
QWEN3_5_MOE_VL_MTP = replace(by_name("qwen3_5_moe_vl"), name="qwen3_5_moe_vl_mtp", mtp=Steps())

GLM_MOE_DSA_MTP = replace(by_name("glm_moe_dsa"), name="glm_moe_dsa_mtp", mtp=Steps())

MTP_FAMILIES = (
    DEEPSEEK_V3_MTP,
    GLM4_MOE_MTP,
    GLM4_MOE_LITE_MTP,
    EXAONE_MOE_MTP,
    GLM_MOE_DSA_MTP,
    QWEN3_NEXT_MTP,
    QWEN3_5_MTP,
    QWEN3_5_MOE_MTP,
    QWEN3_5_VL_MTP,
    QWEN3_5_MOE_VL_MTP,
    NEMOTRON_H_MTP,
    NEMOTRON_H_LATENT_MTP,
    NEMOTRON_H_MIXED_MTP,
)

# A hybrid's virtual stages must be laid out by hand. The last chunk may hold steps, final norm and head, but no layer.
HYBRID_STAGES = (
    Topology(pp=2, vpp=2, stage_layers=(1, 1, 1, 1)),
    Topology(pp=3, stage_layers=(2, 2, 0)),
    Topology(pp=3, vpp=2, stage_layers=(1, 1, 0, 1, 1, 0)),
    Topology(pp=2, vpp=2, tp=2, ep=2, dp=2, stage_layers=(2, 0, 2, 0)),
)


def can_build(family: Family) -> bool:
    """Whether the installed megatron-core builds the family: 0.16 builds neither hybrids with MTP nor indexers."""
    if family.indexer is not None:
        return HAS_SPARSE
    return family.mamba is None or family.mtp is None or IS_HYBRID


BUILT = tuple(filter(can_build, FAMILIES))


def write_checkpoint(family: Family, path: Path) -> Path:
    """Write the checkpoint of any family, with its steps if it has some, and return it."""
    return (write_mtp_checkpoint if family.mtp else write_hf_checkpoint)(family, path)


def write_bare(family: Family, path: Path) -> Path:
    """Write config.json of any family, with its steps if it has some, and no weights; return the folder."""
    write_config(family, path)
    if family.mtp and family not in BY_HAND:
        _add_steps(family, path)
    return path


def hold_copies(family: Family, path: Path) -> None:
    """Let a folder without weights hold the copies below each step, of zeros: the reference's numbers do not count."""
    steps = range(family.layers, family.layers + _steps(family).count)
    shape = (family.vocab, family.hidden)
    zeros = {
        f"model.layers.{layer}.{name}": torch.zeros(shape).bfloat16() for layer in steps for name in COPIES
    }
    save_file(zeros, path / "model.safetensors", metadata={"format": "pt"})


def write_mtp_checkpoint(family: Family, path: Path, seed: int = 0) -> Path:
    """Write the checkpoint of a family of `MTP_FAMILIES` under `path`, in one file, and return it."""
    write_hf_checkpoint(family, path, seed)
    decoder = read_hf_tensors(path)
    generator = torch.Generator().manual_seed(seed + 1)
    is_only = _steps(family).dense or family.delta
    writer = _nemotron if family.mamba else _only if is_only else _deepseek
    added = writer(family, decoder, generator)
    save_file(decoder | added, path / "model.safetensors", metadata={"format": "pt"})
    if family.architecture != "Qwen3NextForCausalLM":  # whose published config.json is silent
        _add_steps(family, path)
    return path


def _add_steps(family: Family, path: Path) -> None:
    """Say steps in config.json: where a composite says what its language model is, not beside that."""
    config = json.loads((path / "config.json").read_text())
    (config["text_config"] if family.is_composite else config).update(_config(family))
    (path / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def _config(family: Family) -> dict[str, object]:
    """What config.json says of steps; it spells the kinds of their layers as those of the decoder's.

    Of DeepSeek-V3 it says besides how to route, without which vLLM takes no router bias; transformers leaves that out.
    """
    steps = _steps(family)
    if family.architecture.startswith("Qwen3_5"):
        return {"mtp_num_hidden_layers": steps.count}
    if steps.dense or family.delta:
        return {"num_nextn_predict_layers": steps.count}
    if family.mamba is None:
        routing = {"topk_method": "noaux_tc", "scoring_func": "sigmoid"}
        return {"num_nextn_predict_layers": steps.count, **routing}
    latent = family.experts is not None and family.experts.latent_width
    words = {"mtp_layers_block_type": [WORDS[letter] for letter in steps.pattern]}
    letters = {"mtp_hybrid_override_pattern": steps.pattern, "mtp_layers_block_type": None}
    return {"num_nextn_predict_layers": steps.count, **(words if latent else letters)}


def _deepseek(family: Family, decoder: Tensors, generator: torch.Generator) -> Tensors:
    """A step is a layer after the last, with experts, and repeats both embeddings."""
    found: Tensors = {}
    for step in range(_steps(family).count):
        prefix, last = f"model.layers.{family.layers + step}.", f"model.layers.{family.layers - 1}."
        found |= _like(decoder, last, prefix, generator)
        for name, tensor in _joining(family.hidden, generator):
            found[prefix + name] = tensor
        found[f"{prefix}shared_head.norm.weight"] = _drawn("norm", (family.hidden,), generator)
        if family.architecture != "Glm4MoeForCausalLM":
            for name, source in COPIES.items():
                found[prefix + name] = decoder[source].clone()
    return found


def _only(family: Family, decoder: Tensors, generator: torch.Generator) -> Tensors:
    """The only step is a layer with attention: a dense one, as EXAONE's first is, or as others of its decoder.

    Beside a vision tower the decoder's names have another beginning, those of the step have not. Its experts are one by
    one, as in Qwen3.5, also where the decoder's are packed.
    """
    like = family.delta.pattern.index("*") if family.delta else 0
    layers = "model.language_model.layers." if family.is_composite else "model.layers."
    found = _one_by_one(_like(decoder, f"{layers}{like}.", "mtp.layers.0.", generator))
    names = {
        "enorm.weight": "pre_fc_norm_embedding.weight", "hnorm.weight": "pre_fc_norm_hidden.weight",
        "eh_proj.weight": "fc.weight",
    }  # fmt: skip
    for name, tensor in _joining(family.hidden, generator):
        found[f"mtp.{names[name]}"] = tensor
    found["mtp.norm.weight"] = _drawn("norm", (family.hidden,), generator)
    return found


def _one_by_one(tensors: Tensors) -> Tensors:
    """Return the tensors with packed experts cut in matrices: gate above up [E, 2I, h], and down [E, h, I]."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        beginning, packed, kind = name.rpartition(".experts.")
        if not packed or kind not in ("gate_up_proj", "down_proj"):
            found[name] = tensor
            continue
        kinds = ("gate_proj", "up_proj") if kind == "gate_up_proj" else (kind,)
        for expert, matrix in enumerate(tensor):
            for one, part in zip(kinds, matrix.chunk(len(kinds)), strict=True):
                found[f"{beginning}.experts.{expert}.{one}.weight"] = part.clone()
    return found


def _nemotron(family: Family, decoder: Tensors, generator: torch.Generator) -> Tensors:
    """Layers of all steps are numbered through; a step's first one joins, its last one has the final norm."""
    assert family.mamba is not None
    found: Tensors = {}
    number = 0
    for _ in range(_steps(family).count):
        for name, tensor in _joining(family.hidden, generator):
            found[f"mtp.layers.{number}.{name}"] = tensor
        for letter in _steps(family).pattern:
            like = family.mamba.pattern.index(letter)
            found |= _like(decoder, f"backbone.layers.{like}.", f"mtp.layers.{number}.", generator)
            number += 1
        found[f"mtp.layers.{number - 1}.final_layernorm.weight"] = _drawn("norm", (family.hidden,), generator)
    return found


def _joining(hidden: int, generator: torch.Generator) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield what joins the hidden state and the embedding."""
    for norm in ("enorm", "hnorm"):
        yield f"{norm}.weight", _drawn("norm", (hidden,), generator)
    yield "eh_proj.weight", _drawn("eh_proj", (hidden, 2 * hidden), generator)


def _like(decoder: Tensors, layer: str, prefix: str, generator: torch.Generator) -> Tensors:
    """Return other values for all tensors of a layer, under names that begin with `prefix`."""
    found: Tensors = {}
    for name, tensor in sorted(decoder.items()):
        if name.startswith(layer):
            drawn = telling_values(name, tensor.shape, generator)
            found[prefix + name.removeprefix(layer)] = drawn.to(tensor.dtype)
    return found


def _drawn(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    return telling_values(name, torch.Size(shape), generator).bfloat16()


def _steps(family: Family) -> Steps:
    assert family.mtp is not None, f"{family.name} is not of MTP_FAMILIES"
    return family.mtp
