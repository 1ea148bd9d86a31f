"""A scene set up in a folder, and what undisturbed commands make of it: all that a disturbed one is compared with.

Must not know how a command is disturbed.
"""

from __future__ import annotations

import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

from shardmerge.common import places

from . import trees
from .processes import Runner
from .scenes import Scene, Step, furnish
from .shim import Act, Call, Kind, Strike
from .trees import Tree

RECEIPT = f"{places.RECORDS}/{places.RECEIPTS}/"
LOCKS = (f"{places.RECORDS}/{places.LOCK}", f"{places.RECORDS}/owners")


class SceneError(Exception):
    """The harness cannot work: a scene does not do undisturbed what it is there for."""


class MissingOutcomeError(Exception):
    """These commands were not run undisturbed yet. It would destroy what lies in the folder."""

    def __init__(self, steps: tuple[Step, ...]) -> None:
        super().__init__(", ".join(map(str, steps)))
        self.steps = steps


def is_lock(path: str) -> bool:
    """Whether a path in OUT says who writes it: it differs between runs that are alike."""
    return path.startswith(LOCKS)


Contents = dict[str, tuple[int, bytes | None]]


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was there after some commands, and how the last one ended."""

    code: int
    tree: Tree
    out: Contents | None
    rest: Contents


class Stage:
    """A scene in a folder, which is put back before every point."""

    def __init__(self, runner: Runner, folder: Path, scene: Scene) -> None:
        self.runner, self.folder, self.scene = runner, folder, scene
        self._outcomes: dict[tuple[Step, ...], Outcome] = {}
        self.strike = Strike(link_error=scene.link_error, lock_error=scene.lock_error)
        if folder.exists():
            shutil.rmtree(folder)
        furnish(folder, scene)
        self.start = trees.look(folder)
        for step in scene.before:
            self._run(step)
        self.start = trees.look(folder)
        if scene.receipts >= 0:
            self._interrupt(scene)
            self.start = trees.look(folder)
        self.calls = self._count()
        self._outcomes[scene.step,] = self._outcome(0)
        self.beside_calls = 0  # that the second command makes alone
        for steps in _steps_that_are_wanted_always(scene):
            self.learn(steps)
            if steps == (scene.beside,):
                self.beside_calls = self.runner.watches["first"].num_calls

    def put_back(self) -> None:
        """Make the folder what it is before the command."""
        trees.put_back(self.folder, self.start)

    def out(self, tree: Tree) -> Contents | None:
        """What is compared of OUT; None if it is not there."""
        found = trees.below(tree, self.scene.out)
        return None if found is None else trees.contents(found, is_lock)

    def rest(self, tree: Tree) -> Contents:
        """What nobody may change."""
        return trees.contents(tree, lambda path: path.startswith(self.scene.own))

    def outcome(self, steps: Sequence[Step]) -> Outcome:
        """What these commands make of the scene, undisturbed. Raises MissingOutcomeError before `learn` was called."""
        if tuple(steps) not in self._outcomes:
            raise MissingOutcomeError(tuple(steps))
        return self._outcomes[tuple(steps)]

    def learn(self, steps: Sequence[Step]) -> None:
        """Run these commands one after the other, and keep what they make of the scene."""
        self.put_back()
        code = 0
        for step in steps:
            code = self.runner.run(step.command(self.folder), self.folder, self.strike).code or 0
        self._outcomes[tuple(steps)] = self._outcome(code)

    def _outcome(self, code: int) -> Outcome:
        tree = trees.look(self.folder)
        return Outcome(code, tree, self.out(tree), self.rest(tree))

    def finished(self, tree: Tree) -> dict[str, tuple[int, int]]:
        """Inode and time of each shard that has a receipt, and the bytes of an undisturbed run."""
        published = self.outcome([self.scene.step, *self.scene.finish]).out or {}
        wanted = {path: data for path, (_, data) in published.items()}
        found = {}
        for folder in (self.scene.partial, self.scene.out):
            part = trees.below(tree, folder) or {}
            for path in part:
                shard = path.removeprefix(RECEIPT).removesuffix(".json")
                if (
                    path == f"{RECEIPT}{shard}.json"
                    and shard in part
                    and part[shard].data == wanted.get(shard)
                ):
                    found[shard] = part[shard].identity
        return found

    def _run(self, step: Step, *, refused: bool = False) -> None:
        running = self.runner.run(step.command(self.folder), self.folder, self.strike)
        if bool(running.code) is not refused:
            raise SceneError(f"{self.scene.name}: {step} ended with {running.code}: {running.told()}")

    def _count(self) -> list[Call]:
        """Run the command twice, undisturbed. Returns its calls. Raises SceneError unless it does the same twice."""
        found = []
        for _ in range(2):
            self.put_back()
            self._run(self.scene.step, refused=self.scene.refused)
            found.append(trees.look(self.folder))
        calls = list(self.runner.watches["first"].trace())
        if told := trees.differences(*map(self.compared, found)):
            raise SceneError(f"{self.scene.name}: two undisturbed runs differ: {told[:5]}")
        return calls

    def compared(self, tree: Tree) -> Contents:
        """All that must be the same after two runs that are alike, if OUT is there after them."""
        return (self.out(tree) or {}) | self.rest(tree)

    def _interrupt(self, scene: Scene) -> None:
        """Leave what a killed run leaves: after `scene.receipts` receipts, for 0 before OUT got its name."""
        calls = self._count()
        self.put_back()
        renamed = {number: call.path for number, call in enumerate(calls, 1) if call.kind is Kind.RENAME}
        receipts = [number for number, path in renamed.items() if RECEIPT in path]
        named = [number for number, path in renamed.items() if path == f"/{scene.out}"]
        at = receipts[scene.receipts - 1] + 1 if scene.receipts else named[0]
        killed = Strike(Act.KILL, at, link_error=scene.link_error)
        running = self.runner.run(scene.step.command(self.folder), self.folder, killed)
        if running.code != -signal.SIGKILL:
            raise SceneError(f"{scene.name}: the run that should be killed ended with {running.code}")


def _steps_that_are_wanted_always(scene: Scene) -> Iterator[tuple[Step, ...]]:
    yield ()
    if scene.finish:
        yield (scene.step, *scene.finish)
    if scene.beside:
        yield (scene.beside,)


def orders(certain: Sequence[Step], perhaps: Sequence[Step]) -> Iterator[tuple[Step, ...]]:
    """Every order of commands of which some certainly took effect and others perhaps."""
    seen = set()
    for mask in range(1 << len(perhaps)):
        chosen = [*certain, *(step for bit, step in enumerate(perhaps) if mask >> bit & 1)]
        for order in permutations(chosen):
            if order not in seen:
                seen.add(order)
                yield order
