"""Fuzzes many targets with many processes for a time, and adds up what they did over several campaigns.

Knows atheris only by the lines that libFuzzer prints. A process that dies before its time is a finding, and another is
started in its place.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from threading import Lock

LINE = re.compile(r"#(\d+)\s+(\w+)\s+cov: (\d+)")
EXECUTED = re.compile(r"stat::number_of_executed_units: (\d+)")
KNOWN = {"READ", "INITED", "RELOAD"}  # what libFuzzer calls inputs that were there already
SHORTEST_SECONDS = 5
STATE = "state.json"


@dataclass(slots=True)
class Done:
    """What was done for one target, over all campaigns. Seconds are of the processor."""

    executions: int = 0
    seconds: float = 0.0
    edges: int = 0
    seconds_since_new_edge: float = 0.0
    deaths: int = 0


@dataclass(frozen=True, slots=True)
class Run:
    """One process that has ended, and when, by the clock."""

    begin: float
    end: float
    seconds: float
    executions: int
    died: bool

    def seconds_after(self, moment: float) -> float:
        """Return how long it used the processor after a moment, about."""
        whole = max(self.end - self.begin, 1e-9)
        return self.seconds * min(max(self.end - moment, 0.0) / whole, 1.0)


@dataclass(slots=True)
class Watch:
    """What the processes of one target say while they run."""

    edges: int
    new_edge_at: float | None = None
    runs: list[Run] = field(default_factory=list)
    lock: Lock = field(default_factory=Lock)

    def see(self, line: str) -> int:
        """Look at a line that libFuzzer printed. Returns the executions that it tells of, 0 for none."""
        if total := EXECUTED.search(line):
            return int(total[1])
        if not (progress := LINE.match(line)):
            return 0
        executions, event, edges = int(progress[1]), progress[2], int(progress[3])
        with self.lock:
            if edges > self.edges:
                self.edges = edges
                if event not in KNOWN:
                    self.new_edge_at = time.monotonic()
        return executions

    def added_to(self, earlier: Done) -> Done:
        """Return everything that was done, with what was done in earlier campaigns."""
        since = earlier.seconds_since_new_edge if self.new_edge_at is None else 0.0
        after = self.new_edge_at or 0.0
        return Done(
            earlier.executions + sum(run.executions for run in self.runs),
            earlier.seconds + sum(run.seconds for run in self.runs),
            self.edges,
            since + sum(run.seconds_after(after) for run in self.runs),
            earlier.deaths + sum(run.died for run in self.runs),
        )


@dataclass(frozen=True, slots=True)
class Campaign:
    """Where everything lies, and for how long.

    Attributes:
        out: What grows: corpus, findings and logs by target, and the state of all.
        seeds: Inputs to begin with, a folder for each target.
        seconds: How long it takes altogether, by the clock.
        jobs: Processes at the same time.
        targets: Their names. Those at the front get more processes where there are more than targets.
        scratch: Where small files are written all the time.
    """

    out: Path
    seeds: Path
    seconds: int
    jobs: int
    targets: Sequence[str]
    scratch: Path | None

    def run(self) -> dict[str, Done]:
        """Fuzz. Returns what was done for each target, earlier campaigns included. Raises RuntimeError."""
        earlier = self._earlier()
        watches = {name: Watch(earlier[name].edges) for name in self.targets}
        lanes = list(enumerate(self._lanes()))
        with ThreadPoolExecutor(len(lanes)) as pool:
            for ended in [pool.submit(self._run_lane, *lane, watches) for lane in lanes]:
                ended.result()
        done = earlier | {name: watch.added_to(earlier[name]) for name, watch in watches.items()}
        (self.out / STATE).write_text(
            json.dumps({name: asdict(one) for name, one in done.items()}, indent=1) + "\n"
        )
        return {name: done[name] for name in self.targets}

    def findings(self, target: str) -> list[Path]:
        """Return the inputs that found something in a target, each beside a .txt that says what."""
        return sorted(path for path in self._folder("findings", target).glob("*") if path.suffix != ".txt")

    def _earlier(self) -> dict[str, Done]:
        """Return what was done in earlier campaigns with the same `out`."""
        path = self.out / STATE
        known = json.loads(path.read_text()) if path.is_file() else {}
        return {name: Done() for name in self.targets} | {name: Done(**one) for name, one in known.items()}

    def _lanes(self) -> Iterator[list[str]]:
        """Yield which targets each of the jobs fuzzes, one after the other."""
        if self.jobs < len(self.targets):
            for job in range(self.jobs):
                yield list(self.targets[job :: self.jobs])
        else:
            for job in range(self.jobs):
                yield [self.targets[job % len(self.targets)]]

    def _run_lane(self, job: int, lane: list[str], watches: dict[str, Watch]) -> None:
        for target in lane:
            self._fuzz(target, job, watches[target], time.monotonic() + self.seconds / len(lane))

    def _fuzz(self, target: str, job: int, watch: Watch, until: float) -> None:
        """Fuzz one target in one process at a time, until a moment. Raises RuntimeError if it cannot be fuzzed.

        After a process died, the next one begins without `seeds`: one of them may have killed it.
        """
        seeds: Path | None = self.seeds / target
        while (left := int(until - time.monotonic())) >= SHORTEST_SECONDS:
            log = self._folder("logs") / f"{target}-{job}.txt"
            run = self._one_process(target, left, seeds, log, watch)
            watch.runs.append(run)
            if run.died and not run.executions:
                raise RuntimeError(f"{target} cannot be fuzzed:\n{log.read_text(errors='replace')[-2_000:]}")
            if run.died:
                seeds = None
                self._tell_of_deaths(target, log)

    def _one_process(self, target: str, seconds: int, seeds: Path | None, log: Path, watch: Watch) -> Run:
        """Fuzz in one process, in a folder that goes with it: libFuzzer ends a process without a farewell."""
        with tempfile.TemporaryDirectory(prefix="fuzz-", dir=self.scratch) as scratch:
            return _ended(self._command(target, seconds, seeds, scratch), log, watch)

    def _command(self, target: str, seconds: int, seeds: Path | None, scratch: str) -> list[str]:
        folders = {
            "--corpus": self._folder("corpus", target),
            "--findings": self._folder("findings", target),
            "--scratch": scratch,
        } | ({"--seeds": seeds} if seeds is not None else {})
        options = [str(part) for name, path in folders.items() for part in (name, path)]
        return [sys.executable, "-m", "tests.fuzz.one_target", target, *options, "--seconds", str(seconds)]

    def _tell_of_deaths(self, target: str, log: Path) -> None:
        """Write beside each input that killed a process what the process said last."""
        for path in self.findings(target):
            if path.name.startswith("died-") and not path.with_suffix(".txt").exists():
                path.with_suffix(".txt").write_text("died\n" + log.read_text(errors="replace")[-4_000:])

    def _folder(self, *parts: str) -> Path:
        folder = self.out.joinpath(*parts)
        folder.mkdir(parents=True, exist_ok=True)
        return folder


def _ended(command: list[str], log: Path, watch: Watch) -> Run:
    """Run one process until it ends. Copies to `log` what it says, and lets `watch` see it."""
    begin, executions = time.monotonic(), 0
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    with process, open(log, "w") as copy:
        assert process.stderr is not None
        for line in process.stderr:
            if "INFO: Instrumenting" not in line:
                copy.write(line)
            executions = max(executions, watch.see(line))
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    used = usage.ru_utime + usage.ru_stime
    return Run(begin, time.monotonic(), used, executions, process.returncode != 0)
