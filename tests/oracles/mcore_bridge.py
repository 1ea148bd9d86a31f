"""Records what mcore-bridge exports of models of its own that the formula has filled.

Run by `make test-oracles`, for classes that Megatron-Bridge does not know; those of others are compared with
Megatron-Bridge's records, and `confirmed.json` says which were equal. It builds a model from config.json, so that
also its own reading of the file is compared. What it needs on a CPU: the dispatcher of experts that its config asks for
is exchanged afterwards, and what it sends to a device stays. Must not know shardmerge's tables.
"""

from __future__ import annotations

import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.overrides import TorchFunctionMode

from tests.worlds.te_stub import install

install(str(Path(sys.prefix) / "te-python"))  # before anything imports megatron-core

from tests.oracles import records  # noqa: E402
from tests.oracles.bridge import MADE_WITH, stand_in  # noqa: E402
from tests.oracles.table import MCORE_BRIDGE, ORACLES, SECOND, every_family  # noqa: E402
from tests.worlds.composites import VISION  # noqa: E402
from tests.worlds.fake import join_model_parallel, leave_model_parallel  # noqa: E402
from tests.worlds.families import Family  # noqa: E402
from tests.worlds.filling import fill  # noqa: E402
from tests.worlds.mtp import write_bare  # noqa: E402
from tests.worlds.topology import SINGLE  # noqa: E402

PROGRAMS = ("mcore-bridge", *MADE_WITH[1:])
# what a CPU lacks
OPTIONS = {
    "gradient_accumulation_fusion": False,
    "apply_rope_fusion": False,
    "moe_permute_fusion": False,
    "persist_layer_norm": False,
    "bias_activation_fusion": False,
    "masked_softmax_fusion": False,
    "use_cpu_initialization": True,
    "bf16": True,
    "params_dtype": torch.bfloat16,
    "moe_token_dispatcher_type": "alltoall",
}


class OnCpu(TorchFunctionMode):
    """What is made on a device, or sent to one, is made here and stays."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Call the function with the CPU wherever "cuda" is named."""
        if func is torch.Tensor.cuda:
            return args[0]
        named = {name: _here(value) for name, value in (kwargs or {}).items()}
        return func(*map(_here, args), **named)


def _here(value: Any) -> Any:
    named = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return "cpu" if named else value


def main(names: list[str]) -> int:
    """Record all families, or those of these names. Returns the exit code."""
    stand_in()
    versions = {name: version(name) for name in PROGRAMS}
    for family in every_family():
        if ORACLES[family.name].program == MCORE_BRIDGE and (not names or family.name in names):
            with tempfile.TemporaryDirectory() as folder:
                theirs = exported(family, Path(folder))
            changed = records.write(family, theirs, versions)
            print(f"{family.name}: {len(theirs)} tensors, {'a new record' if changed else 'as recorded'}")
    return _compared(names, versions)


def _compared(names: list[str], versions: dict[str, str]) -> int:
    """Compare what is exported of families that Megatron-Bridge recorded. Returns the exit code."""
    agreeing, code = {}, 0
    for family in every_family():
        if SECOND.get(family.name) != "" or (names and family.name not in names):
            continue
        with tempfile.TemporaryDirectory() as folder:
            differing = records.differing(exported(family, Path(folder)), records.read(family))
        print(
            f"{family.name}: {f'differs in {differing[:5]}' if differing else 'as Megatron-Bridge'}",
            flush=True,
        )
        if differing:
            code = 1
        else:
            agreeing[family.name] = records.tensors_digest(family)
    records.confirm(agreeing, versions)
    return code


def exported(family: Family, folder: Path) -> dict[str, torch.Tensor]:
    """Return the tensors that mcore-bridge exports of its model."""
    reference = write_bare(family, folder)
    store: Any = dist.HashStore()  # type: ignore[attr-defined]
    dist.init_process_group("gloo", rank=0, world_size=1, store=store)
    join_model_parallel(SINGLE)
    try:
        with OnCpu():
            config, chunks = model_of(reference)
            fill(chunks, family, SINGLE, 0)
            given = config.bridge.export_weights(chunks, target_device="cpu")
            return {name: tensor.clone() for name, tensor in given if not name.startswith(VISION)}
    finally:
        leave_model_parallel()


def model_of(reference: Path) -> tuple[Any, list[Any]]:
    """Return mcore-bridge's config of a config.json, and the model it makes of it."""
    import transformers
    from mcore_bridge import ModelConfig, get_mcore_model, hf_to_mcore_config

    hf_config = transformers.AutoConfig.from_pretrained(reference)
    config = ModelConfig(**hf_to_mcore_config(hf_config) | OPTIONS)
    config.moe_token_dispatcher_type = "allgather"
    return config, get_mcore_model(config)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
