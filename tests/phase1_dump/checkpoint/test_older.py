"""A checkpoint that megatron-core 0.15 saved is read from disk as the installed megatron-core reads it.

Its `.metadata` has classes of megatron-core's own, and the optimizer's state is cut flat. `older` says how it was made.
"""

from __future__ import annotations

import pickletools
import tarfile
from pathlib import Path

import pytest

from shardmerge.phase1_dump import dump_checkpoint
from tests.phase1_dump.checkpoint import older
from tests.phase1_dump.checkpoint.test_same_as_live import merged, reference_of
from tests.worlds.fake import build_model
from tests.worlds.gloo import GlooRanks
from tests.worlds.saving import Spelling, described
from tests.worlds.topology import Topology

SAVED = Path(__file__).parent / "saved_by_older"
TOPOLOGY = Topology(ep=2, dp=2)  # another than it was saved with


def load_and_dump(_rank: int, checkpoint: Path, reference: Path, out: Path) -> None:
    """Be one rank: let megatron-core load the checkpoint, and dump what it made of it."""
    from megatron.core import dist_checkpointing

    from shardmerge.phase1_dump import dump

    chunks = build_model(older.family(), TOPOLOGY)
    loaded = dist_checkpointing.load(described(chunks, Spelling(layers=True)), str(checkpoint))
    missing, unexpected = chunks[0].load_state_dict(loaded["model0"], strict=False)
    assert not [name for name in [*missing, *unexpected] if not name.endswith("_extra_state")]
    dump(chunks, out, hf_reference=reference, run_id="run", step=7)


@pytest.mark.parametrize("version", ["0.15.3"])
def test_what_an_older_version_saved_is_what_megatron_core_loads(
    version: str, ranks: GlooRanks, tmp_path: Path
) -> None:
    with tarfile.open(SAVED / f"megatron-core-{version}.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    checkpoint = tmp_path / older.ITERATION
    texts = {arg for _, arg, _ in pickletools.genops((checkpoint / ".metadata").read_bytes())}
    assert {"MCoreMetadata", "MCoreSavePlan", "nd_reformulated_orig_global_shape"} <= texts
    reference = reference_of(older.family(), tmp_path)
    ranks.run(load_and_dump, TOPOLOGY, checkpoint, reference, tmp_path / "live")

    dumped = dump_checkpoint(
        checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run", max_share_bytes=20_000
    )

    assert dumped.num_shares > 1
    assert dumped.unchecked == ()
    found, live = (merged(tmp_path / name, tmp_path / f"of-{name}", reference) for name in ("disk", "live"))
    assert found == live
