"""The table of formats: every row is whole, and nobody else names one."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from shardmerge.common.quantization.formats import (
    BY_ALGORITHM,
    FORMATS,
    KV_CACHES,
    MIXED_PRECISION,
    by_modelopt_name,
)
from shardmerge.common.quantization.rows import ConfigForm, Format, ModeloptForm, ScaleSource

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("common", "phase1_dump", "phase2_merge")


@pytest.mark.parametrize("row", FORMATS.values(), ids=lambda row: row.name)
def test_a_row_begins_with_its_weight_and_no_companion_cuts_a_block(row: Format) -> None:
    assert row.companions[0] is row.weight
    for one in row.companions:
        for block, by in zip(row.block, one.divisors or row.block, strict=True):
            assert block % by == 0


def test_what_a_weight_needs_of_its_range_follows_from_its_scales() -> None:
    assert {name for name, row in FORMATS.items() if not row.needs_weight_range} == {"MXFP8"}
    assert FORMATS["NVFP4"].scales is ScaleSource.NUMBERS  # its second level is a scalar, from the range
    assert FORMATS["W4A16_NVFP4"].needs_weight_range


def test_every_name_leads_to_one_row() -> None:
    assert {row.name: row for row in FORMATS.values()} == FORMATS
    assert len(BY_ALGORITHM) == len(FORMATS)
    names = [name for row in FORMATS.values() for name in row.modelopt]
    assert len(set(names)) == len(names)
    assert by_modelopt_name("fp8_pb_real") is by_modelopt_name("fp8_pb_wo") is FORMATS["FP8_BLOCK"]
    assert by_modelopt_name("mxfp4") is None


def test_only_formats_that_modelopt_declares_may_be_mixed() -> None:
    assert {name for name, row in FORMATS.items() if not row.mixes} == {"FP8_BLOCK"}
    assert isinstance(FORMATS["FP8_BLOCK"].form, ConfigForm)
    assert isinstance(FORMATS["FP8"].form, ModeloptForm)
    assert FORMATS["FP8"].form.layer == {"quant_algo": "FP8"}
    assert isinstance(FORMATS["NVFP4"].form, ModeloptForm)
    assert FORMATS["NVFP4"].form.layer == {"quant_algo": "NVFP4", "group_size": 16}


def test_no_module_but_the_table_names_a_format() -> None:
    """Then a row is all that a format needs, besides the code that computes its bytes."""
    modelopt = {name for row in FORMATS.values() for name in row.modelopt}
    forbidden = {*FORMATS, *BY_ALGORITHM, *KV_CACHES, *modelopt, MIXED_PRECISION}
    found = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.value}"
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
        if path != ROOT / "common" / "quantization" / "formats.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and node.value in forbidden
    ]
    assert found == []
