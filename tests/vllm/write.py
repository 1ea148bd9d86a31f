"""Writes the checkpoints that vLLM reads: three architectures in bf16 and quantized, and all others in bf16.

Those of quantized models are merged from several ranks. The others are there for their names: one for each family whose
class vLLM has, and one more for each further spelling of its experts.

Run in an environment whose megatron-core builds hybrids with multi-token prediction, `.venv-peers`:
`python -m tests.vllm.write FOLDER [NAME ...]`. Without names it writes all of them.
"""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from shardmerge.common.architectures import ARCHITECTURES
from shardmerge.phase2_merge import merge
from tests.dumps.quantized_dumps import dump_quantized
from tests.journeys.nemotron import narrow
from tests.journeys.test_nemotron import PP9_EP8, TP4_EP8, write_reference
from tests.journeys.test_nemotron import dump_quantized as dump_rank
from tests.worlds.by_hand import BY_HAND
from tests.worlds.families import FAMILIES, Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import MTP_FAMILIES, can_build, write_bare, write_checkpoint
from tests.worlds.quantizing import DEEPSEEK_V3, NEMOTRON_H, NEMOTRON_H_LATENT, QWEN3_MOE
from tests.worlds.topology import SINGLE, Topology
from tests.worlds.widths import Steps

TE_PATH = Path(sys.prefix) / "te-python"
SEQUENTIAL = Topology(pp=2, ep=2, dp=2)
GROUPED = Topology(tp=2, pp=2, ep=2)
RUNS = replace(QWEN3_MOE, head_channels=64)  # a head width that vLLM's attention knows on a CPU
# as published: one stored step that training repeats. config.json of the first spells layers by letters, as Super's,
# that of the second by words, as Ultra's.
LETTERS, WORDS = (
    replace(family, name=name, head_channels=64, mtp=Steps(1, "*E", passes=2))
    for name, family in (("letters", NEMOTRON_H), ("words", NEMOTRON_H_LATENT))
)
# without it vLLM does not build Kimi-K2.5, which it never shows an image here; as published
KIMI_IMAGES = {
    "media_proc_cfg": {
        "patch_size": 14,
        "merge_kernel_size": 2,
        "temporal_merge_kernel_size": 4,
        "in_patch_limit": 16384,
        "in_patch_limit_each_frame": 4096,
        "in_patch_limit_video": None,
        "patch_limit_on_one_side": 512,
        "fixed_output_tokens": None,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "sample_fps": 2.0,
        "max_num_frames_each_video": None,
    }
}
DEEPSEEK = replace(DEEPSEEK_V3, name="deepseek", mtp=Steps(1))


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """How one is made; `mtp` is whether multi-token prediction is quantized too."""

    family: Family
    recipe: str = "none"
    topology: Topology = SEQUENTIAL
    kv_cache: bool = False
    mtp: bool = True
    drop_mtp: bool = False
    experts: str | None = None

    @property
    def te(self) -> bool:
        """Whether experts are grouped, as Transformer Engine has them; TP and EP together need that."""
        return self.topology is GROUPED


CHECKPOINTS = {
    "BF16": Checkpoint(RUNS, topology=GROUPED),
    "FP8": Checkpoint(QWEN3_MOE, "FP8"),
    "FP8_KV": Checkpoint(QWEN3_MOE, "FP8", GROUPED, kv_cache=True),
    "NVFP4": Checkpoint(QWEN3_MOE, "NVFP4"),
    "W4A16_NVFP4": Checkpoint(QWEN3_MOE, "W4A16_NVFP4"),
    "MIXED": Checkpoint(QWEN3_MOE, "MIXED", GROUPED),
    "DEEPSEEK_V3": Checkpoint(DEEPSEEK),
    "NEMOTRON_H": Checkpoint(LETTERS, topology=GROUPED),
    "NEMOTRON_H-latent": Checkpoint(WORDS),
    "NEMOTRON_H-without_MTP": Checkpoint(WORDS, drop_mtp=True),
    "NEMOTRON_H-FP8": Checkpoint(LETTERS, "FP8"),
    "NEMOTRON_H-NVFP4": Checkpoint(WORDS, "NVFP4"),
    "NEMOTRON_H-MIXED": Checkpoint(WORDS, "MIXED_HYBRID", GROUPED, kv_cache=True, mtp=False),
    "NEMOTRON_H-MIXED-letters": Checkpoint(LETTERS, "MIXED_HYBRID", GROUPED, kv_cache=True, mtp=False),
    "NEMOTRON_H-MIXED-with_MTP": Checkpoint(WORDS, "MIXED_HYBRID", GROUPED, kv_cache=True),
    "NEMOTRON_H-MIXED-with_MTP-letters": Checkpoint(LETTERS, "MIXED_HYBRID", GROUPED, kv_cache=True),
}
# family -> why vLLM 0.32 builds no model of it
NOT_IN_VLLM: dict[str, str] = {
    "dots1": "It was removed in 0.23.",
    "kimi_k2": "Published files name DeepSeek-V3's class, which is read.",
    "bailing_moe_v2_mtp": "No class drafts with it.",
}
# without "topk_method": "noaux_tc", as published ones have it and transformers does not, vLLM takes no router bias
NOAUX = ("DeepseekV3ForCausalLM", "DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM")
# vLLM takes for granted that GPT-OSS has it, as published ones do; no tensor depends on it
YARN = {
    "rope_type": "yarn",
    "rope_theta": 150000.0,
    "factor": 32.0,
    "original_max_position_embeddings": 4096,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
    "truncate": False,
}


