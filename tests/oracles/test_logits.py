"""What transformers computes of a published checkpoint is what Megatron computed: names, values and settings together.

For families that no importer fills: values are drawn for each parameter of the Megatron model, which is then dumped and
merged. Both sides run in float32.
"""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
import torch

from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import merge
from tests.worlds.checkpoints import hf_class, telling_values
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import FAMILIES, Family
from tests.worlds.filling import FLOAT32, holdings
from tests.worlds.mtp import can_build, write_bare
from tests.worlds.oracle import IMPORTED
from tests.worlds.topology import SINGLE

NOT_IMPORTED = tuple(family for family in FAMILIES if family not in IMPORTED and can_build(family))


@pytest.mark.parametrize("family", NOT_IMPORTED, ids=lambda family: family.name)
def test_transformers_computes_what_megatron_computed(family: Family, tmp_path: Path) -> None:
    reference = write_bare(family, tmp_path / "hf")
    tokens = torch.randint(0, family.vocab, (2, 17), generator=torch.Generator().manual_seed(3))
    with fake_world(SINGLE, 0):
        chunks = build_model(family, SINGLE)
        draw(chunks, family)
        dump(chunks, tmp_path / "dump", hf_reference=reference, run_id="run", step=1)
        wide = build_model(family, SINGLE, dtype=torch.float32)
        draw(wide, family)
        positions = torch.arange(tokens.shape[1]).expand_as(tokens)
        with torch.no_grad():
            computed = wide[0].eval()(tokens, positions, None)[..., : family.vocab]
    merge([tmp_path / "dump"], tmp_path / "merged", hf_reference=reference, workers=1)
    read = hf_class(family).from_pretrained(tmp_path / "merged", dtype=torch.float32).eval()
    with torch.no_grad():
        torch.testing.assert_close(read(tokens).logits, computed, rtol=1e-4, atol=1e-4)


def draw(chunks: list[torch.nn.Module], family: Family) -> None:
    """Give every parameter values that its name decides, which bfloat16 holds but for router biases."""
    for held in holdings(chunks, family, SINGLE, 0):
        generator = torch.Generator().manual_seed(zlib.crc32(held.identity.encode()))
        values = telling_values(held.identity, held.tensor.shape, generator)
        if FLOAT32.search(held.identity) is None:
            values = values.bfloat16()
        held.tensor.data.copy_(values)
