"""Records what Megatron-Bridge exports of one-rank models that the formula has filled.

Run by `make test-oracles`; names of families as arguments record these alone. What Bridge needs on a CPU: transformers'
old module of attention masks, which only one of its models uses; Transformer Engine's Python classes
(`tests.worlds.te_stub`); a device that it may ask for. Must not know shardmerge's tables: `test_records` compares.
"""

from __future__ import annotations

import logging
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist

from tests.worlds.te_stub import install

install(str(Path(sys.prefix) / "te-python"))  # before anything imports megatron-core

from tests.oracles import records  # noqa: E402
from tests.oracles.table import BRIDGE, ORACLES, Oracle, every_family  # noqa: E402
from tests.worlds import delta_net  # noqa: E402
from tests.worlds.checkpoints import read_hf_tensors  # noqa: E402
from tests.worlds.cpu import prepare  # noqa: E402
from tests.worlds.fake import build_model, join_model_parallel, leave_model_parallel  # noqa: E402
from tests.worlds.families import Family  # noqa: E402
from tests.worlds.filling import fill  # noqa: E402
from tests.worlds.mtp import write_bare, write_checkpoint  # noqa: E402
from tests.worlds.topology import SINGLE  # noqa: E402
from tests.worlds.vision_language import remove_tower  # noqa: E402

MADE_WITH = ("megatron-bridge", "megatron-core", "transformer_engine", "transformers", "torch")
KIMI_K25 = "KimiK25ForConditionalGeneration"
MASKS = (
    "AttentionMaskConverter",
    "_prepare_4d_causal_attention_mask",
    "_prepare_4d_causal_attention_mask_for_sdpa",
    "_prepare_4d_attention_mask",
    "_prepare_4d_attention_mask_for_sdpa",
)


def main(names: list[str]) -> int:
    """Record all families, or those of these names. Returns the exit code."""
    stand_in()
    versions = {name: version(name) for name in MADE_WITH}
    for family in every_family():
        if ORACLES[family.name].program == BRIDGE and (not names or family.name in names):
            with tempfile.TemporaryDirectory() as folder:
                theirs = exported(family, Path(folder), ORACLES[family.name])
            changed = records.write(family, theirs, versions)
            print(f"{family.name}: {len(theirs)} tensors, {'a new record' if changed else 'as recorded'}")
    return 0


def exported(family: Family, folder: Path, oracle: Oracle) -> dict[str, torch.Tensor]:
    """Return the tensors that Bridge exports of a model."""
    import transformers
    from megatron.bridge import AutoBridge
    from megatron.bridge.models.conversion.param_mapping import AutoMapping
    from megatron.bridge.models.qwen import qwen35_bridge

    reference = write_bare(family, folder)
    files = _files(family) if family.is_composite else None
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    join_model_parallel(SINGLE)
    try:
        chunks = build_model(family, SINGLE, te=oracle.te, vocab_rows=family.vocab)
        if not oracle.te:  # torch's norms are float32 until Float16Module casts them
            for parameter in chunks[0].parameters():
                parameter.data = parameter.data.bfloat16()
        fill(chunks, family, SINGLE, 0)
        if family.is_composite:  # Bridge knows its own towers only
            remove_tower(chunks[0])
        config = transformers.AutoConfig.from_pretrained(reference)
        config.architectures = [family.architecture]
        AutoMapping.register_module_type("CpuAttention", "column")  # which holds the sinks here
        AutoMapping.register_module_type("TEPostNormed", "row")
        if family.is_composite:
            config.state = files
        # without a dtype it packs experts of Kimi-K2.5 to four bits, as published ones are
        plain = torch.bfloat16 if family.architecture == KIMI_K25 else None
        bridge: Any = AutoBridge.from_hf_config(config)
        with mock.patch.object(qwen35_bridge, "moe_experts_stored_packed", return_value=oracle.packed):
            given = bridge.export_hf_weights(chunks, cpu=True, show_progress=False, weight_dtype=plain)
            return {item[0]: item[1].clone() for item in given}
    finally:
        leave_model_parallel()


class Files(dict[str, torch.Tensor]):
    """The tensors of published files, as Bridge looks them up: rules of composites ask for names and shapes."""

    @property
    def source(self) -> Files:
        """Where Bridge looks for their names."""
        return self

    def get_all_keys(self) -> list[str]:
        """Return the names of all tensors."""
        return [*self]


def _files(family: Family) -> Files:
    with tempfile.TemporaryDirectory() as folder:
        return Files(read_hf_tensors(write_checkpoint(family, Path(folder))))


def stand_in() -> None:
    """Prepare this process: a device that may be asked for, no warnings, what newer transformers and a CPU lack.

    An empty module is put in place of one that transformers 5.13 and newer lack; nothing here calls it.
    """
    prepare()
    delta_net.install()
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    logging.disable(logging.WARNING)
    name = "transformers.modeling_attn_mask_utils"
    module = ModuleType(name)
    for function in MASKS:
        setattr(module, function, None)
    sys.modules.setdefault(name, module)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
