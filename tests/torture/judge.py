"""Judges what is on disk after a disturbed command, and after it was run again.

Exit code 0 means that OUT is exactly right. Anything else means that OUT is absent or the old one, whole; a command
that was killed may have done its work. The rerun must succeed. Must not know how a command was disturbed.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from shardmerge.common import places

from . import trees
from .outcomes import RECEIPT, Contents, Stage, orders
from .processes import Running
from .scenes import Step
from .shim import Call, Kind
from .trees import Tree

WRONG, LOST, BLOCKED, MISLED = "wrong", "lost", "blocked", "misled"
ATTEMPT = ".rank-"  # at a rank of a dump
NOT_REMOVED = "could not be removed"
JOURNAL = f"{places.RECORDS}/{places.JOURNAL}"


@dataclass(frozen=True, slots=True)
class Problem:
    """What is not as it must be."""

    kind: str  # WRONG, LOST, BLOCKED or MISLED
    why: str


@dataclass(slots=True)
class Ends:
    """Which commands took effect, as far as their exit codes say: 0 certainly, killed perhaps, else not."""

    certain: list[Step] = field(default_factory=list)
    perhaps: list[Step] = field(default_factory=list)
    failed: list[Step] = field(default_factory=list)

    def add(self, step: Step, code: int) -> None:
        """Note how a command ended."""
        ends = self.certain if code == 0 else self.perhaps if code < 0 else self.failed
        if step not in ends:
            ends.append(step)


def judge_end(stage: Stage, ends: Ends, tree: Tree, *, leftovers: bool, told: str) -> list[Problem]:
    """Judge what disturbed commands left.

    Args:
        stage: The scene, with what undisturbed commands make of it.
        ends: How the commands ended.
        tree: What is there.
        leftovers: Whether more may lie among our records in OUT than belongs there, for the next command to forget.
        told: What the disturbed command printed. An attempt at a rank of a dump may be left over if it says so.

    Returns:
        What is not as it must be.
    """
    out = stage.out(tree)
    if out is not None and leftovers:
        out = {path: content for path, content in out.items() if not _is_told(path, told)}
    return [*_judge_out(stage, ends, out, leftovers=leftovers), *_judge_rest(stage, tree)]


def _judge_out(stage: Stage, ends: Ends, out: Contents | None, *, leftovers: bool) -> Iterable[Problem]:
    allowed = [stage.outcome(order).out for order in orders(ends.certain, ends.perhaps)]
    if out in allowed:
        return
    others = [stage.outcome(order).out for order in orders(ends.certain, ends.perhaps + ends.failed)]
    if out is not None and leftovers:
        out = _without_leftovers(out, others)
        if out in allowed:
            return
    if stage.scene.ranks and (ends.failed or ends.perhaps) and _is_of_whole_ranks(out or {}, others):
        return
    if out in others:
        yield Problem(MISLED, "a command said that it failed, and did all of its work")
        return
    if (
        stage.scene.piecewise
        and (ends.failed or ends.perhaps)
        and out is not None
        and _is_mixed_of(out, others)
    ):
        return
    if out is None:
        old = stage.out(stage.start) is not None
        yield Problem(LOST if old else WRONG, "OUT is gone" if old else "exit code 0, and there is no OUT")
        return
    differences = (trees.differences(out, contents) for contents in allowed if contents is not None)
    least = min(differences, key=len, default=["it is there"])
    yield Problem(WRONG, f"OUT is not what it should be: {', '.join(least[:6])}")


def _without_leftovers(out: Contents, allowed: Sequence[Contents | None]) -> Contents:
    """Return OUT without what lies among our records and is in none of several outputs; a journal is not left over."""
    known = set().union(*(one for one in allowed if one is not None)) | {JOURNAL}
    begin = f"{places.RECORDS}/"
    return {path: content for path, content in out.items() if path in known or not path.startswith(begin)}


def _is_told(path: str, told: str) -> bool:
    """Whether a path of OUT belongs to an attempt at a rank that, as was told, could not be removed."""
    if not path.startswith(ATTEMPT):
        return False
    rank = "/" + ".".join(path.split(".")[:2]) + "."
    return any(rank in line and NOT_REMOVED in line for line in told.splitlines())


def _is_mixed_of(out: Contents, allowed: Sequence[Contents | None]) -> bool:
    """Whether each file is as in one of several outputs; if they are of different ones, the journal must say so."""
    known = [one for one in allowed if one is not None]
    lasting = {path: content for path, content in _without_leftovers(out, known).items() if path != JOURNAL}
    if lasting in known:
        return True
    paths = set(lasting).union(*known)
    return JOURNAL in out and all(any(one.get(path) == lasting.get(path) for one in known) for path in paths)


def _is_of_whole_ranks(out: Contents, allowed: Sequence[Contents | None]) -> bool:
    """Whether each rank in a dump is as in one of several dumps, and all else there belongs to attempts at ranks."""
    known = [ranks_in(one) for one in allowed if one is not None]
    ours = all(
        places.RANK.fullmatch(name) or places.RANK_FAILED.fullmatch(name) or name.startswith(ATTEMPT)
        for name in {path.partition("/")[0] for path in out}
    )
    return ours and all(any(one.get(rank) == held for one in known) for rank, held in ranks_in(out).items())


def ranks_in(dump: Contents) -> dict[str, Contents]:
    """Return the folders of ranks in a dump, each with what it holds by path."""
    ranks: dict[str, Contents] = {}
    for path, content in dump.items():
        name, _, below = path.partition("/")
        if places.RANK.fullmatch(name):
            ranks.setdefault(name, {})[below] = content
    return ranks


def _judge_rest(stage: Stage, tree: Tree) -> Iterable[Problem]:
    if differences := trees.differences(stage.rest(tree), stage.rest(stage.start)):
        missing = any(line.endswith("is missing") for line in differences)
        yield Problem(LOST if missing else WRONG, f"outside of OUT: {', '.join(differences[:6])}")


def judge_kept(stage: Stage, before: dict[str, tuple[int, int]], tree: Tree, who: str) -> list[Problem]:
    """Judge whether shards that were finished are still the same files."""
    now = {}
    for folder in (stage.scene.out, stage.scene.partial):
        for path, node in (trees.below(tree, folder) or {}).items():
            now[path] = node.identity
    gone = sorted(name for name in before if name not in now)
    again = sorted(name for name in before if name in now and now[name] != before[name])
    removed = [Problem(LOST, f"{who} removed finished shards: {', '.join(gone)}")] * bool(gone)
    return removed + [Problem(LOST, f"{who} wrote finished shards again: {', '.join(again)}")] * bool(again)


def judge_removed(stage: Stage, calls: Sequence[Call], tree: Tree) -> list[Problem]:
    """Judge whether shards that this run had finished before it was disturbed are there: `calls` are those before."""
    begin = f"/{stage.scene.partial}/{RECEIPT}"
    done = {
        call.path.removeprefix(begin).removesuffix(".json")
        for call in calls
        if call.kind is Kind.RENAME and call.path.startswith(begin) and "safetensors" in call.path
    }
    there = {
        path for folder in (stage.scene.out, stage.scene.partial) for path in trees.below(tree, folder) or {}
    }
    gone = sorted(done - there)
    return [
        Problem(LOST, f"a run that failed removed shards that it had finished: {', '.join(gone)}")
    ] * bool(gone)


def judge_rerun(
    stage: Stage, ends: Ends, rerun: Running, tree: Tree, finish: Sequence[Step] = ()
) -> list[Problem]:
    """Judge what the same command did when it was run again, undisturbed, and then the commands of `finish`."""
    step = stage.scene.step
    if rerun.hung:
        return [Problem(BLOCKED, f"{step} hangs")]
    perhaps = [*ends.perhaps, *ends.failed]
    wanted = [stage.outcome([*order, step, *finish]) for order in orders(ends.certain, perhaps)]
    out, rest = stage.out(tree), stage.rest(tree)
    for outcome in wanted:
        if rerun.code in (0, outcome.code) and (out, rest) == (outcome.out, outcome.rest):
            return _judge_litter(tree, outcome.tree)
    if rerun.code and (rerun.code, out) not in [(outcome.code, outcome.out) for outcome in wanted]:
        return [Problem(BLOCKED, f"run again, it ends with {rerun.code}: {_last_line(rerun)}")]
    differences = (
        trees.differences(out or {}, outcome.out or {}) + trees.differences(rest, outcome.rest)
        for outcome in wanted
    )
    least = min(differences, key=len)
    return [Problem(WRONG, f"run again, it makes something else: {', '.join(least[:6])}")]


def _judge_litter(tree: Tree, wanted: Tree) -> list[Problem]:
    """Judge whether there is anything beside OUT that an undisturbed run does not leave."""
    found, expected = ({path.split("/")[0] for path in one} for one in (tree, wanted))
    litter = sorted(found - expected)
    return [Problem(WRONG, f"left for ever: {', '.join(litter)}")] * bool(litter)


def _last_line(running: Running) -> str:
    lines = [line for line in running.told().splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("Error:")]
    return (errors or lines or ["it says nothing"])[-1]
