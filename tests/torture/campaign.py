"""Tries many points side by side: which ones, in how many processes, and what was said of each.

A task is a share of the points of one scene: whoever takes it sets the scene up once.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from . import processes
from .defects import DEFECTS
from .outcomes import Stage
from .points import Point, sweep
from .power import MAKE, LoopMount, why_not
from .processes import Runner
from .random_scenes import chains, is_random, scene_of
from .results import HARNESS, Results, commit, not_set_up, summary
from .scenes import ALONE, LIVE, SCENES, TOGETHER, UNSYNCED, WITHOUT_LOCKS, Scene
from .trial import HELD, UNREACHED, Result, tried

MOST = 100_000  # random scenes in one run
SHARES = 4  # of the points of a scene, so that no process is left with a long task at the end


@dataclass(frozen=True, slots=True)
class Task:
    """Points of one scene: those that are named, or every SHARES-th of its sweep, of which `quota` are chosen."""

    scene: Scene
    disk: str = ""
    share: int = 0
    shares: int = 1
    named: tuple[Point, ...] = ()
    quota: int = 0  # 0: all of them
    seed: int = 0

    def trials(self, stage: Stage) -> Sequence[tuple[str, tuple[Point, ...]]]:
        """Name and points of every trial of this task, known when the calls of its scene are."""
        if is_random(self.scene.name):
            found = list(chains(self.scene, stage.calls, self.disk))
            return [trial for trial in found if not self.named or trial[0] in map(str, self.named)]
        if self.named:
            return [(str(point), (point,)) for point in self.named]
        points = list(sweep(self.scene, stage.calls, self.disk))[self.share :: self.shares]
        if self.quota and self.quota < len(points):
            points = random.Random(f"{self.seed} {self.scene.name} {self.disk}").sample(points, self.quota)
        return [(str(point), (point,)) for point in points]


def run(asked: argparse.Namespace, library: Path, folder: Path) -> int:
    """Do what was asked on the command line. Returns the exit code."""
    results = Results(asked.results or folder / f"{commit()}.jsonl")
    if asked.sum:
        return _print_sum(results, [])
    processes.warm_up()
    if asked.defect:
        DEFECTS[asked.defect]()
    known = frozenset() if asked.again else frozenset(results.all())
    shm = "/dev/shm" if Path("/dev/shm").is_dir() else None
    work = asked.work or Path(tempfile.mkdtemp(prefix="torture-", dir=shm))
    deadline = time.monotonic() + (asked.seconds or 10**9)
    try:
        tasks = list(_tasks(asked))
        _try_all(tasks, asked.jobs, library, work, results, known, deadline)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _print_sum(results, asked.only)


def _print_sum(results: Results, only: Sequence[str]) -> int:
    """Print the sum of the points whose names begin as one of `only`. Returns the exit code."""
    chosen = {
        name: result
        for name, result in results.all().items()
        if not only or any(name.startswith(begin) for begin in only)
    }
    print(summary(chosen))
    return int(any(result.kind not in (HELD, UNREACHED) for result in chosen.values()))


def _tasks(asked: argparse.Namespace) -> Iterator[Task]:
    """What was asked for, in tasks."""
    named = [Point.parse(name) for name in asked.only if name.count(":") == 2]
    if named:
        for (scene, disk), points in groupby(named, key=lambda point: (point.scene, point.disk)):
            yield Task(scene_of(scene) if is_random(scene) else SCENES[scene], disk, named=tuple(points))
        return
    if asked.random:
        yield from _random_tasks(asked)
        return
    chosen = [
        Task(scene, disk)
        for scene, disk in _places(asked.power, live=asked.live)
        if not asked.only
        or any(f"{scene.name}{'@' * bool(disk)}{disk}:".startswith(begin) for begin in asked.only)
    ]
    if asked.sample:
        seed = random.randrange(1 << 32) if asked.seed is None else asked.seed
        print(f"A sample of the points: --sample {asked.sample} --seed {seed}", flush=True)
        quota = -(-asked.sample // len(chosen))
        yield from (replace(task, quota=quota, seed=seed) for task in chosen)
        return
    for task in chosen:
        yield from (replace(task, share=share, shares=SHARES) for share in range(SHARES))


def _random_tasks(asked: argparse.Namespace) -> Iterator[Task]:
    """Scenes from a seed, more than anybody has time for."""
    seed = random.randrange(1 << 32) if asked.seed is None else asked.seed
    print(f"Random scenes: --random --seed {seed}", flush=True)
    disks = ["", *(disk for disk in asked.power if not why_not(disk))]
    for number in range(MOST):
        yield Task(scene_of(f"random-{seed}-{number}"), disks[number % len(disks)])


def _places(disks: Sequence[str], *, live: bool) -> Iterator[tuple[Scene, str]]:
    """Each scene where it is played: everywhere, and on file systems of our own for a loss of power."""
    yield from ((scene, "") for scene in LIVE if live)
    yield from ((scene, "") for scene in (*ALONE, *TOGETHER, *WITHOUT_LOCKS))
    for disk in disks:
        if reason := why_not(disk):
            print(f"No loss of power on {disk}: {reason}.", file=sys.stderr)
        else:
            yield from ((scene, disk) for scene in (*ALONE, *UNSYNCED) if not scene.processes)


def _try_all(
    tasks: Sequence[Task],
    jobs: int,
    library: Path,
    work: Path,
    results: Results,
    known: frozenset[str],
    deadline: float,
) -> None:
    """Do the tasks in several processes, each with a folder of its own."""
    next_task = multiprocessing.get_context("fork").Value("i", 0)
    children = []
    for job in range(min(jobs, len(tasks))):
        child = os.fork()
        if not child:
            worker = Worker(Runner(library, work / str(job)), work / str(job), results, known, deadline)
            worker.work(tasks, next_task)
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            print("A process of the harness died.", file=sys.stderr)


@dataclass(slots=True)
class Worker:
    """A process of the harness: where it works, and until when."""

    runner: Runner
    folder: Path
    results: Results
    known: frozenset[str]
    deadline: float

    def work(self, tasks: Sequence[Task], next_task: Any) -> None:
        """Take tasks until none is left. Ends the process."""
        code = 0
        try:
            with ExitStack() as stack:
                mounts: dict[str, LoopMount] = {}
                while time.monotonic() < self.deadline:
                    with next_task.get_lock():
                        number = next_task.value
                        next_task.value += 1
                    if number >= len(tasks):
                        break
                    self._do(tasks[number], mounts, stack)
        except BaseException:
            traceback.print_exc()
            code = 1
        finally:
            self.runner.forget_semaphores()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def _do(self, task: Task, mounts: dict[str, LoopMount], stack: ExitStack) -> None:
        if task.disk and task.disk not in mounts:
            assert task.disk in MAKE
            mounts[task.disk] = LoopMount(task.disk, self.folder)
            stack.callback(mounts[task.disk].remove)
        mains = mounts.get(task.disk)
        try:
            stage = Stage(self.runner, (mains.place if mains else self.folder) / "field", task.scene)
        except Exception:
            place = f"{task.scene.name}@{task.disk}" if task.disk else task.scene.name
            self.results.add(Result(not_set_up(place), HARNESS, (traceback.format_exc(),)))
            return
        for name, points in task.trials(stage):
            if time.monotonic() > self.deadline:
                return
            if task.named or name not in self.known:
                self.results.add(_safely(stage, name, points, mains))


def _safely(stage: Stage, name: str, points: Sequence[Point], mains: LoopMount | None) -> Result:
    try:
        return tried(stage, name, points, mains)
    except Exception:
        return Result(name, HARNESS, (traceback.format_exc(),))
