"""Compares the settings of models that other programs make from config.json with what our tables read there.

Run by `make test-oracles`. Exits 1 if a setting of a model differs from what the table of its architecture reads. Each
config.json is tried as transformers writes it and with other values, which no default would hit.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.vocabulary import agree
from shardmerge.phase1_dump.settings.live_settings import settings_of
from tests.oracles.bridge import stand_in  # first: it installs Transformer Engine's stub
from tests.oracles.settings_cases import CASES, WRONG_IN_ORACLE
from tests.oracles.table import MCORE_BRIDGE, ORACLES, every_family
from tests.worlds.fake import join_model_parallel, leave_model_parallel
from tests.worlds.families import Family
from tests.worlds.mtp import write_bare
from tests.worlds.topology import SINGLE
from tests.worlds.vision_language import language_model_of

Json = dict[str, Any]
FAMILIES = {family.name: family for family in every_family()}
ZEROS = torch.zeros
# what a CPU lacks
OPTIONS: Json = {
    "gradient_accumulation_fusion": False,
    "moe_token_dispatcher_type": "allgather",
    "apply_rope_fusion": False,
    "moe_permute_fusion": False,
    "moe_shared_expert_overlap": False,
    "persist_layer_norm": False,
}


def main(names: list[str]) -> int:
    """Compare all models, or those of these families. Returns the exit code."""
    stand_in()
    torch.zeros = _zeros_on_cpu
    failed = False
    cases = [(name, edits) for name, edits in CASES if not names or name in names]
    with tempfile.TemporaryDirectory() as folder:
        paths = [
            written(FAMILIES[name], edits, Path(folder) / str(at)) for at, (name, edits) in enumerate(cases)
        ]
        store: Any = dist.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group("gloo", rank=0, world_size=1, store=store)
        join_model_parallel(SINGLE)
        try:
            for (name, edits), path in zip(cases, paths, strict=True):
                said = blueprint(json.loads((path / "config.json").read_text())).settings()
                told = settings_of([*map(language_model_of, _models(name, path))])
                both = told.keys() & said.keys()
                wrong = {
                    one: (told[one], said[one].value)
                    for one in both - WRONG_IN_ORACLE.get(name, set())
                    if not agree(told[one], said[one].value)
                }
                print(
                    f"{name} {sorted(edits)}: {len(both)} settings of the oracle's model, {wrong or 'none'} differ"
                )
                failed |= bool(wrong) or len(both) < 24
        finally:
            leave_model_parallel()
    return int(failed)


def _zeros_on_cpu(*size: Any, **options: Any) -> torch.Tensor:
    """Stand for torch.zeros: Transformer Engine's attention allocates its sinks on a GPU, whatever it is told."""
    return ZEROS(*size, **options | ({"device": "cpu"} if options.get("device") == "cuda" else {}))


def written(family: Family, edits: Json, path: Path) -> Path:
    """Write the config.json of a family, and edit it. All are written before torch.distributed is up."""
    write_bare(family, path)
    config = json.loads((path / "config.json").read_text()) | edits
    (path / "config.json").write_text(json.dumps(config))
    return path


def _models(name: str, path: Path) -> list[Any]:
    """Return the model that a family's oracle makes of a config.json, with random weights."""
    if ORACLES[name].program == MCORE_BRIDGE:
        from tests.oracles.mcore_bridge import OnCpu, model_of

        with OnCpu():
            return model_of(path)[1]
    return [_model(path)]


def _model(path: Path) -> Any:
    """Return the model that Bridge makes of a config.json, with random weights."""
    from megatron.core.process_groups_config import ProcessGroupCollection

    provider = provider_of(path)
    provider.use_cpu_initialization, provider.bf16, provider.params_dtype = True, True, torch.bfloat16
    provider.finalize()
    provider._pg_collection = ProcessGroupCollection.use_mpu_process_groups()
    for name in [name for name in os.environ if name.startswith("NVTE_")]:
        del os.environ[name]  # a model before it chose a backend of attention for the process
    return provider.provide()


def provider_of(path: Path) -> Any:
    """Return what Bridge makes of a config.json, from which it makes a model."""
    import transformers
    from megatron.bridge import AutoBridge

    config = transformers.AutoConfig.from_pretrained(path)
    rotated = (
        config.rope_parameters.get("partial_rotary_factor") if hasattr(config, "rope_parameters") else None
    )
    if (
        rotated is not None
    ):  # Bridge 0.6.2 looks where transformers 4 had it, and would rotate whole heads of GLM-4.5
        config.partial_rotary_factor = rotated
    provider: Any = AutoBridge.from_hf_config(config).to_megatron_provider(load_weights=False)
    for name, value in OPTIONS.items():
        setattr(provider, name, value)
    return provider


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
