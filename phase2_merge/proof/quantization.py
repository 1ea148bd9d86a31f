"""Do all ranks say the same of quantization, in formats that are known, with scales that can be?

Decides only which of the faults end the proof: what ranks say was united before.
"""

from __future__ import annotations

from shardmerge.common.errors import Findings

from .case import Case


def check_formats(case: Case) -> Findings:
    """Find formats that no row describes: nobody could say which tensors such a dump must hold."""
    return Findings(case.quantization_problems if case.quantization is None else ())


def check_values(case: Case) -> Findings:
    """Find what ranks say differently, and scales that cannot be or that calibration never saw."""
    return Findings(case.quantization_problems)


def check_filled_in(case: Case) -> Findings:
    """Warn of the scales that calibration never saw and that get the value of another."""
    return Findings(warnings=tuple(case.quantization.filled_in() if case.quantization else ()))
