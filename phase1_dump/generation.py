"""Which generation a dump belongs to: run id, step and attempt. Phase two merges manifests of one generation only."""

from __future__ import annotations

import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass

from shardmerge.common.errors import BadInputError, printable

# (job id, restart count) as launchers give them to every rank
# Source: torch/distributed/elastic/agent/server/local_elastic_agent.py; Slurm's sbatch manual, OUTPUT ENVIRONMENT
LAUNCHERS = (("TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"), ("SLURM_JOB_ID", "SLURM_RESTART_COUNT"))


@dataclass(frozen=True, slots=True)
class Generation:
    """The run id, step and attempt of a dump. A step of None is not known, as that of a checkpoint may be.

    Raises BadInputError unless run id and attempt are non-empty strings that can be printed, and step is an integer.
    This is checked before anything is written: the merge would refuse a manifest with other types, days later.
    """

    run_id: str
    step: int | None
    attempt: str

    def __post_init__(self) -> None:
        for name, text in (("run_id", self.run_id), ("attempt", self.attempt)):
            if type(text) is not str or not text:
                raise BadInputError(f"{name} is {text!r}", "Give every rank the same non-empty string.")
            if not printable.is_printable([text]):
                raise BadInputError(
                    f"{name} is {printable.one_line(text)}, with characters that cannot be printed",
                    "Give every rank the same text without control characters and ends of lines.",
                )
        if self.step is None:
            return
        try:
            object.__setattr__(self, "step", operator.index(self.step))  # numpy's integers are not JSON
        except TypeError:
            raise BadInputError(f"step is {self.step!r}", "Give the training step, an integer.") from None


def attempt_of(environment: Mapping[str, str] = os.environ) -> str:
    """Return the launcher's id of this attempt: the same on every rank of a job, another after a restart."""
    for job, restart in LAUNCHERS:
        if job in environment:
            return f"{environment[job]}.{environment.get(restart, '0')}"
    return "0"
