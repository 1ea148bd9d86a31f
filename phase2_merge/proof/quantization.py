"""Do all ranks say the same of quantization, in formats that are known, with scales that can be?

What ranks say was united before; here it is only told which of its faults end the proof.
"""

from __future__ import annotations

from shardmerge.common.errors import Findings

from .case import Case


def check_formats(case: Case) -> Findings:
    """Formats that no row describes: nobody could say which tensors such a dump must hold."""
    return Findings(case.quantization_problems if case.quantization is None else ())


def check_values(case: Case) -> Findings:
    """What ranks say differently, and scales that cannot be or that calibration never saw."""
    return Findings(case.quantization_problems)
