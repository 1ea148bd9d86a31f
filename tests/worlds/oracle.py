"""A Hugging Face checkpoint inside megatron-core models, put there by programs that are not shardmerge.

Route: NVIDIA's Model-Optimizer importer fills a one-rank model, megatron's dist_checkpointing saves it as
torch_dist, and loads it at the world under test. That the route is right is shown by `megatron_logits`: the
filled model computes what transformers computes from the checkpoint. Must not import shardmerge.

What Model-Optimizer 0.47 needs (same behaviour on megatron-core 0.16.1 and 0.19.2):
- without `moe_router_dtype="fp32"` it rounds `e_score_correction_bias` to bfloat16 on the way;
- it cannot pad a vocabulary: the model it fills has exactly the rows of the checkpoint;
- it has no walk for most steps of multi-token prediction (`mtp_oracle`);
- it has no rules for Mixtral: the checkpoint is given to it under Qwen3-MoE's names (`_as_qwen3_moe`);
- it leaves the router's counter `local_tokens_per_expert` alone, which is not a weight and never saved.

Functions whose first parameter is a rank run inside a `GlooRanks` pool.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import torch
from megatron.core import dist_checkpointing, parallel_state
from megatron.core.models.gpt.gpt_model import GPTModel
from safetensors.torch import load_file, save_file

from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model
from tests.worlds.families import FAMILIES, Family
from tests.worlds.filling import fill_from, holdings
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp_oracle import import_with_steps
from tests.worlds.topology import SINGLE, Topology

# Source: transformers 5, conversion_mapping.py ("mixtral": w1 gate, w3 up, w2 down).
MIXTRAL_AS_QWEN3_MOE = (
    ("block_sparse_moe.", "mlp."),
    (".w1.", ".gate_proj."),
    (".w3.", ".up_proj."),
    (".w2.", ".down_proj."),
)

# classes that Model-Optimizer 0.47 has no rules for
NOT_IMPORTED = {
    "DeepseekV32ForCausalLM",
    "Dots1ForCausalLM",
    "Ernie4_5_MoeForCausalLM",
    "ExaoneMoeForCausalLM",
    "Glm4MoeForCausalLM",
    "Glm4MoeLiteForCausalLM",
    "GlmMoeDsaForCausalLM",
    "Gemma3ForCausalLM",
    "GptOssForCausalLM",
    "KimiK25ForConditionalGeneration",
    "KimiK2ForCausalLM",
    "Llama4ForCausalLM",
    "Llama4ForConditionalGeneration",
    "MiniMaxM2ForCausalLM",
    "MistralForCausalLM",
    "NemotronForCausalLM",
    "OlmoeForCausalLM",
    "Qwen2MoeForCausalLM",
    "Qwen3VLForConditionalGeneration",
    "Qwen3VLMoeForConditionalGeneration",
    "Qwen3NextForCausalLM",
    "Qwen3_5ForCausalLM",
    "Qwen3_5MoeForCausalLM",
    "Qwen3_5ForConditionalGeneration",
    "Qwen3_5MoeForConditionalGeneration",
}
IMPORTED = tuple(family for family in FAMILIES if family.architecture not in NOT_IMPORTED)


def write_torch_dist(pool: GlooRanks, family: Family, hf_path: Path, out: Path) -> Path:
    """Turn the HF checkpoint into a torch_dist checkpoint `out`, in one process of the pool; return `out`.

    The embedding is stored without vocabulary padding, which megatron allows to differ when loading. The same
    tensors are written whole at `whole_path(out)`.
    """
    pool.run(import_and_save, SINGLE, family, hf_path, out)
    return out


def megatron_logits(pool: GlooRanks, family: Family, hf_path: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Return float32 logits [batch, sequence, vocab] of the imported one-rank model, for tokens [batch, sequence].

    Compare with the transformers model loaded in float32. Needed for equality: see `megatron_config`
    (theta, epsilon, float32 routing, top-k before softmax, group limits, scaling) and `CpuAttention`.
    """
    logits: torch.Tensor = pool.run(logits_on_rank, SINGLE, family, hf_path, tokens)[0]
    return logits


