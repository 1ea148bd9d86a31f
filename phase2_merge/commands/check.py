"""The story of `check`: prove the dump, then read its bytes. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TextIO

from ..proof.bytes import verify_bytes
from ..proof.prove import prove
from ..quantization.united import Uncalibrated
from .report import CheckReport, Verification, check_report


def check(
    dumps: Sequence[str | Path],
    *,
    hf_reference: str | Path,
    verify: Verification = "full",
    allow: Collection[str] = (),
    uncalibrated: Uncalibrated = "error",
    corrections: Sequence[str] = (),
    grafts: Sequence[str] = (),
    talk: TextIO | None = None,
) -> CheckReport:
    """Prove that `dumps`, together, hold every tensor of the model once, undamaged.

    hf_reference: Hugging Face directory of the same model; config.json is enough, weights are read if there.
    verify: "full" reads every byte, "size" only sizes and headers. allow: "nan", "replicas". talk: progress goes here.
    uncalibrated: "layer-max" gives experts whose inputs calibration never saw the largest scale of their layer.
    corrections: `facts.KEY=VALUE`, `config.KEY=VALUE`, `quantization.KEY=VALUE`: what dump or reference say wrongly;
    recorded in the report. grafts: patterns of names, as `model.visual.*`, that are taken from the reference's weights.
    Raises an error of the tree: what is missing (exit 3), contradicts itself (4) or is not supported (5).
    """
    proof = prove(dumps, hf_reference, allow, uncalibrated, corrections, grafts)
    if verify == "full":
        verify_bytes(proof.ledger, proof.fragments, talk)
    return check_report(proof, verify)
