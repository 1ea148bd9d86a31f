"""The example for Megatron-LM's loop on two real ranks: a dump every two steps, the last kept, and one that is read."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from shardmerge.phase2_merge import merge
from tests.gpu.training import begun
from tests.gpu.worlds import on_cpu
from tests.phase1_dump.conftest import References, references  # noqa: F401 - a fixture
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import Topology

EXAMPLE = Path(__file__).parents[2] / "docs" / "guide" / "training_loop.py"
TOPOLOGY = Topology(dp=2, ep=2)


def example() -> Any:
    spec = importlib.util.spec_from_file_location("training_loop", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["training_loop"] = module
    spec.loader.exec_module(module)
    return module


def train(rank: int, folder: Path, reference: Path, steps: int) -> float:
    """A loop as Megatron-LM's. Somebody begins to read the dump of step 2 while it goes on."""
    with on_cpu():
        training = begun(TOPOLOGY, torch.device("cpu"))
        dumps = example().Dumps(folder, reference, "run", every=2, keep=1)
        for step in range(1, steps + 1):
            loss = training.step()
            dumps.after_step([training.model], step)
            if step == 3 and rank == 0:
                dumps.finish()
                (folder / "step-0000002.reading-job-9").touch()
        dumps.finish()
    return loss


def test_the_last_dumps_are_kept_and_none_that_is_read_goes(
    ranks: GlooRanks,
    references: References,  # noqa: F811
    tmp_path: Path,
) -> None:
    reference = references.config("qwen3_moe")
    ranks.run(train, TOPOLOGY, tmp_path / "dumps", reference, 7)
    example().remove_old(
        tmp_path / "dumps", 1, 2
    )  # the first rank may have looked before the last dump was whole
    left = sorted(path.name for path in (tmp_path / "dumps").iterdir())
    assert left == ["step-0000002", "step-0000002.reading-job-9", "step-0000006"]
    for step in (2, 6):
        merge(
            [tmp_path / "dumps" / f"step-{step:07d}"], tmp_path / str(step), hf_reference=reference, workers=1
        )


def test_whoever_removes_sees_a_reader_that_came_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop = example()
    for step in (1, 2):
        rank = tmp_path / f"step-{step:07d}" / "rank-00000"
        rank.mkdir(parents=True)
        (rank / "manifest.json").touch()
    real = loop.os.rename

    def rename(old: Path, new: Path) -> None:
        real(old, new)
        (tmp_path / "step-0000001.reading-job").touch()

    monkeypatch.setattr(loop.os, "rename", rename)
    loop.remove_old(tmp_path, 1, 1)
    assert (tmp_path / "step-0000001" / "rank-00000" / "manifest.json").exists()
    (tmp_path / "step-0000001.reading-job").unlink()
    monkeypatch.undo()
    loop.remove_old(tmp_path, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000002"]


def whole_dumps(folder: Path, *names: str) -> None:
    """What `remove_old` sees of complete dumps of one rank."""
    for name in names:
        rank = folder / name / "rank-00000"
        rank.mkdir(parents=True)
        (rank / "manifest.json").touch()


def test_a_dump_that_is_read_keeps_its_name_all_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, renamed = example(), []
    whole_dumps(tmp_path, "step-0000001", "step-0000002")
    (tmp_path / "step-0000001.reading-job").touch()
    monkeypatch.setattr(loop.os, "rename", lambda old, new: renamed.append((old, new)))
    loop.remove_old(tmp_path, 1, 1)
    assert renamed == []


def test_what_a_killed_job_had_begun_to_remove_goes_and_hinders_no_dump_of_that_step(tmp_path: Path) -> None:
    whole_dumps(tmp_path, "step-0000001", ".step-0000001.removing", "step-0000003", ".step-0000002.removing")
    example().remove_old(tmp_path, 1, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000003"]


def test_what_an_earlier_job_left_unfinished_goes_before_this_one_dumps(tmp_path: Path) -> None:
    """Its ranks would be of another attempt, and all together look complete."""
    for step, ranks in ((1, 4), (2, 1), (3, 2), (4, 0)):
        (tmp_path / f"step-{step:07d}").mkdir()
        for rank in range(ranks):
            folder = tmp_path / f"step-{step:07d}" / f"rank-{rank:05d}"
            folder.mkdir()
            (folder / "manifest.json").write_text(json.dumps({"world_size": 4 if step == 1 else 2}))
    example().remove_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-0000001", "step-0000003"]
