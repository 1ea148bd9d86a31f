"""vLLM's models of a checkpoint on a CPU, with its own loader: the model, and what drafts tokens for it, if it has one.

Only the choice of kernels is replaced, as there are none for a CPU; nothing is run. Must not know which tensors a
checkpoint holds.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch


@dataclass(frozen=True, slots=True)
class Loadable:
    """A model without weights. `load` gives it those of the checkpoint, before kernels rearrange them."""

    is_draft: bool
    model: Any
    load: Callable[[], None]


@contextmanager
def loadable(path: Path, *, drafts: bool) -> Iterator[list[Loadable]]:
    """Build the model of a checkpoint and, where it has multi-token prediction, the one that drafts.

    One process can do that once: vLLM keeps one configuration. Entered within `torchvision_on_cpu`.
    """
    _register_config()
    from vllm.config import set_current_vllm_config
    from vllm.distributed import init_distributed_environment, initialize_model_parallel
    from vllm.engine.arg_utils import EngineArgs
    from vllm.model_executor.model_loader import get_model_loader
    from vllm.model_executor.model_loader.utils import initialize_model
    from vllm.utils.torch_utils import set_default_torch_dtype

    mtp = {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}} if drafts else {}
    with ExitStack() as stack:
        stack.enter_context(_without_kernels())
        config: Any = EngineArgs(
            str(path), enforce_eager=True, max_model_len=64, kv_cache_dtype=_kv_cache_dtype(path), **mtp
        ).create_engine_config()
        stack.enter_context(set_current_vllm_config(config))
        stack.enter_context(set_default_torch_dtype(torch.bfloat16))
        parts = [config.model_config]
        if drafts:
            parts.append(config.speculative_config.draft_model_config)
        init_distributed_environment(1, 0, f"file://{tempfile.mkdtemp()}/store", 0, "gloo")
        initialize_model_parallel(1, 1)
        found = []
        for part in parts:
            model, loader = (
                initialize_model(vllm_config=config, model_config=part),
                get_model_loader(config.load_config),
            )
            found.append(Loadable(part is not parts[0], model, _load(loader, model, part)))
        yield found


def config_of(path: Path) -> dict[str, Any]:
    """Return config.json of a checkpoint."""
    config: dict[str, Any] = json.loads((path / "config.json").read_text())
    return config


@contextmanager
def torchvision_on_cpu() -> Iterator[None]:
    """Let torchvision be imported beside a torch for CPUs, where vLLM wants its processors of images; entered first.

    The wheel on PyPI has its operators for CUDA alone, and its Python part wants two of them declared at import. vLLM
    looks at a class in a process of its own, where they are not: it does so in this one.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in ("nms", "qnms"):
            torch.library.define(
                f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            )
    from vllm.model_executor.models import registry

    with mock.patch.object(registry, "_run_in_subprocess", lambda inspect: inspect()):
        yield


def _register_config() -> None:
    """Let transformers read the config.json of a class that it lacks, and whose checkpoints bring code for it."""
    import transformers

    kind = type("BailingMoeV2Config", (transformers.PreTrainedConfig,), {"model_type": "bailing_moe_v2"})
    transformers.AutoConfig.register("bailing_moe_v2", kind)


def _load(loader: Any, model: Any, part: Any) -> Callable[[], None]:
    return lambda: loader.load_weights(model, part)


def _kv_cache_dtype(path: Path) -> str:
    file = path / "hf_quant_config.json"
    told = json.loads(file.read_text())["quantization"] if file.exists() else {}
    return "fp8" if told.get("kv_cache_quant_algo") == "FP8" else "auto"


@contextmanager
def _without_kernels() -> Iterator[None]:
    """Let vLLM build experts that are not gated, and whatever modelopt quantizes, as if it had kernels for them."""
    from vllm.model_executor.layers.fused_moe import config as moe
    from vllm.model_executor.layers.fused_moe import unquantized_fused_moe_method as unquantized
    from vllm.model_executor.layers.fused_moe.oracle.fp8 import Fp8MoeBackend
    from vllm.model_executor.layers.fused_moe.oracle.nvfp4 import NvFp4MoeBackend
    from vllm.model_executor.layers.quantization import modelopt
    from vllm.platforms.cpu import CpuPlatform

    attention = CpuPlatform.get_attn_backend_cls

    def dense(chosen: Any, attn_selector_config: Any, num_heads: int | None = None) -> Any:
        """Return the attention that a model with an indexer would have without one: a CPU has no sparse one."""
        return attention(chosen, attn_selector_config._replace(use_sparse=False), num_heads)

    platform = mock.Mock(wraps=moe.current_platform, **{"is_cuda_alike.return_value": True})
    no_kernel = mock.Mock(supports_pre_processed_weights=False)
    plain = unquantized.UnquantizedMoeBackend.TRITON
    replaced: tuple[tuple[Any, str, Any], ...] = (
        (CpuPlatform, "get_attn_backend_cls", staticmethod(dense)),
        (moe, "current_platform", platform),
        (unquantized, "select_unquantized_moe_backend", lambda **_: (plain, None)),
        (modelopt, "init_nvfp4_linear_kernel", lambda **_: no_kernel),
        (modelopt, "select_nvfp4_moe_backend", lambda **_: (NvFp4MoeBackend.EMULATION, None)),
        (modelopt, "select_fp8_moe_backend", lambda **_: (Fp8MoeBackend.TRITON, None)),
    )
    with ExitStack() as stack:
        for module, name, value in replaced:
            stack.enter_context(mock.patch.object(module, name, value))
        yield
