"""vLLM's own loader over merged checkpoints, and a few words from the one in bf16. Exits 1 if anything is wrong.

Run where vLLM is installed: `python -m tests.vllm.read FOLDER`. Every parameter is poisoned before it is loaded, so
one that no file reaches is seen. Only the choice of an NVFP4 kernel is replaced, as there is none for a CPU; what is
loaded is not run. Must not import shardmerge, torch worlds or modelopt.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from safetensors import safe_open

QUANTIZED = ("FP8", "FP8_KV", "NVFP4", "W4A16_NVFP4", "MIXED")
SUFFIXES = ("weight", "weight_scale", "weight_scale_2", "input_scale")
PROMPT = [3, 17, 5, 29, 11]
NEW_TOKENS = 12
POISON = {torch.uint8: 0xEE, torch.float8_e4m3fn: float("nan")}


def main(folder: Path) -> int:
    """Each checkpoint in a process of its own: vLLM keeps one configuration in a process."""
    failed = [name for name in ("BF16", *QUANTIZED) if run(folder, name)]
    print(f"FAILED: {', '.join(failed)}" if failed else "vLLM reads all of them")
    return 1 if failed else 0


def run(folder: Path, name: str) -> int:
    """The exit status of one checkpoint's process."""
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-m", __spec__.name, str(folder), name], check=False
    ).returncode


def generate(path: Path) -> None:
    """Greedy tokens of vLLM and of transformers, both in float32, must be the same."""
    import transformers
    from vllm import LLM, SamplingParams

    engine = LLM(str(path), dtype="float32", enforce_eager=True, max_model_len=64, gpu_memory_utilization=0.1)
    wanted = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    found = engine.generate({"prompt_token_ids": PROMPT}, wanted)[0].outputs[0]
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    given = torch.tensor([PROMPT])
    expected = model.generate(given, max_new_tokens=NEW_TOKENS, do_sample=False, eos_token_id=None)[
        0, len(PROMPT) :
    ]
    assert list(found.token_ids) == expected.tolist(), (list(found.token_ids), expected.tolist())
    print(f"BF16: vLLM writes {found.text!r}, as transformers does")


def load(path: Path) -> Any:
    """The model with the weights that vLLM's loader found, before kernels rearrange them."""
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
    from vllm.model_executor.layers.quantization import modelopt
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    told = json.loads((path / "hf_quant_config.json").read_text())["quantization"]
    cache = "fp8" if told["kv_cache_quant_algo"] == "FP8" else "auto"
    config = EngineArgs(
        str(path), enforce_eager=True, max_model_len=64, kv_cache_dtype=cache
    ).create_engine_config()
    no_kernel = mock.Mock(supports_pre_processed_weights=False)
    with (
        mock.patch.object(modelopt, "init_nvfp4_linear_kernel", return_value=no_kernel),
        mock.patch.object(
            modelopt, "select_nvfp4_moe_backend", return_value=(NvFp4MoeBackend.EMULATION, None)
        ),
        set_current_vllm_config(config),
        set_default_torch_dtype(torch.bfloat16),
    ):
        init_distributed_environment(1, 0, f"file://{path}.store", 0, "gloo")
        initialize_model_parallel(1, 1)
        model = initialize_model(vllm_config=config)
        for parameter in model.parameters():
            parameter.data.fill_(POISON.get(parameter.dtype, float("nan")))
        get_model_loader(config.load_config).load_weights(model, config.model_config)
    return model


def compare(path: Path) -> int:
    """Compare what arrived with what the files hold; how many tensors were compared. Raises AssertionError."""
    arrived, files, count = dict(load(path).named_parameters()), read(path), 0
    for name, parts in fused(files):
        got = arrived.pop(name)
        expected = torch.cat([part.to(got.dtype).reshape(-1) for part in parts])
        if expected.numel() == 2 * got.numel():  # one scalar for gate and up, which share it
            pairs = expected.view(-1, 2)
            assert torch.equal(pairs[:, 0], pairs[:, 1]), name
            expected = pairs[:, 0].contiguous()
        assert torch.equal(got.data.reshape(-1).view(torch.uint8), expected.view(torch.uint8)), name
        count += len(parts)
    return count


def fused(files: dict[str, torch.Tensor]) -> Iterator[tuple[str, list[torch.Tensor]]]:
    """(vLLM's parameter, the tensors it is made of in their order) of every quantized weight and scale."""
    layers = sorted({int(name.split(".")[2]) for name in files if ".layers." in name})
    experts = sorted({int(name.split(".experts.")[1].split(".")[0]) for name in files if ".experts." in name})
    for layer in layers:
        prefix = f"model.layers.{layer}."
        for suffix in SUFFIXES:
            for fused_name, names in (("qkv_proj", "qkv"), ("o_proj", "o")):
                parts = [files.get(f"{prefix}self_attn.{one}_proj.{suffix}") for one in names]
                if (held := _all(parts)) is not None:
                    yield f"{prefix}self_attn.{fused_name}.{suffix}", held
            for fused_name, projections in (("w13", ("gate", "up")), ("w2", ("down",))):
                parts = [
                    files.get(f"{prefix}mlp.experts.{e}.{one}_proj.{suffix}")
                    for e in experts
                    for one in projections
                ]
                if (held := _all(parts)) is not None:
                    yield f"{prefix}mlp.experts.routed_experts.{fused_name}_{suffix}", held
        for side in "kv":
            if (scale := files.get(f"{prefix}self_attn.{side}_proj.{side}_scale")) is not None:
                yield f"{prefix}self_attn.attn.{side}_scale", [scale]


def _all(parts: list[torch.Tensor | None]) -> list[torch.Tensor] | None:
    """The parts, or None if the checkpoint has none of them. Raises AssertionError if it has some."""
    held = [part for part in parts if part is not None]
    assert len(held) in (0, len(parts))
    return held or None


def read(path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint."""
    found = {}
    for file in path.glob("*.safetensors"):
        with safe_open(file, framework="pt") as handle:
            found.update({name: handle.get_tensor(name) for name in handle.keys()})
    return found


if __name__ == "__main__":
    if len(sys.argv) == 2:
        sys.exit(main(Path(sys.argv[1])))
    if sys.argv[2] == "BF16":
        generate(Path(sys.argv[1]) / "BF16")
    else:
        number = compare(Path(sys.argv[1]) / sys.argv[2])
        print(f"{sys.argv[2]}: {number} weights and scales arrived as they were merged")
