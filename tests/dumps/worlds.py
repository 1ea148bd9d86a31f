"""A dump and its reference, ready to be merged or spoiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from shardmerge.phase2_merge import check, merge
from tests.dumps import dumps
from tests.dumps.dumps import Cut, Model, Topology


@dataclass
class World:
    """`cuts` and `model` may be changed before `write` is called."""

    folder: Path
    model: Model
    topology: Topology
    cuts: dict[str, list[Cut]]

    @property
    def dump(self) -> Path:
        return self.folder / "dump"

    @property
    def reference(self) -> Path:
        return self.folder / "reference"

    @property
    def out(self) -> Path:
        return self.folder / "out"

    def rank(self, rank: int) -> Path:
        return self.dump / f"rank-{rank:05d}"

    def write(self, *, weights: bool = False, **how: Any) -> World:
        dumps.write_dump(self.dump, self.model, self.cuts, self.topology, **how)
        if not self.reference.exists():
            dumps.write_reference(self.reference, self.model, weights=weights)
        return self

    def merge(self, **how: Any) -> Any:
        return merge([self.dump], self.out, hf_reference=self.reference, **{"workers": 1, **how})

    def check(self, **how: Any) -> Any:
        return check([self.dump], hf_reference=self.reference, **how)

    def add(self, rank: int, name: str, offset: Sequence[int], shape: Sequence[int]) -> None:
        self.cuts[name].append(Cut(rank, tuple(offset), tuple(shape)))


MakeWorld = Callable[..., World]


@pytest.fixture
def world(tmp_path: Path) -> MakeWorld:
    """`world(Topology(...), config)`; a dense model on one rank without arguments."""

    def make(topology: Topology | None = None, config: Mapping[str, Any] | None = None) -> World:
        topology = topology or Topology()
        model = dumps.model_of(dict(config or dumps.dense_config()))
        return World(tmp_path, model, topology, dumps.cuts_of(model, topology))

    return make
