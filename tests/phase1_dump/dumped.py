"""Dumps of small real models, and what they wrote as the safetensors library sees it.

Decides how the ranks of a fake world are dumped in turn and how pieces are counted and put together. Reads the
keys of fragments ("name@offset,offset"), never a manifest, so that it can bear witness about both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from megatron.core.models.gpt.gpt_model import GPTModel
from safetensors import safe_open

from shardmerge.common.manifest import Manifest
from shardmerge.phase1_dump import dump
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family
from tests.worlds.topology import SINGLE, Topology

GENERATION: dict[str, Any] = {"run_id": "run", "step": 7, "attempt": "0"}
Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tensor of a fragment: which rank wrote it, in which file, and where it belongs."""

    rank: int
    file: str
    name: str
    offset: tuple[int, ...] | None  # None: the key says it is the entire tensor
    shape: tuple[int, ...]
    tensor: torch.Tensor | None = None

    def box(self) -> tuple[slice, ...]:
        """Where it lies in its tensor."""
        start = self.offset or (0,) * len(self.shape)
        return tuple(slice(at, at + size) for at, size in zip(start, self.shape, strict=True))


def dumped(model: Any, out: Path, reference: Path, **options: Any) -> Manifest:
    """The manifest of this rank's dump, which must succeed."""
    found = dump(model, out, hf_reference=reference, **(GENERATION | options))
    assert found is not None
    return found


def dump_world(
    family: Family, topology: Topology, out: Path, reference: Path, *, te: bool = False, **options: Any
) -> list[Manifest]:
    """Dump every rank of a fake world, one after another, each with a model of its own."""
    manifests = []
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            manifests.append(dumped(build_model(family, topology, te=te), out, reference, **options))
    return manifests


def single_model(family: Family) -> GPTModel:
    """The unsharded model; only inside `fake_world(SINGLE, 0)`."""
    return build_model(family, SINGLE)[0]


def pieces_of(out: Path, *, load: bool = False) -> Iterator[Piece]:
    """Every tensor of every fragment of every finished rank."""
    for file in sorted(out.glob("rank-*/*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            for key in handle.offset_keys():
                name, cut, offset = key.partition("@")
                yield Piece(
                    rank=int(file.parent.name.removeprefix("rank-")),
                    file=file.name,
                    name=name,
                    offset=tuple(map(int, offset.split(","))) if cut else None,
                    shape=tuple(handle.get_slice(key).get_shape()),
                    tensor=handle.get_tensor(key) if load else None,
                )


def shapes_of(checkpoint: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes in a Hugging Face directory, as the safetensors library reads them."""
    found = {}
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            found.update({key: tuple(handle.get_slice(key).get_shape()) for key in handle.offset_keys()})
    return found


def tiling_faults(pieces: Iterable[Piece], expected: Shapes) -> list[str]:
    """What keeps the pieces from covering each element of each expected tensor exactly once."""
    counts = {name: np.zeros(shape, dtype=np.int16) for name, shape in expected.items()}
    faults = []
    for piece in pieces:
        if piece.name not in counts:
            faults.append(f"{piece.name} of rank {piece.rank} is not expected")
        elif counts[piece.name][piece.box()].shape != piece.shape:
            faults.append(f"{piece.name} of rank {piece.rank} leaves {expected[piece.name]}")
        else:
            counts[piece.name][piece.box()] += 1
    bad = {name: sorted(set(np.unique(count).tolist()) - {1}) for name, count in counts.items()}
    return faults + [f"{name}: elements covered {times} times" for name, times in bad.items() if times]


def assembled(pieces: Sequence[Piece], expected: Shapes) -> dict[str, torch.Tensor]:
    """The tensors that pieces with loaded data add up to."""
    dtypes = {piece.name: piece.tensor.dtype for piece in pieces if piece.tensor is not None}
    found = {name: torch.zeros(shape, dtype=dtypes[name]) for name, shape in expected.items()}
    for piece in pieces:
        assert piece.tensor is not None
        found[piece.name][piece.box()] = piece.tensor
    return found


def differing(got: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> list[str]:
    """Names of the tensors that are not equal byte for byte, dtype and shape included."""
    assert got.keys() == expected.keys()
    return [name for name, tensor in got.items() if not _same_bytes(tensor, expected[name])]


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))
