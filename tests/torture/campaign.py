"""Tries many points side by side: which ones, in how many processes, and what was said of each."""

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
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from . import processes
from .outcomes import Stage
from .points import Point, sweep
from .processes import Runner
from .results import HARNESS, Results, commit, summary
from .scenes import SCENES, Scene
from .trial import HELD, UNREACHED, Result, tried


def run(asked: argparse.Namespace, library: Path, folder: Path) -> int:
    """Do what was asked on the command line. Returns the exit code."""
    results = Results(folder / f"{commit()}.jsonl")
    if asked.sum:
        return _told(results, set())
    processes.warm_up()
    work = asked.work or Path(
        tempfile.mkdtemp(prefix="torture-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
    )
    deadline = time.monotonic() + (asked.seconds or 10**9)
    try:
        points = _points(asked, library, work)
        known = {} if asked.again else results.all()
        points = [point for point in points if str(point) not in known]
        _try_all(points, asked.jobs, library, work, results, deadline)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return _told(results, {str(point) for point in points} if asked.only or asked.sample else set())


def _told(results: Results, only: set[str]) -> int:
    found = {name: result for name, result in results.all().items() if not only or name in only}
    print(summary(found))
    return int(any(result.kind not in (HELD, UNREACHED) for result in found.values()))


def _points(asked: argparse.Namespace, library: Path, work: Path) -> list[Point]:
    """The points that were asked for, those of a scene together."""
    named = [Point.parse(name) for name in asked.only if name.count(":") == 2 and name.rsplit(":")[-1]]
    if named:
        return named
    chosen = [scene for scene in SCENES.values() if not scene.unsynced and _is_asked(scene, asked.only)]
    points = []
    for scene in chosen:
        stage = Stage(Runner(library, work / "count"), work / "field", scene)
        points += list(sweep(scene, stage.calls))
    if asked.sample:
        seed = random.randrange(1 << 32) if asked.seed is None else asked.seed
        print(
            f"A sample of {asked.sample:,} of {len(points):,} points: --sample {asked.sample} --seed {seed}"
        )
        points = sorted(random.Random(seed).sample(points, min(asked.sample, len(points))), key=str)
    return points


def _is_asked(scene: Scene, only: Sequence[str]) -> bool:
    return not only or any(f"{scene.name}:".startswith(begin) for begin in only)


def _try_all(
    points: Sequence[Point], jobs: int, library: Path, work: Path, results: Results, deadline: float
) -> None:
    """Try points in several processes, each with a folder of its own; neighbours share what was learnt of a scene."""
    next_bundle = multiprocessing.get_context("fork").Value("i", 0)
    bundles = list(_bundles(points))
    children = []
    for job in range(min(jobs, len(bundles))):
        child = os.fork()
        if not child:
            _work(
                bundles,
                next_bundle,
                Runner(library, work / str(job)),
                work / str(job) / "field",
                results,
                deadline,
            )
        children.append(child)
    for child in children:
        if os.waitpid(child, 0)[1]:
            print("a process of the harness died", file=sys.stderr)


BUNDLE = 150


def _bundles(points: Sequence[Point]) -> Iterator[list[Point]]:
    for _, group in groupby(points, key=lambda point: point.scene):
        members = list(group)
        for begin in range(0, len(members), BUNDLE):
            yield members[begin : begin + BUNDLE]


def _work(
    bundles: Sequence[Sequence[Point]],
    next_bundle: Any,
    runner: Runner,
    field: Path,
    results: Results,
    deadline: float,
) -> None:
    """Take bundles until none is left. Ends the process."""
    code = 0
    try:
        while time.monotonic() < deadline:
            with next_bundle.get_lock():
                number = next_bundle.value
                next_bundle.value += 1
            if number >= len(bundles):
                break
            _try_bundle(bundles[number], runner, field, results, deadline)
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        os._exit(code)


def _try_bundle(
    points: Sequence[Point], runner: Runner, field: Path, results: Results, deadline: float
) -> None:
    try:
        stage = Stage(runner, field, SCENES[points[0].scene])
    except Exception:
        results.add(Result(str(points[0]), HARNESS, (traceback.format_exc(),)))
        return
    for point in points:
        if time.monotonic() > deadline:
            return
        results.add(_safely(lambda: tried(stage, point), point))  # noqa: B023


def _safely(try_point: Callable[[], Result], point: Point) -> Result:
    try:
        return try_point()
    except Exception:
        return Result(str(point), HARNESS, (traceback.format_exc(),))
