"""One point from begin to end: disturb a command, judge, run it again, judge.

Must not know which points there are.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from . import trees
from .judge import (
    BLOCKED,
    LOST,
    MISLED,
    WRONG,
    Ends,
    Problem,
    judge_end,
    judge_kept,
    judge_removed,
    judge_rerun,
)
from .outcomes import MissingOutcomeError, Stage
from .points import BESIDE, CROSSED, KILLED, MODES, POWER, Point, second_strike, strike
from .processes import Running
from .scenes import Step
from .shim import Strike
from .trees import Tree

HELD, UNREACHED = "held", "unreached"


class Mains(Protocol):
    """What can cut the power of the file system on which a stage lies."""

    def settle(self) -> None:
        """Make all that is there durable."""

    def cut(self, *, flushed: bool) -> None:
        """Cut the power; if `flushed`, after the journal of the file system was written."""

    def restore(self) -> None:
        """Mount the file system again."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a point: `kind` is HELD, UNREACHED or that of the worst problem."""

    point: str
    kind: str
    why: tuple[str, ...] = ()
    call: str = ""
    told: str = ""


class Trial:
    """One or several points after each other on one scene, while they are tried."""

    def __init__(self, stage: Stage, name: str, points: Sequence[Point], mains: Mains | None = None) -> None:
        self.stage, self.name, self.points, self.mains = stage, name, points, mains
        self.ends, self.problems = Ends(), list[Problem]()
        self.step = stage.scene.step
        self.calls: list[str] = []
        self.told = ""

    def run(self) -> Result:
        """Try it, and say what became of it."""
        stage = self.stage
        stage.put_back()
        if self.mains:
            self.mains.settle()
        if stage.scene.unsynced:
            self._copy_the_dump()
        tree = trees.look(stage.folder)
        for point in self.points:
            tree = self._disturb_and_judge(point, stage.finished(tree))
            if self.problems:
                break
        if not self.calls:
            return Result(self.name, UNREACHED)
        if self.problems and len(self.points) > 1:
            return self._result()
        self._run_again(tree)
        return self._result()

    def _disturb_and_judge(self, point: Point, finished: dict[str, tuple[int, int]]) -> Tree:
        """Run the command once, disturbed. Returns what is there then."""
        stage = self.stage
        first = self._disturb(point)
        struck = first.watch.struck
        calls = first.watch.trace()[: max(struck, 1) - 1]
        if struck or (MODES[point.mode].then == POWER and first.code == 0):
            self.calls.append(f"{point.mode} {first.watch.call(struck)}" if struck else "after the end")
        self.told = first.told()
        tree = trees.look(stage.folder)
        undisturbed = MODES[point.mode].then in (BESIDE, CROSSED)
        self.problems += judge_end(stage, self.ends, tree, leftovers=not undisturbed, told=self.told)
        if not stage.scene.beside:
            self.problems += judge_kept(stage, finished, tree, "the disturbed run")
            if first.code and first.code > 0:
                self.problems += judge_removed(stage, calls, tree)
        return tree

    def _disturb(self, point: Point) -> Running:
        """Run the command, and whatever happens meanwhile. Notes how the commands ended."""
        stage, then = self.stage, MODES[point.mode].then
        command = self.step.command(stage.folder)
        first = stage.runner.start(command, stage.folder, strike(stage.scene, point))
        if then == POWER:
            self._lose_power(first, flushed=point.mode == "power-flushed")
            return first
        if then and first.pauses():
            self._second(first, point)
        first.wait()
        self._note(self.step, first)
        return first

    def _second(self, first: Running, point: Point) -> None:
        """Run the second command while the first one waits, up to where they cross or to its end."""
        stage, step, then = self.stage, self.stage.scene.beside, MODES[point.mode].then
        assert step is not None
        given = second_strike(stage.scene, point, stage.beside_calls)
        second = stage.runner.start(step.command(stage.folder), stage.folder, given, "second")
        if then == CROSSED and second.pauses():
            first.watch.go()
            first.wait()
            second.watch.go()
        second.wait()
        self._note(step, second)
        if then == KILLED:
            first.kill()
        else:
            first.watch.go()

    def _lose_power(self, first: Running, *, flushed: bool) -> None:
        assert self.mains is not None
        paused = first.pauses()
        self.mains.cut(flushed=flushed)
        first.kill()
        code = first.wait()
        self.mains.restore()
        self.ends.add(self.step, -9 if paused else code)

    def _note(self, step: Step, running: Running) -> None:
        assert running.code is not None
        if running.hung:
            self.problems.append(Problem(BLOCKED, f"{step} hangs"))
        self.ends.add(step, -9 if running.hung else running.code)

    def _run_again(self, tree: Tree) -> None:
        """Run the command again, and what comes after it. Judges both."""
        stage = self.stage
        if stage.scene.unsynced:
            self._copy_the_dump()
        finished = stage.finished(tree)
        rerun = self._again(self.step)
        after = trees.look(stage.folder)
        self.problems += judge_rerun(stage, self.ends, rerun, after)
        self.problems += judge_kept(stage, finished, after, "the rerun")
        if stage.scene.probe:
            self._probe(stage.scene.probe)
        if stage.scene.finish and not self.problems:
            self._finish(stage.scene.finish)

    def _copy_the_dump(self) -> None:
        """Do what `cp` does: nobody asks for what it wrote to be on disk."""
        folder = self.stage.folder / "dump"
        shutil.rmtree(folder)
        folder.mkdir()
        trees.put_back(folder, trees.below(self.stage.start, "dump") or {})

    def _again(self, step: Step) -> Running:
        stage = self.stage
        quiet = Strike(link_error=stage.scene.link_error, lock_error=stage.scene.lock_error)
        return stage.runner.run(step.command(stage.folder), stage.folder, quiet)

    def _probe(self, step: Step) -> None:
        """Try to publish what may not be complete."""
        stage = self.stage
        probed = self._again(step)
        out, wanted = stage.out(trees.look(stage.folder)), stage.outcome([self.step, *stage.scene.finish]).out
        if (probed.code == 0 and out != wanted) or (probed.code and out is not None):
            told = trees.differences(out or {}, wanted or {})
            why = f"{step} ends with {probed.code}, and publishes something else: {', '.join(told[:6])}"
            self.problems.append(Problem(WRONG, why))

    def _finish(self, steps: Sequence[Step]) -> None:
        for step in steps:
            running = self._again(step)
        after = trees.look(self.stage.folder)
        self.problems += judge_rerun(self.stage, self.ends, running, after, steps)

    def _result(self) -> Result:
        call = ", ".join(self.calls)
        if not self.problems:
            return Result(self.name, HELD, call=call)
        ranks = {WRONG: 0, LOST: 1, BLOCKED: 2, MISLED: 3}
        worst = min(self.problems, key=lambda problem: ranks[problem.kind])
        why = tuple(f"{problem.kind}: {problem.why}" for problem in self.problems)
        return Result(self.name, worst.kind, why, call, self.told[-600:])


def tried(stage: Stage, name: str, points: Sequence[Point], mains: Mains | None = None) -> Result:
    """Try points, one after the other. Where that needs an undisturbed run that was not made yet, it begins anew."""
    while True:
        try:
            return Trial(stage, name, points, mains).run()
        except MissingOutcomeError as missing:
            stage.learn(missing.steps)
