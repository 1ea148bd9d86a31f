"""Results of one commit: a line of JSON for each point that was tried, added up over any number of runs."""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from .trial import HELD, UNREACHED, Result

HARNESS = "harness"  # the harness failed, not what it tortures


def commit() -> str:
    """The commit of the working tree, with a mark if there are changes since; `unknown` outside git."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True, check=True
        )
        changes = subprocess.run(["git", "diff", "HEAD"], capture_output=True, check=True).stdout
    except (FileNotFoundError, subprocess.CalledProcessError):
        return "unknown"
    return found.stdout.strip() + ("-changed" if changes else "")


def not_set_up(place: str) -> str:
    """The name under which a scene that cannot be set up stands among the results."""
    return f"{place}:0:setup"


class Results:
    """The file of a commit's results. Many processes append to it, each a line with one write."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, result: Result) -> None:
        """Append a result."""
        line = json.dumps(asdict(result), sort_keys=True).encode() + b"\n"
        file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(file, line)
        finally:
            os.close(file)

    def all(self) -> Mapping[str, Result]:
        """The last result of each point. A scene that could not be set up is forgotten when it could later."""
        found: dict[str, Result] = {}
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                given = json.loads(line)
                found.pop(not_set_up(given["point"].split(":")[0]), None)
                found[given["point"]] = Result(**{**given, "why": tuple(given["why"])})
        return found


def summary(results: Mapping[str, Result]) -> str:
    """How many points there are of each kind, and every finding with its name, which repeats it."""
    counts = Counter(result.kind for result in results.values())
    tried = sum(counts.values()) - counts[UNREACHED]
    lines = [f"{tried:,} distinct points"]
    lines += [
        f"  {kind:10} {counts[kind]:,}" for kind in (HELD, "wrong", "lost", "blocked", "misled", HARNESS)
    ]
    if counts[UNREACHED]:
        lines.append(f"  and {counts[UNREACHED]:,} that were not reached: the run was over before")
    for result in results.values():
        if result.kind not in (HELD, UNREACHED):
            lines.append(f"{result.point}  [{result.call}]\n    " + "\n    ".join(result.why[:4]))
    return "\n".join(lines)
