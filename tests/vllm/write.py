"""Writes the checkpoints that vLLM reads: one in bf16 and one for every way to quantize, merged from several ranks.

Run in the environment of the tests: `python -m tests.vllm.write FOLDER`.
"""

from __future__ import annotations

import shutil
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from shardmerge.phase2_merge import merge
from tests.dumps.quantized_dumps import dump_quantized
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.gloo import GlooRanks
from tests.worlds.quantizing import QWEN3_MOE
from tests.worlds.topology import Topology

TE_PATH = Path(sys.prefix) / "te-python"
SEQUENTIAL = Topology(pp=2, ep=2, dp=2)
GROUPED = Topology(tp=2, pp=2, ep=2)
RUNS = replace(QWEN3_MOE, head_channels=64)  # a head width that vLLM's attention knows on a CPU
CHECKPOINTS = {  # folder -> (recipe, topology, Transformer Engine, KV cache in FP8)
    "BF16": ("none", GROUPED, False, False),
    "FP8": ("FP8", SEQUENTIAL, False, False),
    "FP8_KV": ("FP8", GROUPED, True, True),
    "NVFP4": ("NVFP4", SEQUENTIAL, False, False),
    "W4A16_NVFP4": ("W4A16_NVFP4", SEQUENTIAL, False, False),
    "MIXED": ("MIXED", GROUPED, True, False),
}


def main(folder: Path) -> None:
    """Write all of them under a folder that is emptied first."""
    shutil.rmtree(folder, ignore_errors=True)
    references = {family: folder / f"reference-{family.head_channels}" for family in (QWEN3_MOE, RUNS)}
    for family, reference in references.items():
        write_hf_checkpoint(family, reference)
    with GlooRanks(size=1) as plain, GlooRanks(size=1, te_path=str(TE_PATH)) as grouped:
        for name, (recipe, topology, te, kv_cache) in CHECKPOINTS.items():
            dump = partial(dump_quantized, te=te, kv_cache=kv_cache)
            pool, out = (grouped if te else plain), folder / "dumps" / name
            family = RUNS if recipe == "none" else QWEN3_MOE
            pool.call(dump, family, topology, recipe, out, references[family])
            print(merge([out], folder / name, hf_reference=references[family], workers=1).text())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