def import_and_save(_rank: int, family: Family, hf_path: Path, out: Path) -> None:
    """Fill a one-rank model from `hf_path` and save it under `out`."""
    model = import_whole(family, hf_path, torch.bfloat16)
    out.mkdir(parents=True, exist_ok=True)
    dist_checkpointing.save(sharded_state_dict([model]), str(out))
    whole = {held.identity: held.tensor.detach().clone() for held in holdings([model], family, SINGLE, 0)}
    save_file(whole, whole_path(out))


def logits_on_rank(_rank: int, family: Family, hf_path: Path, tokens: torch.Tensor) -> torch.Tensor:
    """Run the imported one-rank model in float32."""
    model = import_whole(family, hf_path, torch.float32).eval()
    positions = torch.arange(tokens.shape[1]).expand_as(tokens)
    with torch.no_grad():
        logits: torch.Tensor = model(tokens, positions, None)
    return logits


def load_model(
    rank: int, family: Family, topology: Topology, torch_dist: Path, *, te: bool = False
) -> list[GPTModel]:
    """Build this rank's chunks and load their shards of the torch_dist checkpoint.

    Rows of vocabulary padding keep what initialisation put there. With `te` the weights come from the whole
    tensors beside the checkpoint, because some have another key or cut in that spec; the pool needs a `te_path`.
    """
    chunks = build_model(family, topology, te=te)
    if te:
        fill_from(load_file(whole_path(torch_dist)), chunks, family, topology, rank)
        return chunks
    loaded = dist_checkpointing.load(sharded_state_dict(chunks), str(torch_dist))
    for number, chunk in enumerate(chunks):
        own = loaded.get(f"model{number}", {})  # megatron-core leaves out a chunk without tensors
        missing, unexpected = chunk.load_state_dict(own, strict=False)
        left = [name for name in [*missing, *unexpected] if not name.endswith("_extra_state")]
        if left:
            raise RuntimeError(f"not loaded from {torch_dist}: {left}")
    return chunks


def whole_path(torch_dist: Path) -> Path:
    """Where `write_torch_dist` puts the whole tensors by identity (see `filling`), for `fill_from`."""
    return torch_dist.with_name(torch_dist.name + "-whole.safetensors")


def sharded_state_dict(chunks: list[GPTModel]) -> dict[str, Any]:
    """Return the sharded state of chunk i under `model{i}`; on disk only the canonical keys inside count."""
    metadata = {
        "dp_cp_group": parallel_state.get_data_parallel_group(with_context_parallel=True),
        "non_homogeneous_layers": True,
        "singleton_local_shards": True,
    }
    return {
        f"model{number}": chunk.sharded_state_dict(metadata=metadata) for number, chunk in enumerate(chunks)
    }


def import_whole(family: Family, hf_path: Path, dtype: torch.dtype) -> GPTModel:
    """Build the unsharded model without vocabulary padding and fill it from the HF checkpoint."""
    model = build_model(family, SINGLE, vocab_rows=family.vocab, dtype=dtype)[0]
    with tempfile.TemporaryDirectory() as folder:
        source = hf_path
        if family.architecture == "MixtralForCausalLM":
            source = _as_qwen3_moe(hf_path, Path(folder))
        import_with_steps(model, family, source, dtype)
    return model


def _as_qwen3_moe(hf_path: Path, folder: Path) -> Path:
    """Write the Mixtral checkpoint under Qwen3-MoE's names into `folder` and return it."""
    tensors = {_qwen3_moe_name(name): tensor for name, tensor in read_hf_tensors(hf_path).items()}
    save_file(tensors, folder / "model.safetensors")
    config = json.loads((hf_path / "config.json").read_text())
    config |= {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _qwen3_moe_name(name: str) -> str:
    for old, new in MIXTRAL_AS_QWEN3_MOE:
        name = name.replace(old, new)
    return name
