"""vLLM's own loader over merged checkpoints, and a few words from the one in bf16. Exits 1 if anything is wrong.

Run where vLLM is installed: `python -m tests.vllm.read FOLDER`. Every tensor that an index names must arrive in a
parameter as it was merged, and every parameter must be reached. Must not import shardmerge, torch worlds or modelopt.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from tests.vllm.models import config_of, loadable, torchvision_on_cpu
from tests.vllm.tracing import Trace, trace

PROMPT = [3, 17, 5, 29, 11]
NEW_TOKENS = 12
RUNS = "BF16"  # the checkpoint that generates
IN_ONE_FILE = "-hf_quant_config"
SHARED = {  # what drafts reads these of the model too
    "NemotronHForCausalLM": {"backbone.embeddings.weight", "lm_head.weight"},
    "DeepseekV3ForCausalLM": {"model.embed_tokens.weight"},
    "Glm4MoeForCausalLM": {"model.embed_tokens.weight", "lm_head.weight"},
    "Glm4MoeLiteForCausalLM": set(),
    "GlmMoeDsaForCausalLM": {"model.embed_tokens.weight"},
    "ExaoneMoeForCausalLM": {"model.embed_tokens.weight", "lm_head.weight"},
    "Qwen3NextForCausalLM": {"model.embed_tokens.weight", "lm_head.weight"},
    "Qwen3_5ForCausalLM": {"model.embed_tokens.weight", "lm_head.weight"},
    "Qwen3_5MoeForCausalLM": {"model.embed_tokens.weight", "lm_head.weight"},
    "Qwen3_5ForConditionalGeneration": {"model.language_model.embed_tokens.weight", "lm_head.weight"},
    "Qwen3_5MoeForConditionalGeneration": {"model.language_model.embed_tokens.weight", "lm_head.weight"},
}
SILENT = "Qwen3NextForCausalLM"  # its published config.json does not say that there is multi-token prediction
MTP_KEYS = ("num_nextn_predict_layers", "mtp_num_hidden_layers")
VOCABULARY = ("embed_tokens.weight", "embedding.weight", "embeddings.weight", "head.weight")
PACKED = (".experts.gate_up_proj", ".experts.down_proj")
# vLLM keeps their packed experts transposed, as [experts, outputs, inputs]
TURNED = (
    "GptOssForCausalLM",
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
)
# and of these heads first the even channels and then the odd ones, as it rotates halves, not neighbours
HALVED = re.compile(r"^(language_model\.)?model\.layers\.\d+\.self_attn\.[qk]_proj\.weight$")
UNPACKED = {torch.float32, torch.bfloat16}
OPTIONAL = (
    ".attn.q_scale",
    ".attn.k_scale",
    ".attn.v_scale",
    ".attn.prob_scale",
)  # of a KV cache; 1 if absent


def main(folder: Path) -> int:
    """Each checkpoint in a process of its own: vLLM keeps one configuration in a process."""
    held = sorted({path.parent for path in folder.glob("*/*.safetensors")})
    paths = [
        path
        for path in held
        if not path.name.startswith("reference-") and not path.name.endswith(IN_ONE_FILE)
    ]
    paths += [_told_in_one_file(path) for path in paths if (path / "hf_quant_config.json").exists()]
    failed = [path.name for path in paths if _run(path)]
    print(f"FAILED: {', '.join(failed)}" if failed or not paths else f"vLLM reads all {len(paths)} of them")
    return 1 if failed or not paths else 0


def _run(path: Path) -> int:
    """Return the exit status of one checkpoint's process."""
    command = [sys.executable, "-W", "ignore", "-m", __spec__.name, str(path), "alone"]
    return subprocess.run(command, check=False).returncode


def _told_in_one_file(path: Path) -> Path:
    """Return a copy whose quantization only hf_quant_config.json tells; else vLLM looks at config.json alone.

    vLLM 0.32 opens that file, but refuses any but FP8 and NVFP4 there, though its parser knows them: they are handed to
    the parser. Source: vllm/transformers_utils/model_arch_config_convertor.py, `_normalize_quantization_config`.
    """
    copy = path.with_name(path.name + IN_ONE_FILE)
    shutil.copytree(path, copy, dirs_exist_ok=True)
    told = json.loads((copy / "hf_quant_config.json").read_text())["quantization"]
    config = config_of(copy)
    del config["quantization_config"]
    if told["quant_algo"] not in ("FP8", "NVFP4"):
        config["quantization_config"] = {"quant_method": "modelopt", "quantization": told}
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def generate(path: Path) -> None:
    """Greedy tokens of vLLM and of transformers, both in float32, must be the same."""
    with torchvision_on_cpu():
        import transformers
        from vllm import LLM, SamplingParams

        engine = LLM(
            str(path), dtype="float32", enforce_eager=True, max_model_len=64, gpu_memory_utilization=0.1
        )
        wanted = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
        found = engine.generate({"prompt_token_ids": PROMPT}, wanted)[0].outputs[0]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    given = torch.tensor([PROMPT])
    expected = model.generate(given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)[
        0, len(PROMPT) :
    ]
    assert list(found.token_ids) == expected.tolist(), (list(found.token_ids), expected.tolist())
    print(f"{path.name}: vLLM writes {found.text!r}, as transformers does")


