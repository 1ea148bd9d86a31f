"""Two ranks written from a hand-made source, and the dump checked, in a process that cannot import torch.

Run as `python -m tests.phase1_dump.fragments.without_torch FOLDER`; prints the names of modules that were imported.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORBIDDEN = ("torch", "megatron", "transformer_engine", "modelopt")
BLOCK_BYTES = 48


@dataclass
class ArraySource:
    """A `source.Source` of arrays. Every block comes through one of two buffers, which are used again at once."""

    world: Any
    generation: Any
    facts: Any
    holdings: Sequence[Any]
    stage_copies: Sequence[Any] = ()
    settled: bool = False
    open_streams: int = 0

    def settle(self) -> None:
        self.settled = True

    def read(self, holdings: Sequence[Any], *, inspect: bool = True, streams: int = 1) -> Any:
        from shardmerge.phase1_dump.source import Seen

        assert self.settled
        self.open_streams += 1
        buffers, number = (bytearray(BLOCK_BYTES), bytearray(BLOCK_BYTES)), 0
        try:
            for holding in holdings:
                data: bytes = holding.recipe
                for at in range(0, len(data), BLOCK_BYTES):
                    block = data[at : at + BLOCK_BYTES]
                    number += 1
                    buffers[number % 2][:] = b"\xff" * BLOCK_BYTES
                    buffers[number % 2][: len(block)] = block
                    yield memoryview(buffers[number % 2])[: len(block)]
                yield Seen(all_zero=not any(data)) if inspect else Seen()
        finally:
            self.open_streams -= 1


def forbid() -> None:
    """From here on importing any of `FORBIDDEN` raises ImportError."""
    modules: dict[str, Any] = sys.modules
    for name in FORBIDDEN:
        assert name not in modules
        modules[name] = None


def import_all(package: str) -> None:
    """A package and every module in it."""
    folder = importlib.import_module(package).__path__
    for module in pkgutil.walk_packages(folder, f"{package}."):
        importlib.import_module(module.name)


def sources(model: Any) -> list[ArraySource]:
    """Two tensor-parallel ranks: what is not cut, both hold."""
    from shardmerge.common.architectures import blueprint
    from shardmerge.common.rectangle import Rectangle
    from shardmerge.phase1_dump.generation import Generation
    from shardmerge.phase1_dump.source import Holding, ManifestFacts
    from shardmerge.phase1_dump.world import World
    from tests.dumps.dumps import Topology, cuts_of, piece_bytes

    held: list[list[Holding]] = [[], []]
    for name, cuts in cuts_of(model, Topology(tp=2)).items():
        dtype, shape, _ = model.tensors[name]
        for cut in cuts:
            ranks = (0, 1) if cut.shape == shape else (cut.rank,)
            rectangle = Rectangle(name, dtype, shape, cut.offset, cut.shape)
            for rank in ranks:
                held[rank].append(Holding(rectangle, ranks, piece_bytes(model, name, cut)))
    axes = ("tp", "cp", "pp", "dp", "ep", "etp", "edp")
    table = blueprint(model.config)
    facts = ManifestFacts(table.architecture.name, table.dimensions, "BF16", producer={"arrays": "1"})
    return [
        ArraySource(
            World(rank, 2, {axis: rank if axis == "tp" else 0 for axis in axes},
                  {axis: [0, 1] if axis == "tp" else [rank] for axis in axes}),
            Generation("run", 7, "0"), facts, holdings,
        )
        for rank, holdings in enumerate(held)
    ]  # fmt: skip


def main(folder: Path) -> None:
    """Write both ranks, and prove that together they are whole."""
    forbid()
    for package in ("source", "rectangles", "fragments"):
        name = f"shardmerge.phase1_dump.{package}"
        importlib.import_module(name) if package == "source" else import_all(name)
    from shardmerge.phase1_dump.fragments.write_rank import write_rank
    from shardmerge.phase2_merge import check
    from tests.dumps.dumps import model_of, moe_config, write_reference

    model = model_of(moe_config())
    for source in sources(model):
        write_rank(source, folder / "dump", max_fragment_bytes=2000, check_replicas=True)
        assert source.open_streams == 0
    reference = write_reference(folder / "reference", model)
    check([folder / "dump"], hf_reference=reference)
    found = sorted(name for name, module in sys.modules.items() if module is not None)
    assert not [name for name in found if name.split(".")[0] in FORBIDDEN]
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
