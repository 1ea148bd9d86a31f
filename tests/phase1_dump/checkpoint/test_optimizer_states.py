"""Checkpoints that hold the state of megatron-core's DistributedOptimizer: the model is read, and nothing beside it."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest

from shardmerge.phase1_dump import dump_checkpoint
from tests.phase1_dump.checkpoint.test_same_as_live import merged, reference_of
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.saving import Spelling, filled
from tests.worlds.topology import Topology

BUCKET = (
    "chained_1.optimizer.distributed.dp_group_idx_1.gbuf_idx_0.dtype_(torch.bfloat16, torch.float32)"
    ".bucket_idx_1.exp_avg"
)
STARTS = ("optimizer.", "chained_", "rng_state")


def save_and_dump(
    rank: int, topology: Topology, form: str, spelling: Spelling, reference: Path, out: Path
) -> bool:
    """Be one rank: train a step, save, dump alive. Returns whether every parameter moved."""
    import torch

    from shardmerge.phase1_dump import dump
    from tests.gpu.worlds import on_cpu
    from tests.worlds.trained import save_trained, stepped

    chunks = filled(rank, by_name("qwen3_moe"), topology)
    before = [parameter.detach().clone() for chunk in chunks for parameter in chunk.parameters()]
    with on_cpu():
        trained = stepped(chunks)
        save_trained(trained, chunks, out / "iter_0000007", spelling, form)
    dump(trained.wrapped, out / "live", hf_reference=reference, run_id="run", step=7)
    after = [parameter for chunk in chunks for parameter in chunk.parameters()]
    return not any(torch.equal(one, other) for one, other in zip(before, after, strict=True))


def entries(checkpoint: Path) -> dict[bool, list[tuple[str, Any]]]:
    """Keys and places of all entries of files, by whether they are of the model."""
    held = pickle.loads((checkpoint / ".metadata").read_bytes()).storage_data
    found: dict[bool, list[tuple[str, Any]]] = {True: [], False: []}
    for index, place in held.items():
        found[not index.fqn.startswith(STARTS)].append((index.fqn, place))
    return found


def spoil_what_is_not_of_the_model(checkpoint: Path) -> None:
    """Overwrite every such byte, and remove files that hold nothing else."""
    of = entries(checkpoint)
    for _, place in of[False]:
        with open(checkpoint / place.relative_path, "r+b") as file:
            file.seek(place.offset)
            file.write(b"\xa5" * place.length)
    for name in {place.relative_path for _, place in of[False]} - {
        place.relative_path for _, place in of[True]
    }:
        (checkpoint / name).unlink()
    for path in (checkpoint / "common.pt", *checkpoint.glob("common_state/*")):
        if path.exists():
            path.write_bytes(b"a pickle that nobody reads")


def bytes_read() -> int:
    """How many bytes this process has read so far, of files and of whatever else."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"])


# a tensor for each bucket of gradients, of two chained optimizers; and one for each parameter and moment
@pytest.mark.parametrize(
    ("form", "topology", "spelling", "key"),
    [
        (
            "dp_reshardable",
            Topology(tp=2, ep=2, dp=2),
            Spelling(experts=True),
            BUCKET,
        ),
        (
            "fully_reshardable",
            Topology(pp=2, vpp=2, dp=2),
            Spelling(),
            "optimizer.state.exp_avg_sq.decoder.layers.0.mlp.router.weight",
        ),
    ],
    ids=["buckets", "parameters"],
)
def test_the_model_beside_a_distributed_optimizer_becomes_what_it_becomes_alive(
    form: str, topology: Topology, spelling: Spelling, key: str, ranks: GlooRanks, tmp_path: Path
) -> None:
    reference = reference_of(by_name("qwen3_moe"), tmp_path)
    assert all(ranks.run(save_and_dump, topology, topology, form, spelling, reference, tmp_path))
    checkpoint = tmp_path / "iter_0000007"
    of = entries(checkpoint)
    model, optimizer = (sum(place.length for _, place in of[kind]) for kind in (True, False))
    assert optimizer > 4 * model
    assert key in {name for name, _ in of[False]}

    before = bytes_read()
    dump_checkpoint(
        checkpoint, tmp_path / "disk", hf_reference=reference, run_id="run", max_share_bytes=1 << 30
    )
    assert (
        bytes_read() - before < optimizer
    )  # `.metadata` is read several times, and so is all that Python reads
    shards = merged(tmp_path / "disk", tmp_path / "a", reference)
    assert shards == merged(tmp_path / "live", tmp_path / "b", reference)

    spoil_what_is_not_of_the_model(checkpoint)
    dump_checkpoint(checkpoint, tmp_path / "again", hf_reference=reference, run_id="run")
    assert merged(tmp_path / "again", tmp_path / "c", reference) == shards
