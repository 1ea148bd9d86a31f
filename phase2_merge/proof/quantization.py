"""Do all ranks say the same of quantization, in formats that are known, with scales that can be?

Decides only which of the faults end the proof: what ranks say was united before.
"""

from __future__ import annotations

from collections.abc import Iterator

from shardmerge.common.errors import Findings, JoinedMismatchError

from ..quantization.joined import differing_caches
from .case import Case

KEYS = ".k_proj.weight"


def check_formats(case: Case) -> Findings:
    """Find formats that no row describes: nobody could say which tensors such a dump must hold."""
    return Findings(case.quantization_problems if case.quantization is None else ())


def check_values(case: Case) -> Findings:
    """Find what ranks say differently, and scales that cannot be or that calibration never saw."""
    return Findings((*case.quantization_problems, *_differing_caches(case)))


def check_filled_in(case: Case) -> Findings:
    """Warn of the scales that calibration never saw and that get the value of another."""
    return Findings(warnings=tuple(case.quantization.filled_in() if case.quantization else ()))


def _differing_caches(case: Case) -> Iterator[JoinedMismatchError]:
    """Yield where the decoder has quantized KV caches and others. A rank that is missing may have what is not there."""
    caches = case.quantization.kv_cache if case.quantization else {}
    if not caches or len(case.manifests) != case.manifests[0].world_size:
        return
    table = case.blueprint
    keys = (name for name in case.expected.names if name.endswith(KEYS))
    decoder = (name for name in keys if not table.is_mtp(name) and not table.is_vision(name))
    yield from differing_caches(caches, (name.removesuffix(KEYS) for name in decoder))
