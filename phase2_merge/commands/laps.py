"""How long each stage of a command took."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Laps:
    """Seconds of the stages that have ended, and of all so far."""

    started: float = field(default_factory=time.monotonic)
    stages: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def end(self, stage: str) -> None:
        """A stage ends, which began when the one before it ended."""
        self.stages[stage] = round(self.seconds - sum(self.stages.values()), 3)
