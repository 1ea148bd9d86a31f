"""Gated DeltaNets from disk: what keys and shapes do not show of them is taken from `run_config.yaml`, or refused.

Its file is the one that Megatron-Bridge writes of the model that it makes of config.json (`tests.oracles.run_configs`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from shardmerge.common.errors import UnsupportedCheckpointError
from shardmerge.phase1_dump import dump_checkpoint
from shardmerge.phase2_merge import check
from tests.phase1_dump.checkpoint.test_same_as_live import merged, reference_of, save_and_dump
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import can_build
from tests.worlds.saving import Spelling
from tests.worlds.topology import Topology

FAMILY, TOPOLOGY = by_name("qwen3_next"), Topology(tp=2, pp=2)
RECORDED = Path(__file__).parents[2] / "oracles" / "records" / "run_configs" / "qwen3_next.yaml"
SPEC = "megatron.bridge.models.qwen.somewhere.layers_of_their_own"
# an attention of Bridge's own takes queries and gates apart, or a norm may be stored in whatever way
UNKNOWN: dict[str, dict[str, Any]] = {
    "another provider": {
        "_target_": "megatron.bridge.models.qwen_vl.qwen35_vl_provider.Qwen35VLModelProvider"
    },
    "other layers": {"transformer_layer_spec": {"_target_": SPEC, "_call_": False}},
    "layers that were built already": {"transformer_layer_spec": "ModuleSpec(...)"},
    "nothing of a gate": {"attention_output_gate": None},
    "another variant": {"experimental_attention_variant": "mine"},
}


def record(checkpoint: Path, changes: dict[str, Any]) -> None:
    """Put the file beside the checkpoint, with other values of some fields."""
    said = yaml.safe_load(RECORDED.read_text())
    said["model"] |= changes
    (checkpoint / "run_config.yaml").write_text(yaml.safe_dump(said))


def test_a_run_config_of_layers_that_megatron_core_specifies_explains_them(
    ranks: GlooRanks, tmp_path: Path
) -> None:
    if not can_build(FAMILY):
        pytest.skip("the installed megatron-core does not build it")
    reference = reference_of(FAMILY, tmp_path)
    ranks.run(save_and_dump, TOPOLOGY, FAMILY, TOPOLOGY, Spelling(experts=True), reference, tmp_path)
    checkpoint = tmp_path / "iter_0000007"
    given: dict[str, Any] = {"hf_reference": reference, "run_id": "run", "max_share_bytes": 100_000}

    with pytest.raises(
        UnsupportedCheckpointError, match=r"no file of this checkpoint says .*run_config\.yaml"
    ):
        dump_checkpoint(checkpoint, tmp_path / "refused", **given)
    for name, changes in UNKNOWN.items():
        record(checkpoint, changes)
        with pytest.raises(UnsupportedCheckpointError, match="no file of this checkpoint says"):
            dump_checkpoint(checkpoint, tmp_path / "refused", **given)
        assert not (tmp_path / "refused").exists(), name
    record(checkpoint, {"layernorm_zero_centered_gamma": False})
    with pytest.raises(
        UnsupportedCheckpointError, match=r"norms are stored as they are .* take them minus one"
    ):
        dump_checkpoint(checkpoint, tmp_path / "refused", **given)

    record(checkpoint, {})
    dump_checkpoint(checkpoint, tmp_path / "disk", **given)
    check([tmp_path / "disk"], hf_reference=reference)
    found, live = (merged(tmp_path / one, tmp_path / f"of-{one}", reference) for one in ("disk", "live"))
    assert found == live
