"""Time and peak memory of check and of planning for one dump: `python -m tests.scale.measure FOLDER`, a line of JSON.

A process of its own per dump, so that the peak is that dump's. Processor time is told beside the clock: on a machine
that others use too, the clock measures them as well.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from shardmerge.phase2_merge.options import Asked
from shardmerge.phase2_merge.proof.prove import prove
from shardmerge.phase2_merge.shards.plan import plan_shards

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of `shardmerge check --verify size`, then of planning; peak of resident memory after both.

    `tensors`, `values` and `num_bytes` are those of the checkpoint that is planned.
    """

    rectangles: int
    ranks: int
    check_s: float
    check_cpu_s: float
    plan_s: float
    tensors: int
    values: int
    num_bytes: int
    peak_bytes: int


def measure(folder: Path) -> Cost:
    """Check and plan `folder`/dump. Raises what a check raises."""
    proof, check_s, check_cpu_s = _timed(lambda: prove(Asked([folder / "dump"], folder / "reference")))
    plan, plan_s, _ = _timed(lambda: plan_shards(proof))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = len(plan.expected), plan.expected.num_elements(), plan.total_bytes
    return Cost(len(proof.ledger.rows), len(proof.ledger.heads), check_s, check_cpu_s, plan_s, *size, peak)


def _timed(run: Callable[[], T]) -> tuple[T, float, float]:
    clock, cpu = time.monotonic(), time.process_time()
    found = run()
    return found, time.monotonic() - clock, time.process_time() - cpu


if __name__ == "__main__":
    print(json.dumps(asdict(measure(Path(sys.argv[1])))))
