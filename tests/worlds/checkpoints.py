"""Hugging Face checkpoints of a family: a real transformers model with telling weights, and its sidecars.

Decides which values are written (no tensor constant, none like another, norms never 1) and that names are
the published ones. Must not know megatron-core or worlds.
"""

import json
import math
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import safe_open
from tokenizers import Tokenizer, models, pre_tokenizers

from tests.worlds.by_hand import CONFIGS
from tests.worlds.composites import publish_weights, published
from tests.worlds.families import Family
from tests.worlds.hf_config import hf_config

FLOAT32 = {"A_log", "D"}
PUBLISHED_PACKED = ("Qwen3_5MoeForCausalLM", "Qwen3_5MoeForConditionalGeneration")
KIMI = {
    "KimiK2ForCausalLM": "DeepseekV3ForCausalLM",
    "KimiK25ForConditionalGeneration": "Kimi_K25ForConditionalGeneration",
}
CHAT_TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"


def write_hf_checkpoint(
    family: Family,
    path: Path,
    seed: int = 0,
    *,
    max_shard_size: str | int | None = None,
    packed: bool = False,
) -> Path:
    """Write weights, config, tokenizer and generation config of the family under `path` and return it.

    bfloat16 throughout but for what megatron-core holds in float32: `e_score_correction_bias`, Mamba's `A_log` and `D`.
    transformers packs experts in memory and itself restores per-expert names when saving, unless they are to stay
    `packed`, as those of `PUBLISHED_PACKED` are published.
    """
    model = random_hf_model(family, seed)
    options: dict[str, Any] = {} if max_shard_size is None else {"max_shard_size": max_shard_size}
    is_packed = packed or family.architecture in PUBLISHED_PACKED
    options |= {"save_original_format": False} if is_packed else {}
    model.save_pretrained(path, **options)
    if family.is_composite:
        publish_weights(family, path)
    _publish_config(family, path)
    transformers.GenerationConfig(
        bos_token_id=1, eos_token_id=2, temperature=0.7, do_sample=True
    ).save_pretrained(path)
    _write_tokenizer(family.vocab, path)
    return path


def hf_class(family: Family) -> Any:
    """Return the family's class of transformers, which calls Kimi's otherwise: Kimi-K2 is DeepSeek-V3 there."""
    return getattr(transformers, KIMI.get(family.architecture, family.architecture))


def write_config(family: Family, path: Path) -> Path:
    """Write config.json alone under `path`, which is made, and return it."""
    if family.architecture in CONFIGS:
        path.mkdir(parents=True, exist_ok=True)
        _write_json(CONFIGS[family.architecture](family), path / "config.json")
    else:
        kind = hf_class(family).config_class
        config = kind(**hf_config(family), architectures=[family.architecture], dtype="bfloat16")
        config.save_pretrained(path)
    _publish_config(family, path)
    return path


def config_json(family: Family) -> dict[str, Any]:
    """Return what config.json must say of a family, and nothing of what transformers adds to it."""
    by_class = {
        "architectures": [family.architecture],
        "model_type": hf_class(family).config_class.model_type,
    }
    return hf_config(family) | by_class


def random_hf_model(family: Family, seed: int = 0) -> Any:
    """Return the family's transformers model in bfloat16, every parameter and bias buffer drawn from `seed`."""
    model_class = hf_class(family)
    config = model_class.config_class(**hf_config(family))
    with warnings.catch_warnings():  # a vision tower has complex numbers, which nobody reads here
        warnings.filterwarnings("ignore", message="Casting complex values")
        model = model_class(config).to(torch.bfloat16).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(telling_values(name, parameter.shape, generator))
        for module in model.modules():
            if hasattr(module, "e_score_correction_bias"):
                shape = module.e_score_correction_bias.shape
                drawn = 0.1 * torch.randn(shape, generator=generator)
                module.e_score_correction_bias = (
                    torch.nn.Parameter(drawn, requires_grad=False)
                    if isinstance(module.e_score_correction_bias, torch.nn.Parameter)
                    else drawn
                )
            for name in (FLOAT32 if family.mamba else set()) & {
                own for own, _ in module.named_parameters(recurse=False)
            }:
                parameter = getattr(module, name)
                parameter.data = torch.randn(parameter.shape, generator=generator)
    return model


def telling_values(name: str, shape: torch.Size, generator: torch.Generator) -> torch.Tensor:
    """Draw normal values; those of a norm lie around 1 and at least 1/16 away from it on either side."""
    values = torch.randn(shape, generator=generator)
    if "norm" in name:
        sides = torch.where(values < 0, -1.0, 1.0)
        return torch.ones(shape) + sides * (0.0625 + 0.2 * torch.rand(shape, generator=generator))
    if name.endswith(".bias"):
        return 0.5 * values
    return values / math.sqrt(shape[-1])


def _publish_config(family: Family, path: Path) -> None:
    """Spell config.json as the published checkpoints do, beside what transformers 5 writes.

    It writes `num_local_experts` for Qwen3-MoE and nests `rope_theta`; published files say `num_experts`,
    `rope_theta` and `torch_dtype`. It writes words for the layers of Nemotron-H, as only the largest published one
    does; without latent experts they are letters here. transformers reads either.
    """
    config = json.loads((path / "config.json").read_text())
    if family.architecture == "Qwen3MoeForCausalLM":
        config["num_experts"] = config.pop("num_local_experts", config.get("num_experts"))
    if family.mamba is not None and family.experts is not None and not family.experts.latent_width:
        del config["layers_block_type"]
        config |= {"hybrid_override_pattern": family.mamba.pattern, "num_hidden_layers": family.layers}
    config["architectures"] = [family.architecture]
    if family.is_composite:
        (path / "config.json").write_text(
            json.dumps(published(family, config), indent=2, sort_keys=True) + "\n"
        )
        return
    config["rope_theta"] = float(family.rope_theta)
    config["torch_dtype"] = "bfloat16"
    _write_json(config, path / "config.json")


def _write_json(value: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def _write_tokenizer(vocab_size: int, path: Path) -> None:
    """Write a word-level tokenizer of exactly `vocab_size` entries and a chat template."""
    words = ["<unk>", "<s>", "</s>", *(f"w{number}" for number in range(vocab_size - 3))]
    tokenizer = Tokenizer(
        models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )
    fast.chat_template = CHAT_TEMPLATE
    fast.save_pretrained(path)


def read_hf_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return every tensor of all safetensors files directly under `path`, by name."""
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            tensors.update({name: handle.get_tensor(name) for name in handle.keys()})
    return tensors