def load(path: Path) -> None:
    """The names of the index must be those that the model takes, and of MTP those that what drafts takes.

    Raises AssertionError.
    """
    index = names_of(path)
    config = config_of(path)
    mtp = {name for name in index if _is_mtp(name, config)}
    kind = config["architectures"][0]
    language = config.get("text_config", config)
    assert bool(mtp) == any(language.get(key) for key in MTP_KEYS) or kind == SILENT
    taken: set[str] = set()
    with torchvision_on_cpu(), loadable(path, drafts=bool(mtp)) as models:
        for one in models:
            found = trace(one.model, one.load)
            expected = mtp | SHARED[kind] if one.is_draft else index - mtp
            assert found.taken() == expected, sorted(found.taken() ^ expected)
            for name in expected:
                _require_same(name, _arranged(name, found.files[name], config), found)
            _require_all_reached(found)
            taken |= found.taken()
    assert taken == index
    print(f"{path.name}: {len(taken)} tensors arrived as they were merged, {len(mtp)} of them in what drafts")


def names_of(path: Path) -> set[str]:
    """Return the names of all tensors, as the index has them, or the only file."""
    index = path / "model.safetensors.index.json"
    if index.exists():
        return {*json.loads(index.read_text())["weight_map"]}
    with safe_open(path / "model.safetensors", framework="pt") as file:
        return {*file.keys()}


def _is_mtp(name: str, config: dict[str, Any]) -> bool:
    """Whether a tensor is of multi-token prediction: called so, or of a layer after the last."""
    layer = re.match(r"model\.layers\.(\d+)\.", name)
    return name.startswith("mtp.") or (layer is not None and int(layer[1]) >= config["num_hidden_layers"])


def _arranged(name: str, tensor: torch.Tensor, config: dict[str, Any]) -> torch.Tensor:
    """Return a tensor of a file as vLLM arranges it for itself, written down from what its models compute."""
    kind = config["architectures"][0]
    if name.endswith(".mixer.A_log"):  # of Mamba
        return -torch.exp(tensor.float())
    if kind in TURNED and name.endswith(PACKED):
        return tensor.transpose(1, 2)
    if kind.startswith("Llama4") and HALVED.match(name):
        pairs = config.get("text_config", config)["head_dim"] // 2
        halves: torch.Tensor = tensor.unflatten(0, (-1, pairs, 2)).transpose(1, 2)
        return halves
    return tensor


def _require_same(name: str, tensor: torch.Tensor, found: Trace) -> None:
    """A tensor must be written to one parameter, whole, element for element.

    Only padding of the vocabulary may follow. A scale may be repeated, once for each part of a fused weight. vLLM keeps
    some tensors in another precision than files do, but what is packed it must take as it is.
    """
    ((parameter, values),) = found.written(name).items()
    assert tensor.dtype == values.dtype or {tensor.dtype, values.dtype} == UNPACKED, (
        name,
        parameter,
    )
    expected = tensor.to(values.dtype).reshape(-1)
    if parameter.endswith(VOCABULARY):
        expected = torch.nn.functional.pad(expected, (0, values.numel() - expected.numel()))
    elif not tensor.ndim:
        expected = expected.expand(values.numel()).contiguous()
    assert torch.equal(values.view(torch.uint8), expected.view(torch.uint8)), (name, parameter)


def _require_all_reached(found: Trace) -> None:
    weights_only = not any(name.endswith(".input_scale") for name in found.files)
    unused = (*OPTIONAL, "input_scale") if weights_only else OPTIONAL
    for parameter, mask in found.reached().items():
        assert mask.all() or parameter.endswith(unused), f"no tensor went to all of {parameter}"


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(main(Path(sys.argv[1])))
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # or operators are not declared where it runs
    if Path(sys.argv[1]).name == RUNS:
        generate(Path(sys.argv[1]))
    else:
        load(Path(sys.argv[1]))
