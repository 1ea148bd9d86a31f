"""`verify` on what Model-Optimizer exported itself, from megatron-core and from transformers; sound, then spoiled."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.common.errors import (
    DeclarationMismatchError,
    MissingScaleError,
    ShardmergeError,
    StoredOtherwiseError,
)
from shardmerge.phase2_merge import verify
from tests.dumps.quantized_outputs import Tensors, bare_copy, change_declared
from tests.peers.test_quantized_export import export_on_rank
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.gloo import GlooRanks
from tests.worlds.quantizing import QWEN3_MOE, recipe
from tests.worlds.topology import SINGLE

pytestmark = pytest.mark.peers

EXPERT = "model.layers.1.mlp.experts.3.up_proj"
HIDDEN, WIDTH = 64, 128


@pytest.fixture(scope="module")
def exported(ranks: GlooRanks, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Model-Optimizer's export of a megatron-core model by recipe, each made once."""
    folder = tmp_path_factory.mktemp("exported")
    write_hf_checkpoint(QWEN3_MOE, folder / "reference")

    def export(name: str) -> Path:
        out = folder / name
        if not out.exists():
            ranks.run(export_on_rank, SINGLE, QWEN3_MOE, folder / "reference", out, recipe(name), False)
        return out

    return export


@pytest.mark.parametrize("name", ["FP8", "NVFP4", "W4A16_NVFP4", "MIXED"])
def test_an_export_from_megatron_is_sound(name: str, exported: Callable[[str], Path]) -> None:
    assert verify(exported(name)).warnings == ()


@pytest.mark.parametrize("name", ["NVFP4", "MIXED"])
def test_a_scale_that_the_export_lost_is_named(
    name: str, exported: Callable[[str], Path], tmp_path: Path
) -> None:
    lost = f"{EXPERT}.weight_scale_2"
    folder = bare_copy(exported(name), tmp_path / "spoiled", lambda tensors: tensors.pop(lost))
    with pytest.raises(MissingScaleError) as error:
        verify(folder)
    assert (error.value.tensor, error.value.shape, error.value.exit_code) == (lost, (), 3)


def test_files_of_an_export_that_disagree_are_refused(
    exported: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = bare_copy(exported("FP8"), tmp_path / "spoiled")
    change_declared(folder, lambda told: told["ignore"].append("model.layers.1*"))
    with pytest.raises(DeclarationMismatchError) as error:
        verify(folder)
    assert error.value.in_config == "a list with model.layers.1*"


def export_from_transformers(out: Path, preset: str, *, kv_cache: bool) -> None:
    """A small Llama, quantized and exported by Model-Optimizer's way for Hugging Face models."""
    import modelopt.torch.quantization as mtq
    from modelopt.torch.export import export_hf_checkpoint
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=HIDDEN, intermediate_size=WIDTH, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16, tie_word_embeddings=False, architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    model = LlamaForCausalLM(config).bfloat16()
    chosen: dict[str, Any] = copy.deepcopy(getattr(mtq, preset))
    if kv_cache:
        chosen["quant_cfg"] += mtq.FP8_KV_CFG["quant_cfg"]
    mtq.quantize(model, chosen, forward_loop=lambda one: one(torch.arange(32)[None]))
    export_hf_checkpoint(model, export_dir=str(out))


@pytest.mark.filterwarnings("ignore")  # modelopt and transformers, about each other
@pytest.mark.parametrize(
    ("preset", "kv_cache"),
    [("FP8_DEFAULT_CFG", False), ("FP8_DEFAULT_CFG", True), ("NVFP4_DEFAULT_CFG", False)],
)
def test_an_export_from_transformers_is_sound_and_a_plain_matrix_in_it_is_named(
    preset: str, kv_cache: bool, tmp_path: Path
) -> None:
    export_from_transformers(tmp_path / "out", preset, kv_cache=kv_cache)
    assert verify(tmp_path / "out").warnings == ()

    def widen(tensors: Tensors) -> None:
        name = "model.layers.1.mlp.down_proj"
        for suffix in ("weight_scale", "weight_scale_2", "input_scale"):
            tensors.pop(f"{name}.{suffix}", None)
        tensors[f"{name}.weight"] = torch.ones((HIDDEN, WIDTH), dtype=torch.bfloat16)

    with pytest.raises(ShardmergeError) as error:
        verify(bare_copy(tmp_path / "out", tmp_path / "spoiled", widen))
    assert isinstance(error.value, StoredOtherwiseError)
    assert (error.value.tensor, error.value.got) == ("model.layers.1.mlp.down_proj.weight", "BF16")
