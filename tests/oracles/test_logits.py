"""What transformers computes of a published checkpoint is what Megatron computed: names, values and settings together.

For families that no importer fills: values are drawn for each parameter of the Megatron model, which is then dumped and
merged. Both sides run in float32.
"""

from __future__ import annotations

import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.common.architectures import blueprint
from shardmerge.common.reference import read_config
from shardmerge.phase1_dump import dump
from tests.oracles.mutations import each_row
from tests.oracles.ours import is_dumped, is_merged, merged
from tests.oracles.table import ORACLES
from tests.worlds.checkpoints import hf_class, telling_values
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import FAMILIES, Family, by_name
from tests.worlds.filling import FLOAT32, holdings
from tests.worlds.mtp import can_build, write_bare
from tests.worlds.oracle import IMPORTED
from tests.worlds.topology import SINGLE

# megatron-core adds no bias to a softmax
NOT_COMPUTED = {"ernie4_5_moe"}
COMPUTED = tuple(family for family in FAMILIES if family not in IMPORTED and family.name not in NOT_COMPUTED)
NOT_IMPORTED = tuple(filter(can_build, COMPUTED))


# by these alone: a record of another program would notice a wrong row in less time
ALONE = tuple(family for family in NOT_IMPORTED if not ORACLES[family.name].program)

# norms that Megatron stores minus one and readers do not, and the reverse
OTHER_NORMS = (
    replace(by_name("qwen3_moe"), norm="RMSNorm1P"),
    replace(by_name("deepseek_v3"), norm="RMSNorm1P"),
    replace(by_name("gemma3"), norm="RMSNorm"),
)


@pytest.mark.parametrize(
    "family", [*NOT_IMPORTED, *OTHER_NORMS], ids=lambda family: f"{family.name}-{family.norm}"
)
def test_transformers_computes_what_megatron_computed(family: Family, tmp_path: Path) -> None:
    reference = write_bare(family, tmp_path / "hf")
    with fake_world(SINGLE, 0):
        dump(drawn(family, torch.bfloat16), tmp_path / "dump", hf_reference=reference, run_id="run", step=1)
        computed = megatron_logits(family)
    merged(tmp_path / "dump", tmp_path / "merged", reference)
    torch.testing.assert_close(
        transformers_logits(family, tmp_path / "merged"), computed, rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("family", ALONE, ids=lambda family: family.name)
def test_logits_differ_where_a_row_is_changed(family: Family, tmp_path: Path) -> None:
    reference = write_bare(family, tmp_path / "hf")
    table = blueprint(read_config(reference))
    tried = [
        (what, replace(table.architecture, rows=rows), tmp_path / f"{number}")
        for number, (_, what, rows) in enumerate(each_row(table))
    ]
    with fake_world(SINGLE, 0):
        chunks = drawn(family, torch.bfloat16)
        dumped = [is_dumped(chunks, wrong, reference, folder) for _, wrong, folder in tried]
        computed = megatron_logits(family)
    missed = [
        what
        for was, (what, wrong, folder) in zip(dumped, tried, strict=True)
        if was and is_merged(wrong, reference, folder) and _computes(family, folder / "merged", computed)
    ]
    assert missed == []


def _computes(family: Family, checkpoint: Path, computed: torch.Tensor) -> bool:
    """Whether transformers takes a checkpoint and computes these logits."""
    try:
        found = transformers_logits(family, checkpoint)
    except RuntimeError as error:
        if "mismatch" not in str(error).lower():  # as it refuses a tensor of another shape
            raise
        return False
    return torch.allclose(found, computed, rtol=1e-3, atol=1e-3)


def tokens(family: Family) -> torch.Tensor:
    """Two sequences."""
    return torch.randint(0, family.vocab, (2, 17), generator=torch.Generator().manual_seed(3))


def megatron_logits(family: Family) -> torch.Tensor:
    """What Megatron computes with the values that are drawn, in float32."""
    given = tokens(family)
    positions = torch.arange(given.shape[1]).expand_as(given)
    with torch.no_grad():
        found: torch.Tensor = drawn(family, torch.float32)[0].eval()(given, positions, None)
    return found[..., : family.vocab]


def transformers_logits(family: Family, checkpoint: Path) -> torch.Tensor:
    """What transformers computes of a checkpoint, in float32."""
    read = hf_class(family).from_pretrained(checkpoint, dtype=torch.float32).eval()
    with torch.no_grad():
        found: torch.Tensor = read(tokens(family)).logits
    return found


def drawn(family: Family, dtype: torch.dtype) -> list[Any]:
    """A model whose parameters have values that their names decide, which bfloat16 holds but for router biases."""
    chunks = build_model(family, SINGLE, dtype=dtype)
    for held in holdings(chunks, family, SINGLE, 0):
        generator = torch.Generator().manual_seed(zlib.crc32(held.identity.encode()))
        values = telling_values(held.identity, held.tensor.shape, generator)
        if FLOAT32.search(held.identity) is None:
            values = values.bfloat16()
        if family.norm == "RMSNorm1P" and "norm" in held.identity:
            values = values - 1  # exact, and so is what it becomes where readers add nothing
        held.tensor.data.copy_(values)
    return chunks
