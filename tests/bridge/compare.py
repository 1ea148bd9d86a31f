"""Compares what Megatron-Bridge exports of one-rank models with what shardmerge dumps and merges of them.

Run by `make test-bridge`. Exits 1 if a tensor differs, or if one is only in one of them. Bridge writes no copies of
embedding and head below a step of DeepSeek-V3; published files have them, and shardmerge writes them.
What it needs on a CPU: transformers' old module of attention masks, which only one of its models uses; Transformer
Engine's Python classes (`tests.worlds.te_stub`); a device that it may ask for.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist

from tests.worlds.te_stub import install

install(str(Path(sys.prefix) / "te-python"))  # before anything imports megatron-core

from shardmerge.phase1_dump import dump  # noqa: E402
from shardmerge.phase2_merge import merge  # noqa: E402
from tests.worlds.checkpoints import read_hf_tensors  # noqa: E402
from tests.worlds.cpu import prepare  # noqa: E402
from tests.worlds.fake import build_model, join_model_parallel, leave_model_parallel  # noqa: E402
from tests.worlds.families import Family, Steps  # noqa: E402
from tests.worlds.filling import fill  # noqa: E402
from tests.worlds.mtp import (  # noqa: E402
    DEEPSEEK_V3_MTP,
    NEMOTRON_H_LATENT_MTP,
    NEMOTRON_H_MTP,
    write_mtp_checkpoint,
)
from tests.worlds.topology import SINGLE  # noqa: E402

Tensors = dict[str, torch.Tensor]
# Bridge 0.6.2 has no rule for the norm of a hybrid's attention where it is a module of its own, and in a step none for
# the weights of a Mamba mixer: dense layers it has
DENSE_STEP = replace(NEMOTRON_H_MTP, name="nemotron_h_dense_step", mtp=Steps(1, "-*E"))
CASES = (
    (DEEPSEEK_V3_MTP, False),
    (DEEPSEEK_V3_MTP, True),
    (NEMOTRON_H_MTP, True),
    (NEMOTRON_H_LATENT_MTP, True),
    (DENSE_STEP, True),
)
COPIES = ("embed_tokens.weight", "shared_head.head.weight")
MASKS = (
    "AttentionMaskConverter",
    "_prepare_4d_causal_attention_mask",
    "_prepare_4d_causal_attention_mask_for_sdpa",
    "_prepare_4d_attention_mask",
    "_prepare_4d_attention_mask_for_sdpa",
)


def main() -> int:
    """Compare all models. Returns the exit code."""
    prepare()
    stand_in_for_masks()
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    logging.disable(logging.WARNING)
    failed = False
    for family, te in CASES:
        with tempfile.TemporaryDirectory() as folder:
            theirs, ours = exported(family, Path(folder), te=te)
        wrong = differing(theirs, ours)
        of_steps = sum(is_of_step(name, family) for name in theirs)
        what = f"{family.name}, {'Transformer Engine' if te else 'local'} modules"
        print(
            f"{what}: {len(theirs)} tensors, {of_steps} of multi-token prediction, {len(wrong)} differ {wrong[:9]}"
        )
        failed |= bool(wrong) or not of_steps
    return int(failed)


def exported(family: Family, folder: Path, *, te: bool) -> tuple[Tensors, Tensors]:
    """Return the tensors that Bridge exports of a model, and those that shardmerge publishes of the same one."""
    import transformers
    from megatron.bridge import AutoBridge

    reference = write_mtp_checkpoint(family, folder / "hf")
    bare = folder / "config"
    bare.mkdir()
    (bare / "config.json").write_text((reference / "config.json").read_text())
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    join_model_parallel(SINGLE)
    try:
        chunks = build_model(family, SINGLE, te=te, vocab_rows=family.vocab)
        fill(chunks, family, SINGLE, 0)
        dump(chunks, folder / "dump", hf_reference=bare, run_id="bridge", step=1)
        config = transformers.AutoConfig.from_pretrained(bare)
        config.architectures = [family.architecture]
        bridge: Any = AutoBridge.from_hf_config(config)
        given = bridge.export_hf_weights(chunks, cpu=True, show_progress=False)
        theirs = {item[0]: item[1].clone() for item in given}
    finally:
        leave_model_parallel()
    merge([folder / "dump"], folder / "merged", hf_reference=bare, workers=1)
    ours = read_hf_tensors(folder / "merged")
    return theirs, {name: tensor for name, tensor in ours.items() if not is_copy(name, theirs)}


def is_copy(name: str, theirs: Tensors) -> bool:
    """Whether a tensor repeats one of the model's own below a step."""
    return name not in theirs and ".layers." in name and name.endswith(COPIES)


def is_of_step(name: str, family: Family) -> bool:
    """Whether a tensor is of multi-token prediction."""
    _, in_layers, rest = name.partition(".layers.")
    return name.startswith("mtp.") or (bool(in_layers) and int(rest.partition(".")[0]) >= family.layers)


def differing(theirs: Tensors, ours: Tensors) -> list[str]:
    """Names of tensors that only one has, or that have other values. What stays float32 Bridge may have rounded."""
    both = theirs.keys() & ours.keys()
    other = (
        name
        for name in both
        if theirs[name].shape != ours[name].shape
        or not torch.equal(theirs[name].float(), ours[name].to(theirs[name].dtype).float())
    )
    return sorted({*other, *(theirs.keys() ^ ours.keys())})


def stand_in_for_masks() -> None:
    """Put an empty module in place of one that transformers 5.13 and newer lack; nothing here calls it."""
    name = "transformers.modeling_attn_mask_utils"
    module = ModuleType(name)
    for function in MASKS:
        setattr(module, function, None)
    sys.modules.setdefault(name, module)


if __name__ == "__main__":
    sys.exit(main())
