"""Makes modelopt's quantizers again from what a checkpoint says of them, and packs its weights with them.

A quantizer is given the properties that every quantizer has, and its range. One that says more is of a kind that is not
known here, and refused by name.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from threading import Lock
from typing import Any

import torch
from modelopt.torch.quantization.nn import TensorQuantizer
from torch import nn

from shardmerge.common.quantization.rows import Format, ScaleSource

from ..checkpoint.chunk_files import ChunkFiles, StoredPart
from ..checkpoint.quantizers import TENSORS, Quantizers, Stored, module_of
from ..quantization import modelopt
from ..quantization.derived import Scales
from ..quantization.packed_claims import GATES, attention_names, kv_cache, packed_of
from ..rectangles.claims import Claimed
from ..rectangles.quantization_facts import KVCache
from ..source import Holding, Stream
from ..sources.host_memory.host_buffers import HostBuffers
from ..sources.reading import Reader
from ..torch_dist.folder import FileState
from .stored_weight import StoredWeight

BUFFER_BYTES = 64 << 20
CORE = ".core_attention"
DECIDING = {"_num_bits": (int, tuple), "_block_sizes": (dict, type(None)), "_axis": (int, tuple, type(None)),
            "_disabled": (bool,), "_fake_quant": (bool,), "_dynamic": (bool,)}  # fmt: skip
BLOCK_RANGES = (
    "it is quantized as {} of modelopt, of which checkpoints hold ranges of blocks as if every tensor-parallel rank "
    "had the same"
)


@dataclass(frozen=True, eq=False)
class ModeloptPacking:
    """A `checkpoint.packing.Packing`.

    Attributes:
        quantizers: Those of the checkpoint.
        parts_of: Returns the parts that the weight of a module has on disk.
        templates: Formats by what the quantizers of a weight and of its inputs say. Many say the same.
    """

    quantizers: Quantizers
    parts_of: Callable[[str], Sequence[StoredPart]]
    templates: dict[tuple[int, int], Format | None] = field(default_factory=dict)

    def row_of(self, key: str) -> Format | None:
        """Return the format that a parameter is written in. See `Packing`."""
        found = self.quantizers.of(key)
        if found is None or key.endswith(GATES):
            return None
        weight, inputs = found
        said = id(weight.state), id(inputs.state if inputs else None)
        if said not in self.templates:
            self.templates[said] = self._row(key, weight, inputs)
        return self.templates[said]

    def packed(
        self, claimed: Sequence[Claimed], files: ChunkFiles, states: Mapping[str, FileState], share: int
    ) -> tuple[list[Claimed], list[KVCache]]:
        """Give parameters of a share their packed forms, as `Packing` describes it.

        Args:
            claimed: The parameters.
            files: Where their numbers lie.
            states: Of all files of the checkpoint.
            share: For messages.

        Returns:
            The parameters, and the scales of KV caches.
        """
        ranges = ChunkFiles(self.quantizers.folder, self.quantizers.table, states)
        lock, scales = Lock(), Scales()
        try:
            packed = [self._packed(entry, files, ranges, lock, scales, share) for entry in claimed]
            caches = self._caches(claimed, ranges, share)
            ranges.finish()
        finally:
            ranges.close()
        files.unchecked.update(ranges.unchecked)
        return packed, caches

    def read(self, holdings: Sequence[Holding], *, inspect: bool) -> Stream:
        """Yield the blocks of holdings, and what was seen of each. See `Packing`."""
        return Reader(HostBuffers(BUFFER_BYTES)).read(holdings, inspect=inspect, streams=1)

    def producer(self) -> dict[str, str]:
        """Return whom both JSON files name as producer."""
        return modelopt.producer()

    def _row(self, key: str, weight: Stored, inputs: Stored | None) -> Format | None:
        """Return the format of a weight. Raises UnsupportedParameterError or UnsupportedCheckpointError."""
        own = self._quantizer(weight, None)
        inner = None if inputs is None else self._quantizer(inputs, None)
        row = modelopt.row_of(modelopt.checked(key, None, own, inner, 0))
        if row is not None and row.scales is ScaleSource.BLOCK_RANGES:
            raise self.quantizers.refusal(module_of(key) or key, BLOCK_RANGES.format(row.name))
        return row

    def _packed(
        self,
        entry: Claimed,
        files: ChunkFiles,
        ranges: ChunkFiles,
        lock: Lock,
        scales: Scales,
        share: int,
    ) -> Claimed:
        """Return a parameter with its packed form, if it has one."""
        parameter = entry.parameter
        found = self.quantizers.of(parameter.key)
        if found is None:
            return entry
        if parameter.key.endswith(GATES):
            return replace(entry, has_quantizer=True)
        weight, inputs = found
        own = self._quantizer(weight, ranges)
        inner = None if inputs is None else self._quantizer(inputs, ranges)
        stored = StoredWeight(parameter.data, files, lock)
        checked = modelopt.checked(parameter.key, stored, own, inner, share)
        row = modelopt.row_of(checked)
        if row is not None and row.needs_weight_range and own.amax is None and own.is_nvfp4_dynamic:
            own.amax = self._largest(parameter.key, files, lock)
        return replace(entry, packed=packed_of(parameter, checked, scales, share), has_quantizer=True)

    def _largest(self, key: str, files: ChunkFiles, lock: Lock) -> torch.Tensor:
        """Return the range of a weight that has none of its own: modelopt then takes that of the numbers, of all parts.

        Gate and up are parts of one weight.
        """
        module = module_of(key) or key
        parts = [StoredWeight(part, files, lock) for part in self.parts_of(module)]
        return torch.stack([one.largest() for one in parts]).max()

    def _caches(self, claimed: Sequence[Claimed], ranges: ChunkFiles, share: int) -> list[KVCache]:
        """Return the scales of KV caches whose projection is among these parameters."""
        caches = []
        names = attention_names((entry.parameter.key, entry) for entry in claimed)
        for attention, name in sorted(names.items()):
            core = nn.Module()
            for own, stored in self.quantizers.inside(attention + CORE).items():
                if own in modelopt.CACHES:
                    core.add_module(own, self._quantizer(stored, ranges))
            if any(quantizer.is_enabled for quantizer in core.children()):
                algorithm, values = modelopt.kv_cache_scales(attention + CORE, core, share)
                caches.append(kv_cache(name, attention + CORE, algorithm, values, share))
        return caches

    def _quantizer(self, stored: Stored, ranges: ChunkFiles | None) -> Any:
        """Return a quantizer as it was saved, with its range if `ranges` is given."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # modelopt about kernels that need a GPU
            own = TensorQuantizer()
        self._require_known(stored, own.get_modelopt_state(properties_only=True))
        own.set_from_modelopt_state(stored.state, properties_only=True)
        if ranges is not None and stored.tensor is not None:
            own.amax = self._range(stored, ranges)
        return own

    def _require_known(self, stored: Stored, known: Mapping[str, Any]) -> None:
        """Raise UnsupportedCheckpointError for a quantizer that says other things than every quantizer does."""
        strange = sorted(str(name) for name in stored.state.keys() - known.keys() - {TENSORS})
        if strange:
            raise self.quantizers.refusal(
                stored.name, f"it is of a type that is not known: it has {strange[0]}"
            )
        for name, kinds in DECIDING.items():
            if name not in stored.state or type(stored.state[name]) not in kinds:
                raise self.quantizers.refusal(stored.name, f"it does not say its {name}")

    def _range(self, stored: Stored, ranges: ChunkFiles) -> torch.Tensor:
        """Return the range of a quantizer, one number. Raises UnsupportedCheckpointError for several."""
        assert stored.tensor is not None
        shape = self.quantizers.table.shapes[stored.tensor]
        if prod(shape) != 1:
            raise self.quantizers.refusal(
                stored.name, f"its range has the shape {list(shape)}, not one number"
            )
        part = StoredPart(stored.tensor, (), 0, shape)
        return StoredWeight(part, ranges, Lock())[()].reshape(())
