"""The seam between a checkpoint with quantizers and what packs its weights, which needs torch and modelopt.

Whoever plans a dump hands in what makes a `Packing`; without quantizers in the checkpoint it is never called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol, TypeAlias

from shardmerge.common.quantization.rows import Format

from ..rectangles.claims import Claimed
from ..rectangles.quantization_facts import KVCache
from ..source import Holding, Stream
from ..torch_dist.folder import FileState
from .chunk_files import ChunkFiles, StoredPart
from .quantizers import Quantizers


class Packing(Protocol):
    """What packs the weights of a checkpoint. A function of its quantizers."""

    def row_of(self, key: str) -> Format | None:
        """Return the format that a parameter is written in, None if it is not packed. Reads no number.

        Args:
            key: Canonical key of the parameter.

        Raises:
            UnsupportedParameterError: it is quantized in a way that cannot be written.
            UnsupportedCheckpointError: the same, or only the live model could be dumped.
        """

    def packed(
        self, claimed: Sequence[Claimed], files: ChunkFiles, states: Mapping[str, FileState], share: int
    ) -> tuple[list[Claimed], list[KVCache]]:
        """Give parameters of a share their packed forms.

        Args:
            claimed: The parameters.
            files: Where their numbers lie.
            states: Of all files of the checkpoint.
            share: For messages.

        Returns:
            The parameters, in their order, and the scales of the KV caches whose projections are among them.

        Raises:
            ShardmergeError: ranges are missing, damaged or cannot be scales.
            OSError: a file cannot be read.
        """

    def read(self, holdings: Sequence[Holding], *, inspect: bool) -> Stream:
        """Yield the blocks of holdings of packed weights, then one `Seen` for each, as `Source.read` describes it."""

    def producer(self) -> dict[str, str]:
        """Return whom both JSON files of a quantized checkpoint name as producer."""


PackingOf: TypeAlias = Callable[[Quantizers, Callable[[str], Sequence[StoredPart]]], Packing]
