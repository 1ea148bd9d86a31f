"""A small model that modelopt quantized, dumped from where it lies: `tests.gpu.quantized RECIPE FOLDER DEVICE`.

Of the formats that Model-Optimizer exports, its export from the same device lies beside the dump. One process alone.
Prints what was written as a line that begins with SEEN. Must not judge.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch._C._distributed_c10d import HashStore

EXPORTED = ("FP8", "NVFP4")


def main(name: str, folder: Path, device: str) -> None:
    from tests.worlds.checkpoints import write_config
    from tests.worlds.cpu import prepare
    from tests.worlds.fake import build_model, join_model_parallel, leave_model_parallel
    from tests.worlds.filling import fill
    from tests.worlds.quantizing import QWEN3_MOE, QWEN3_MOE_IN_BLOCKS, quantize, recipe
    from tests.worlds.topology import SINGLE

    from .jobs import both, checksums

    if device == "cpu":
        prepare()
    family = QWEN3_MOE_IN_BLOCKS if name == "FP8_BLOCK" else QWEN3_MOE
    reference = write_config(family, folder / "hf")
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    join_model_parallel(SINGLE)
    try:
        chunks, again = (
            build_model(family, SINGLE, device=device, vocab_rows=family.vocab) for _ in range(2)
        )
        for one in (chunks, again):
            fill(one, family, SINGLE, 0)
            quantize(one, family, SINGLE, 0, recipe(name))
        if name in EXPORTED:
            from modelopt.torch.export import export_mcore_gpt_to_hf

            out = str(folder / f"{device}-modelopt")
            export_mcore_gpt_to_hf(again[0].to(device), str(reference), dtype=torch.bfloat16, export_dir=out)
        there, here = both([chunk.to(device) for chunk in chunks], folder / device, reference)
    finally:
        leave_model_parallel()
    facts = {"written": checksums(there), "same": checksums(there) == checksums(here), "dtypes": there.dtypes}
    print("SEEN " + json.dumps(facts | {"scalars": there.quantization.as_json()["scalars"]}))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