def _names() -> dict[str, Checkpoint]:
    found = {}
    for family in map(_for_vllm, filter(can_build, (*FAMILIES, *BY_HAND, *MTP_FAMILIES))):
        known = ARCHITECTURES[family.architecture].experts
        for spelling in known.decoder if known else (None,):
            one = Checkpoint(family, topology=SINGLE, experts=spelling)
            found[f"names-{family.name}{f'-{spelling}' if spelling else ''}"] = one
    return {name: one for name, one in found.items() if _is_built(one.family)}


def _for_vllm(family: Family) -> Family:
    """vLLM's Qwen2 and Qwen2-MoE take heads as wide as the model has room for, whatever config.json says."""
    ignores_head_dim = family.architecture in ("Qwen2ForCausalLM", "Qwen2MoeForCausalLM")
    return replace(family, hidden=family.heads * family.head_channels) if ignores_head_dim else family


def _is_built(family: Family) -> bool:
    """Whether vLLM builds a family: it knows one step of multi-token prediction."""
    return family.name not in NOT_IN_VLLM and (family.mtp is None or family.mtp.count == 1)


CHECKPOINTS |= _names()


@dataclass(frozen=True, slots=True)
class Published:
    """A Nemotron-3 model as published but narrow: all layers and experts, in a mixture of formats, rank by rank.

    `mtp` is whether multi-token prediction is quantized too.
    """

    family: Family
    topology: Topology
    mtp: bool


ULTRA, SUPER, NANO = (replace(narrow(name), head_channels=64) for name in ("ultra", "super", "nano"))
PUBLISHED = {
    "ULTRA-MIXED": Published(ULTRA, PP9_EP8, mtp=False),
    "ULTRA-MIXED-with_MTP": Published(ULTRA, TP4_EP8, mtp=True),
    "SUPER-MIXED-with_MTP": Published(SUPER, TP4_EP8, mtp=True),
    "NANO-MIXED": Published(NANO, TP4_EP8, mtp=False),
}


def main(folder: Path, names: list[str]) -> None:
    """Write those with these names, or all of them, under a folder that is emptied first."""
    chosen = names or [*CHECKPOINTS, *PUBLISHED]
    shutil.rmtree(folder, ignore_errors=True)
    with GlooRanks(size=1) as plain, GlooRanks(size=1, te_path=str(TE_PATH)) as grouped:
        for name in chosen:
            if name in PUBLISHED:
                _write_published(name, folder, grouped)
            else:
                pool = grouped if CHECKPOINTS[name].te else plain
                _write(name, folder, pool)


def _write(name: str, folder: Path, pool: GlooRanks) -> None:
    checkpoint, out = CHECKPOINTS[name], folder / "dumps" / name
    family = checkpoint.family
    reference = folder / f"reference-{family.name}-{family.hidden}-{family.head_channels}"
    if not reference.exists():
        (write_bare if family in BY_HAND else write_checkpoint)(family, reference)
        if family.architecture in NOAUX:
            config = json.loads((reference / "config.json").read_text())
            (reference / "config.json").write_text(json.dumps(config | {"topk_method": "noaux_tc"}))
        if family.architecture == "KimiK25ForConditionalGeneration":
            (reference / "preprocessor_config.json").write_text(json.dumps(KIMI_IMAGES))
    dump = partial(
        dump_quantized,
        te=checkpoint.te,
        kv_cache=checkpoint.kv_cache,
        mtp=checkpoint.mtp,
        experts=checkpoint.experts,
    )
    pool.call(dump, family, checkpoint.topology, checkpoint.recipe, out, reference)
    report = merge(
        [out],
        folder / name,
        hf_reference=reference,
        workers=1,
        drop_mtp=checkpoint.drop_mtp,
        grafts=["vision"] if family.is_composite else [],
    )
    if family.architecture == "GptOssForCausalLM":
        config = json.loads((folder / name / "config.json").read_text())
        (folder / name / "config.json").write_text(json.dumps(config | {"rope_parameters": YARN}))
    print(report.text())


def _write_published(name: str, folder: Path, pool: GlooRanks) -> None:
    checkpoint, out = PUBLISHED[name], folder / "dumps" / name
    (folder / "references").mkdir(parents=True, exist_ok=True)
    reference = write_reference(checkpoint.family, folder / "references" / name)
    for rank in range(checkpoint.topology.world_size):
        pool.call(
            dump_rank,
            rank,
            checkpoint.family,
            checkpoint.topology,
            checkpoint.mtp,
            out,
            reference,
        )
    print(merge([out], folder / name, hf_reference=reference, workers=1).text())


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
