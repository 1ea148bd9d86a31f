"""What journeys start from: a checkpoint, and the same as Model-Optimizer and megatron-core write it for training."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.journeys.settings import Dumped, dumped
from tests.worlds.checkpoints import write_hf_checkpoint
from tests.worlds.families import Family
from tests.worlds.gloo import GlooRanks
from tests.worlds.mtp import BUILT, write_checkpoint
from tests.worlds.oracle import write_torch_dist


@pytest.fixture(scope="module")
def sources(
    ranks: GlooRanks, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[Family], tuple[Path, Path]]:
    """Family -> (its Hugging Face checkpoint, the same as torch_dist), each made once."""
    made: dict[str, tuple[Path, Path]] = {}

    def source(family: Family) -> tuple[Path, Path]:
        if family.name not in made:
            folder = tmp_path_factory.mktemp(family.name)
            reference = write_checkpoint(family, folder / "hf")
            made[family.name] = reference, write_torch_dist(ranks, family, reference, folder / "torch_dist")
        return made[family.name]

    return source


@pytest.fixture(scope="module")
def dumps(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dumped]:
    """By the name of a family. transformers writes all before a world is up."""
    folder = tmp_path_factory.mktemp("settings")
    for family in BUILT:
        write_hf_checkpoint(family, folder / family.name)
    return {
        family.name: dumped(family, folder / family.name, folder / f"{family.name}-dump") for family in BUILT
    }
