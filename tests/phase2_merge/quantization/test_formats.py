"""Phase two knows a format by its row alone: one that no module was written for is declared, read and compared."""

from __future__ import annotations

from pathlib import Path

import pytest

from shardmerge.common import canonical_json
from shardmerge.common.quantization import formats
from shardmerge.common.quantization.rows import Companion, ConfigForm, Format, ModeloptForm, ScaleSource
from shardmerge.common.safetensors_header import Entry
from shardmerge.phase2_merge.quantization import declaration, json_files, scales
from shardmerge.phase2_merge.quantization.united import Quantization

WEIGHTS = [("model.layers.0.mlp.up_proj.weight", (64, 96)), ("lm_head.weight", (211, 96))]
MODULE = "model.layers.0.mlp.up_proj"
COMPANIONS = (Companion("weight", "U8", (1, 2)), Companion("weight_scale", "F32", (32, 32)))
IN_CONFIG = ConfigForm(
    statements={"quant_method": "int4", "tile": [32, 32], "symmetric": True},
    excluded="kept",
    known_by=("quant_method", "tile"),
)
IN_BOTH = ModeloptForm(quant_algo="INT4_TILES", group_size=32, weights={"num_bits": 4})


@pytest.fixture(params=[IN_CONFIG, IN_BOTH], ids=["config.json only", "both files"])
def row(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Format:
    """A format that nobody has: four bits in tiles of 32x32."""
    made = Format(
        name="INT4_TILES",
        companions=COMPANIONS,
        block=(32, 32),
        scales=ScaleSource.BLOCK_RANGES,
        form=request.param,
        modelopt=(),
    )
    monkeypatch.setitem(formats.FORMATS, made.name, made)
    monkeypatch.setitem(formats.BY_ALGORITHM, made.algorithm, made)
    return made


def test_a_row_is_declared_and_read_back(row: Format, tmp_path: Path) -> None:
    found = Quantization({MODULE: row.name}, {}, {"name": "someone", "version": "1"})
    assert list(found.tensors_of(*WEIGHTS[0]) or ()) == [
        (f"{MODULE}.weight", (64, 48), "U8"),
        (f"{MODULE}.weight_scale", (2, 3), "F32"),
    ]
    hf, declared = json_files.both(found, WEIGHTS)
    assert declared is not None
    if row.form is IN_CONFIG:
        assert hf is None
        assert declared == {"quant_method": "int4", "tile": [32, 32], "symmetric": True, "kept": ["lm_head"]}
    else:
        assert declared["config_groups"] == {
            "group_0": {"weights": {"num_bits": 4, "group_size": 32}, "targets": ["Linear"]}
        }
        (tmp_path / "hf_quant_config.json").write_bytes(canonical_json.encode(hf))
    in_hf, in_config = declaration.read(tmp_path, {"quantization_config": declared})
    assert in_config is not None
    assert declaration.only_one(in_hf, in_config) is None
    assert list(declaration.differences(in_hf, in_config)) == []
    for one in (in_config, in_hf or in_config):
        assert one.format_of(MODULE) is row
        assert one.format_of("lm_head") is None


def test_a_tensor_of_a_row_that_is_missing_is_named(row: Format) -> None:
    declared = declaration.Declaration("config.json", row.algorithm, exclude=("lm_head",))
    weight = Entry(f"{MODULE}.weight", "U8", (64, 48), 0, 64 * 48)
    (problem,) = scales.judge(declared, {weight.name: weight}).problems
    assert f"{MODULE}.weight_scale [2, 3] is missing" in problem.message()
    assert "INT4_TILES" in problem.message()
