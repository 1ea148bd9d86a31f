"""The story of `check`: prove the dump, then read its bytes. Writes nothing."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TextIO

from shardmerge.common.architectures import Architecture

from ..hf_files import sidecars
from ..options import Asked, Uncalibrated, Verification, refuse_unknown_verification
from ..proof.checksums import verify_bytes
from ..proof.prove import prove
from .report import CheckReport, check_report


def check(
    dumps: str | Path | Sequence[str | Path],
    *,
    hf_reference: str | Path,
    verify: Verification = "full",
    allow: Collection[str] = (),
    uncalibrated: Uncalibrated = "error",
    corrections: Sequence[str] = (),
    new_corrections: Sequence[str] = (),
    grafts: Sequence[str] = (),
    drop_mtp: bool = False,
    architecture: str | Architecture | None = None,
    talk: TextIO | None = None,
) -> CheckReport:
    """Prove that `dumps`, together, hold every tensor of the model once, undamaged.

    Args:
        dumps: directories that hold ranks, or one of them, as node-local disks that were copied together.
        hf_reference: Hugging Face directory of the same model. config.json is enough; weights are read if there.
        verify: "full" reads every byte, "size" only sizes and headers.
        allow: "nan", "replicas": such problems become warnings.
        uncalibrated: "layer-max" gives experts whose inputs calibration never saw the largest scale of their layer.
        corrections: `facts.KEY=VALUE`, `config.KEY=VALUE`, `quantization.KEY=VALUE`: what dump or reference say
            wrongly. VALUE is JSON of the type that is there. They are recorded in the report.
        new_corrections: `config.KEY=VALUE`: adds a key, or replaces what is there whatever it is. Recorded too.
        grafts: patterns of names, as `model.visual.*`, of tensors that are taken from the reference's weights; "mtp"
            is what the architecture's table calls multi-token prediction.
        drop_mtp: leave out multi-token prediction. config.json then says that there is none.
        architecture: a table of one's own, or `package.module:TABLE`; the one that the dump was made with.
        talk: progress goes here.

    Returns:
        What the dump holds, and warnings.

    Raises:
        ShardmergeError: what is missing (exit 3), contradicts itself (4) or is not supported (5).
    """
    refuse_unknown_verification(verify)
    asked = Asked(
        dumps, hf_reference, allow, uncalibrated, corrections, grafts, drop_mtp, new_corrections, architecture
    )
    proof = prove(asked)
    if verify == "full":
        verify_bytes(proof.ledger, proof.fragments, talk)
    return check_report(proof, verify, sidecars.gather(proof.reference.path))
