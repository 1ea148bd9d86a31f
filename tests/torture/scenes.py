"""What is tortured: commands, each with what is on disk before it, and perhaps a second one that runs meanwhile.

A table; must not know how calls go wrong.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from shardmerge.common import durable
from shardmerge.common.command.group import main
from shardmerge.phase1_dump import dump_checkpoint
from tests.dumps import dumps, saved
from tests.dumps.dumps import Topology

from . import live
from .dumping import dump_rank, dump_rank_beside, write_dump

ADOPTED = Topology(pp=2)  # every fragment becomes a shard
MIXED = Topology(tp=2, pp=2)  # two fragments become shards, four shards are assembled
NOTES = "notes.txt"
NO_LOCK = -1  # as on a file system whose locks hold on one node only, seen from two


@dataclass(frozen=True, slots=True)
class Step:
    """One command line, the path of the folder left out; or `dump RANK` and its like, or one of BY_HAND."""

    words: tuple[str, ...]

    def __str__(self) -> str:
        return " ".join(self.words)

    def command(self, folder: Path) -> Callable[[], None]:
        """What a child runs."""
        name, *rest = self.words
        if name == "dump" and rest[0].isdecimal():
            return lambda: dump_rank(folder / "dump", int(rest[0]))
        if name == "dump-beside":
            return lambda: dump_rank_beside(folder / "dump", int(rest[0]))
        if name == "dump-live":
            return live.dumping(folder / "dump")
        if name in BY_HAND:
            return lambda: BY_HAND[name](folder)
        if name == "export":
            wait_for_nobody()
        words = [name, *(word.replace("@", f"{folder}/") for word in rest)]
        return lambda: main(words, prog_name="shardmerge")


def wait_for_nobody() -> None:
    """Let an export end where another one has a share and does not go on: it waits longer than anybody does here."""
    dump_checkpoint.__kwdefaults__ = (dump_checkpoint.__kwdefaults__ or {}) | {"patience": 0.0}


def _add_notes(folder: Path) -> None:
    """A person puts a file into a published output."""
    durable.write_file(folder / "out" / NOTES, b"mine\n")


def _replace_fragment(folder: Path) -> None:
    """A person gives the name of a fragment to other bytes, as many as it had."""
    fragment = next((folder / "dump" / "rank-00000").glob("whole-*"))
    data = fragment.read_bytes()
    durable.write_file(fragment, data[:-1] + bytes([data[-1] ^ 1]))


def _leave_shard(folder: Path) -> None:
    """A shard of another plan was left in the unfinished output."""
    partial = folder / "out.partial"
    durable.write_file(partial / "model-00099-of-00099.safetensors", _last_shard(partial).read_bytes())


def _spoil_shard(folder: Path) -> None:
    """A bit of a finished shard changes, and nothing else tells of it."""
    with open(_last_shard(folder / "out.partial"), "r+b") as shard:
        shard.seek(-1, os.SEEK_END)
        byte = shard.read(1)[0]
        shard.seek(-1, os.SEEK_END)
        shard.write(bytes([byte ^ 1]))


def _last_shard(partial: Path) -> Path:
    return max(path for path in partial.glob("model-*.safetensors") if "of-00099" not in path.name)


BY_HAND = {
    "add-notes": _add_notes,
    "replace-fragment": _replace_fragment,
    "leave-shard": _leave_shard,
    "spoil-shard": _spoil_shard,
}


def merge(*more: str, dump: str = "dump", reference: str = "reference") -> Step:
    given = ("merge", f"@{dump}", "@out", "--hf-reference", f"@{reference}", "--max-shard-size", "1000B")
    return Step((*given, *(() if "--workers" in more else ("--workers", "1")), *more))


def metadata(*more: str) -> Step:
    return Step(("metadata", "@out", *more))


def dump(rank: int) -> Step:
    return Step(("dump", str(rank)))


def from_disk(*words: str, limit: str, size: str) -> Step:
    """A command that reads the checkpoint that megatron-core saved."""
    given = ("--checkpoint", f"@{saved.ITERATION}", "--hf-reference", "@hf")
    return Step((*words, *given, limit, size))


@dataclass(frozen=True, slots=True)
class Scene:
    """A command and its surroundings.

    Attributes:
        name: By which points name it.
        step: The command that is disturbed, and run again.
        topology: Of the dump that lies there.
        experts: Of each layer; 0 for a dense model.
        before: What was run before, undisturbed.
        receipts: After this many receipts an earlier run of the command was killed, 0: before `out` got its name, -1:
            there was none.
        beside: The command that runs while the first one waits, or dies.
        finish: What is run after the rerun, until OUT is there.
        probe: What is tried before `finish`: it may refuse, but not publish anything wrong.
        out: What appears, below the folder.
        own: What may change: paths that begin so.
        piecewise: Each file of `out` is old or new, where a command did not end.
        ranks: `out` is a dump that one command writes rank by rank: each is whole or absent, where it did not end.
        processes: Whether the command starts others.
        link_error, lock_error: Of every hard link and every lock, 0 where they succeed; NO_LOCK where they only say so.
        unsynced: The dump was copied, and nobody asked for it to be on disk.
        refused: The command refuses, undisturbed or not.
        stride: Only every so many calls are struck: what starts processes takes long.
    """

    name: str
    step: Step
    topology: Topology = MIXED
    experts: int = 0
    before: tuple[Step, ...] = ()
    receipts: int = -1
    beside: Step | None = None
    finish: tuple[Step, ...] = ()
    probe: Step | None = None
    out: str = "out"
    own: tuple[str, ...] = ("out", "out.partial")
    piecewise: bool = False
    ranks: bool = False
    processes: bool = False
    link_error: int = 0
    lock_error: int = 0
    unsynced: bool = False
    refused: bool = False
    stride: int = 1

    @property
    def partial(self) -> str:
        return f"{self.out}.partial"


ONE, TWO, FINALIZE = (merge("--part", "1/2"), merge("--part", "2/2"), merge("--finalize"))
ALL = (ONE, TWO, FINALIZE)
LEAVE, SPOIL = (Step((name,)) for name in ("leave-shard", "spoil-shard"))
BESIDE = Step(("dump-beside", "0"))
THETA, OTHER_THETA = (("--set", f"config.rope_theta={number}") for number in (5, 6))
PUBLISHED = (merge(),)
RANK = "dump/rank-00000"
RANKS = tuple(f"dump/{name}" for name in ("rank-00000", ".rank-00000", "rank-00001", ".rank-00001"))
DUMPED = ("dump", "--out", "@dump", "--run-id", "run", "--wait", "0")
SHARES, SHARDS = ({"limit": f"--max-{name}-size", "size": "1kB"} for name in ("share", "shard"))
FROM_DISK, BY_TWO = (from_disk(*DUMPED, *more, **SHARES) for more in ((), ("--workers", "2")))
EXPORT = from_disk("export", "@out", "--workers", "1", **SHARDS)
OF_EXPORT = ("out", "out.partial", "out.dump")

ALONE = (
    Scene("merge-adopt", merge(), ADOPTED),
    Scene("merge-copy", merge(), ADOPTED, link_error=errno.EXDEV),
    Scene("merge-mixed", merge()),
    Scene("merge-canonical", merge("--layout", "canonical")),
    Scene("merge-resume", merge(), receipts=2),
    Scene("merge-resume-by-size", merge("--verify", "size"), receipts=2),
    Scene("merge-two-workers", merge("--workers", "2"), processes=True, stride=3),
    Scene("merge-resume-two-workers", merge("--workers", "2"), receipts=2, processes=True, stride=9),
    Scene("merge-without-locks", merge(), ADOPTED, lock_error=errno.ENOLCK),
    Scene("merge-again", merge(), before=PUBLISHED, piecewise=True),
    Scene("merge-again-corrected", merge(*THETA), before=PUBLISHED, piecewise=True),
    Scene("part-1", ONE, finish=(TWO, FINALIZE), probe=FINALIZE),
    Scene("part-2", TWO, before=(ONE,), finish=(FINALIZE,)),
    Scene("part-again", ONE, before=(ONE,), finish=(TWO, FINALIZE), probe=FINALIZE),
    Scene("part-resume", ONE, receipts=1, finish=(TWO, FINALIZE), probe=FINALIZE),
    Scene("finalize", FINALIZE, before=(ONE, TWO)),
    Scene("finalize-left-shard", FINALIZE, before=(ONE, TWO, LEAVE)),
    Scene("finalize-spoiled-shard", FINALIZE, before=(ONE, TWO, SPOIL), finish=ALL, refused=True),
    Scene("finalize-left-and-spoiled-shard", FINALIZE, before=(ONE, TWO, LEAVE, SPOIL), finish=ALL, refused=True),
    Scene("finalize-again", FINALIZE, before=(ONE, TWO, FINALIZE), piecewise=True),
    Scene("metadata", metadata(*THETA), before=PUBLISHED, piecewise=True),
    Scene("metadata-reference", metadata("--hf-reference", "@reference2"), before=PUBLISHED, piecewise=True),
    Scene("metadata-without-locks", metadata(*THETA), before=PUBLISHED, piecewise=True, lock_error=errno.ENOSYS),
    Scene("dump", dump(0), out=RANK, own=RANKS, finish=(dump(1),)),
    Scene("dump-last", dump(0), before=(dump(1),), out=RANK, own=RANKS),
    Scene("dump-resume", dump(0), out=RANK, own=RANKS, receipts=0),
    Scene("dump-beside", BESIDE, out=RANK, own=RANKS, finish=(dump(1),), processes=True, stride=2),
    Scene("dump-beside-resume", BESIDE, out=RANK, own=RANKS, receipts=0, processes=True, stride=5),
    Scene("dump-disk", FROM_DISK, out="dump", own=("dump",), ranks=True),
    Scene("dump-disk-two-workers", BY_TWO, out="dump", own=("dump",), ranks=True, processes=True, stride=7),
    Scene("export", EXPORT, own=OF_EXPORT),
    Scene("export-resume", EXPORT, own=OF_EXPORT, receipts=0),
)  # fmt: skip

OTHER_ONE = merge("--part", "1/2", dump="dump2")
TOGETHER = (
    Scene("merge+merge", merge(), ADOPTED, beside=merge()),
    Scene("merge-mixed+merge", merge(), beside=merge()),
    Scene("merge+other-merge", merge(), ADOPTED, beside=merge(dump="dump2")),
    Scene("merge-resume+merge", merge(), receipts=2, beside=merge()),
    Scene("merge+part", merge(), beside=ONE),
    Scene("part+merge", ONE, beside=merge(), finish=ALL, probe=FINALIZE),
    Scene("part+same-part", ONE, beside=ONE, finish=ALL, probe=FINALIZE),
    Scene("part+other-part", ONE, beside=TWO, finish=ALL, probe=FINALIZE),
    Scene("part+part-of-other-dump", ONE, beside=OTHER_ONE, finish=ALL, probe=FINALIZE),
    Scene("part+finalize", TWO, before=(ONE,), beside=FINALIZE, finish=ALL, probe=FINALIZE),
    Scene("finalize+part", FINALIZE, before=(ONE, TWO), beside=ONE),
    Scene("finalize+part-of-other-dump", FINALIZE, before=(ONE, TWO), beside=OTHER_ONE, finish=ALL),
    Scene("finalize+finalize", FINALIZE, before=(ONE, TWO), beside=FINALIZE),
    Scene("metadata+metadata", metadata(*THETA), before=PUBLISHED, piecewise=True, beside=metadata(*OTHER_THETA)),
    Scene("metadata+merge", metadata(*THETA), before=PUBLISHED, piecewise=True, beside=merge(*OTHER_THETA)),
    Scene("merge-again+metadata", merge(*OTHER_THETA), before=PUBLISHED, piecewise=True, beside=metadata(*THETA)),
    Scene("metadata+person", metadata(*THETA), before=PUBLISHED, piecewise=True, beside=Step(("add-notes",))),
    Scene("merge+person", merge(), ADOPTED, beside=Step(("replace-fragment",)), own=("out", "out.partial", "dump")),
    Scene("dump+same-rank", dump(0), out=RANK, own=RANKS, beside=dump(0), finish=(dump(1),)),
    Scene("dump+other-rank", dump(0), out=RANK, own=RANKS, beside=dump(1)),
    Scene("dump-disk+dump-disk", FROM_DISK, out="dump", own=("dump",), ranks=True, beside=FROM_DISK),
    Scene("export+export", EXPORT, own=OF_EXPORT, beside=EXPORT),
)  # fmt: skip
WITHOUT_LOCKS = tuple(
    replace(scene, name=f"{scene.name}-{name}", lock_error=error)
    for scene in TOGETHER
    if scene.name
    in {"merge+merge", "merge+other-merge", "part+merge", "finalize+finalize", "metadata+metadata"}
    for name, error in (("without-locks", errno.ENOSYS), ("with-local-locks", NO_LOCK))
)
LIVE = (
    Scene("dump-live", Step(("dump-live",)), out=RANK, own=RANKS),
    Scene("dump-live-resume", Step(("dump-live",)), out=RANK, own=RANKS, receipts=0),
)
UNSYNCED = tuple(
    replace(scene, name=f"{scene.name}-unsynced", unsynced=True, own=(*scene.own, "dump"))
    for scene in ALONE
    if scene.name in {"merge-adopt", "merge-copy", "merge-mixed", "part-1"}
)
SCENES = {scene.name: scene for scene in (*ALONE, *TOGETHER, *WITHOUT_LOCKS, *LIVE, *UNSYNCED)}


def furnish(folder: Path, scene: Scene) -> None:
    """Make what lies there before anything is run: dumps, references, and what is nobody's business."""
    folder.mkdir()
    config = dumps.moe_config(experts=scene.experts) if scene.experts else dumps.dense_config()
    for name, more in (("reference", "tokenizer.json"), ("reference2", "vocab.json")):
        reference = dumps.write_reference(folder / name, dumps.model_of(config))
        (reference / "tokenizer.json").rename(reference / more)
    (folder / "bystander").mkdir()
    (folder / "bystander" / NOTES).write_text("mine\n")
    if "--checkpoint" in scene.step.words:
        saved.copy(folder)
        return
    if scene.step.words[0] in ("dump", "dump-beside", "dump-live"):
        (folder / "dump").mkdir()
        return
    for number, name in enumerate(_dumps(scene)):
        model = dumps.model_of(config, seed=number)
        write_dump(folder / name, model, scene.topology, step=100 * (number + 1))


def _dumps(scene: Scene) -> Iterator[str]:
    yield "dump"
    if scene.beside and "@dump2" in scene.beside.words:
        yield "dump2"
