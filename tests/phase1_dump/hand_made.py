"""Holdings of plain tensors, made without a model: what blocks, fragments and the writer are tested with."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from shardmerge.common.rectangle import Rectangle
from shardmerge.phase1_dump.generation import Generation
from shardmerge.phase1_dump.rectangles.parts import Part, Recipe
from shardmerge.phase1_dump.source import Holding, ManifestFacts
from shardmerge.phase1_dump.sources.host_memory.host_buffers import HostBuffers, StreamBuffers
from shardmerge.phase1_dump.sources.live_model import LiveModel
from shardmerge.phase1_dump.sources.reading import Reader
from shardmerge.phase1_dump.world import World

DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F64": torch.float64}
Slices = Sequence[slice]


def whole(name: str, tensor: torch.Tensor, dtype: str = "BF16") -> Holding:
    """An entire tensor in one part."""
    shape, origin = tuple(tensor.shape), (0,) * tensor.ndim
    return Holding(
        Rectangle(name, dtype, shape, origin, shape), (0,), Recipe((Part(tensor, origin, origin, shape),))
    )


def in_parts(
    name: str, pieces: Sequence[tuple[tuple[int, ...], torch.Tensor]], dtype: str = "BF16"
) -> Holding:
    """A tensor put together from (offset, live tensor) pieces, which must fill a box that starts at the origin."""
    ends = [tuple(at + n for at, n in zip(offset, tensor.shape, strict=True)) for offset, tensor in pieces]
    shape = tuple(map(max, zip(*ends, strict=True)))
    parts = tuple(Part(tensor, (0,) * tensor.ndim, offset, tuple(tensor.shape)) for offset, tensor in pieces)
    return Holding(Rectangle(name, dtype, shape, (0,) * len(shape), shape), (0,), Recipe(parts))


def box_of(
    name: str, live: torch.Tensor, box: Slices, offset: tuple[int, ...], shape: tuple[int, ...]
) -> Holding:
    """The part `box` of a live tensor, bound for `offset` of a Hugging Face tensor of `shape`."""
    start, size = tuple(s.start for s in box), tuple(s.stop - s.start for s in box)
    return Holding(
        Rectangle(name, "BF16", shape, offset, size), (0,), Recipe((Part(live, start, offset, size),))
    )


class Copying(HostBuffers):
    """Copies every block to the buffer whose turn it is, as from a GPU."""

    def new_buffers(self, block_bytes: int, count: int) -> StreamBuffers:
        return CopyingBuffers(block_bytes, count)


class CopyingBuffers(StreamBuffers):
    """Such buffers, of ordinary memory."""

    def host(self, block: torch.Tensor) -> memoryview:
        return super().host(self.next_buffer(block.nbytes).elements(block.dtype, block.numel()).copy_(block))


def source_of(holdings: Sequence[Holding], buffers: HostBuffers) -> LiveModel:
    """A live source of one rank alone that holds these."""
    axes = ("tp", "cp", "pp", "dp", "ep", "etp", "edp")
    world = World(0, 1, dict.fromkeys(axes, 0), {axis: [0] for axis in axes})
    facts = ManifestFacts("LlamaForCausalLM", {}, "BF16")
    return LiveModel(world, Generation("run", 7, "0"), facts, tuple(holdings), (), Reader(buffers))


def numbers(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    """Normal values, different for every seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def raw(tensor: torch.Tensor) -> bytes:
    """The bytes of a tensor in row order, by numpy."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
