"""How large each kind of file can be, so that one that cannot be ours is refused before it is read.

Lists of tensors grow with the model, so their bounds do: what the safetensors files beside them hold is added to a
floor, up to a ceiling that no model reaches. Headers of safetensors files have a bound of their own. Must not open any.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from .places import SHARDS

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@dataclass(frozen=True, slots=True)
class Plausible:
    """How large a file of one kind can be.

    Attributes:
        floor_bytes: So many bytes are plausible beside any weights. Beside large ones, as many more as those have.
        ceiling_bytes: More are never plausible.
    """

    floor_bytes: int
    ceiling_bytes: int

    def limit(self, path: Path, weights: Path | None = None) -> int:
        """Return how many bytes a file may have.

        Args:
            path: The file. It need not be there.
            weights: The folder of the safetensors files that it speaks of. None for what speaks of none.

        Returns:
            The largest size that is plausible.
        """
        if weights is None or _num_bytes(path) <= self.floor_bytes:
            return self.floor_bytes
        beside = sum(map(_num_bytes, weights.glob(SHARDS)))
        return min(self.floor_bytes + beside, self.ceiling_bytes)


# A row of a list takes some 250 bytes. The largest models have a million tensors.
MANIFEST = Plausible(64 * MIB, 4 * GIB)  # a row for each rectangle, also for those that another rank wrote
INDEX = Plausible(64 * MIB, 1 * GIB)  # a row for each tensor
CONFIG = Plausible(16 * MIB, 1 * GIB)  # may list every module that is not quantized; hf_quant_config.json too
RECORD = Plausible(64 * MIB, 2 * GIB)  # plan, report, receipts of an output
LEDGER = Plausible(64 * MIB, 16 * GIB)  # a row of some 40 bytes for each rectangle, and all names once
FAILURE = Plausible(1 * MIB, 1 * MIB)  # why a rank failed
OWNER = Plausible(64 * KIB, 64 * KIB)  # who is writing
JOURNAL = Plausible(1 * MIB, 1 * MIB)  # the names of the files that are replaced
CHECKPOINT_METADATA = Plausible(64 * MIB, 16 * GIB)  # `.metadata`: some 500 bytes for each chunk of a tensor
SIDECAR = Plausible(512 * MIB, 512 * MIB)  # the largest tokenizers have some 35 MB


def _num_bytes(path: Path) -> int:
    """Return the size of a file, 0 if there is none."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0
