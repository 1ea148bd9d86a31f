"""The reports of `check` and `merge`: what they found and how long it took, for people and for machines.

The part that is published holds no time, host or path.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from shardmerge.common.command.byte_count import show
from shardmerge.common.errors import SHOWN, printable
from shardmerge.common.errors.wording import be, counted

from ..corrections import record
from ..corrections.record import Recorded
from ..hf_files import tokenizer
from ..ledger.names import summary
from ..options import Verification
from ..proof.config.settings import Compared
from ..proof.prove import Proof
from ..shards.final_proof import NOTHING_REREAD, Reread
from ..shards.plan import MANY_SHARDS, Plan
from ..shards.space import Space

MTP_LINES = {
    "trained": "Multi-token prediction: as trained.",
    "grafted": "Multi-token prediction: from the reference (--graft mtp).",
    "dropped": "Multi-token prediction: none, and config.json says so (--drop-mtp).",
}
EXPERT_LINE = "Routed experts of {}: {}."
PROVED = (
    "every expected tensor is there, whole, once, in its dtype and shape",
    "sizes and headers of all fragments",
    "config.json against the dimensions of the model that was dumped",
)
HOW_VERIFIED = {
    "full": "Every byte was read and has its checksum.",
    "size": "Bytes were NOT read: only sizes and headers were verified (--verify size).",
}


@dataclass(slots=True)
class Stages:
    """Seconds of the stages of a command that have ended, and of all so far."""

    started: float = field(default_factory=time.monotonic)
    ended: dict[str, float] = field(default_factory=dict)

    @property
    def seconds(self) -> float:
        return round(time.monotonic() - self.started, 3)

    def end(self, stage: str) -> None:
        """End a stage, which began when the one before it ended."""
        self.ended[stage] = round(self.seconds - sum(self.ended.values()), 3)


@dataclass(frozen=True, slots=True)
class CheckReport:
    """What `check` says of a dump that is whole."""

    run_id: str
    step: int | None
    attempt: str
    world_size: int
    architecture: str
    ledger_digest: str
    num_tensors: int
    num_parameters: int
    num_rectangles: int
    num_fragments: int
    total_bytes: int
    verification: Verification
    warnings: tuple[str, ...]
    corrections: Recorded
    grafted: tuple[str, ...]
    grafted_bytes: int
    mtp: str
    experts: dict[str, str]
    drops: dict[str, int]
    unchecked: tuple[str, ...]
    config: Compared

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def scope(self) -> tuple[list[str], tuple[str, ...]]:
        """Return what was checked, and what not."""
        checked = [*PROVED]
        checked += ["the checksum of every rectangle"] if self.verification == "full" else []
        checked += [f"of config.json {', '.join(self.config.settings)}"] if self.config.settings else []
        return checked, self.unchecked

    def text(self) -> str:
        return "\n".join([*self.lines(), *self.remarks()])

    def lines(self) -> list[str]:
        """Return two lines about the dump."""
        tensors = f"{counted(self.num_tensors, 'tensor')}, {counted(self.num_parameters, 'parameter')}"
        size = f"{tensors}, {show(self.total_bytes)}"
        step = "" if self.step is None else f", step {self.step}"
        return [
            f"Whole: {self.architecture}, run {self.run_id}{step}, {counted(self.world_size, 'rank')}.",
            f"{size} in {counted(self.num_rectangles, 'rectangle')}. {HOW_VERIFIED[self.verification]}",
        ]

    def remarks(self) -> list[str]:
        """Return lines about what phase one left out, about grafts and corrections, and then the warnings."""
        grafts = f"Taken from the reference, {show(self.grafted_bytes)}: {summary(self.grafted)}."
        return [
            *(
                f"Left out by the dump: {reason} ({counted(count, 'time')})."
                for reason, count in sorted(self.drops.items())
            ),
            *([grafts] if self.grafted else []),
            *([MTP_LINES[self.mtp]] if self.mtp in MTP_LINES else []),
            *(EXPERT_LINE.format(part, spelling) for part, spelling in self.experts.items()),
            *record.lines(self.corrections),
            f"Not checked: {'; '.join(self.unchecked)}.",
            *warning_lines(self.warnings),
        ]


@dataclass(frozen=True, slots=True)
class MergeReport:
    """What `merge` says of a checkpoint that was published, or with `dry_run` planned."""

    check: CheckReport
    out: str
    plan_digest: str
    num_shards: int
    adopted_shards: int
    adopted_bytes: int
    assembled_bytes: int
    largest_shards: tuple[tuple[str, int], ...]
    adopted_by: dict[str, int]
    dry_run: bool
    seconds: float
    stages: dict[str, float]
    copied_bytes: int = 0
    cloned_bytes: int = 0
    sidecars: tuple[str, ...] = ()
    tokenizer_files: tuple[str, ...] = ()
    rewritten: tuple[str, ...] | None = None
    removed: tuple[str, ...] = ()
    kept_corrections: tuple[str, ...] = ()
    kept_tokenizer: tuple[str, ...] = ()
    dropped: Recorded = field(default_factory=dict)
    kept_shards: int = 0
    reread: Reread = NOTHING_REREAD
    late_warnings: tuple[str, ...] = ()
    space: Space | None = None

    def facts(self) -> dict[str, Any]:
        return asdict(self)

    def scope(self) -> tuple[list[str], tuple[str, ...]]:
        """Return what was checked, and what not."""
        return self.check.scope()

    def published(self) -> dict[str, Any]:
        """Return what report.json holds: the same for the same input, wherever and whenever it was merged."""
        local = {
            "out", "adopted_by", "copied_bytes", "cloned_bytes", "dry_run", "seconds", "stages", "rewritten",
            "removed", "kept_corrections", "kept_tokenizer", "dropped", "kept_shards", "reread", "late_warnings",
            "space",
        }  # fmt: skip
        return {key: value for key, value in asdict(self).items() if key not in local}

    def text(self) -> str:
        if self.rewritten is not None:
            return "\n".join([*self.check.lines(), *self._rewritten(), *self.check.remarks()])
        by_method = ", ".join(f"{count} by {method}" for method, count in self.adopted_by.items())
        adopted = f"{self.adopted_shards:,} adopted{f' ({by_method})' if by_method else ''}"
        shards = f"{counted(self.num_shards, 'shard')}, {adopted}"
        verb = "Would publish" if self.dry_run else "Published"
        lines = [
            *self.check.lines(),
            f"{verb} {self.out}: {shards}{'' if self.dry_run else f', in {self.seconds:.1f} s'}.",
            self._written(),
            f"Beside the shards: config.json, {', '.join(self.sidecars) or 'and nothing of the reference'}.",
        ]
        if self.num_shards > MANY_SHARDS and self.adopted_shards:
            lines.append(
                f"{self.num_shards:,} shards are slow to open: --layout canonical writes few, full ones, "
                "--min-shard-size joins small ones."
            )
        if self.kept_shards:
            lines.append(
                f"{counted(self.kept_shards, 'shard')} {be(self.kept_shards)} finished by an earlier attempt, and kept."
            )
        if self.reread.shards:
            lines.append(
                f"{counted(len(self.reread.shards), 'shard')} that others wrote, or that changed, "
                f"{be(len(self.reread.shards))} read again, "
                f"{show(self.reread.num_bytes)} in {self.reread.seconds:.1f} s: {_first(self.reread.shards)}."
            )
        if self.dry_run:
            lines += self.space.lines() if self.space else []
            lines += [f"  {name}  {show(size)}" for name, size in self.largest_shards]
        return "\n".join([*lines, *self.check.remarks(), *warning_lines(self.late_warnings)])

    def _written(self) -> str:
        """Return a line about bytes written, as a share of a full copy, and about the seconds of each stage."""
        written = self.assembled_bytes - self.cloned_bytes + self.copied_bytes
        total = self.assembled_bytes + self.adopted_bytes
        parts = [f"{show(self.adopted_bytes - self.copied_bytes)} not copied"]
        parts += [f"{show(self.copied_bytes)} copied"] if self.copied_bytes else []
        cloned = f" ({show(self.cloned_bytes)} by reflink)" if self.cloned_bytes else ""
        parts += [
            f"{show(self.assembled_bytes)} assembled{cloned}: {written / max(1, total):.0%} of a plain copy"
        ]
        stages = ", ".join(f"{stage} {seconds:.1f} s" for stage, seconds in self.stages.items())
        return f"{', '.join(parts)}{f'; {stages}' if stages else ''}."

    def _rewritten(self) -> list[str]:
        """Return lines about what was written again, and about what earlier commands had said."""
        what = what_changed(self.rewritten or (), self.removed, dry_run=self.dry_run)
        untouched = "no shard would be touched" if self.dry_run else "no shard was touched"
        first = (
            f"{self.out} was published before from this dump: {what}; {untouched}. "
            "Sizes and headers of all shards are as planned; their bytes were NOT read."
        )
        lines = [first]
        if self.kept_corrections:
            lines.append(f"Kept, as earlier commands corrected it: {', '.join(self.kept_corrections)}.")
        if self.kept_tokenizer:
            lines.append(f"Kept, as an earlier --tokenizer gave it: {', '.join(self.kept_tokenizer)}.")
        return [*lines, *record.lines_of_dropped(self.dropped)]


def check_report(proof: Proof, verification: Verification, beside: Mapping[str, bytes]) -> CheckReport:
    """Return the report of a proof.

    Args:
        proof: Of a dump that is whole.
        verification: How its bytes were, or will be, verified.
        beside: The sidecars, by name.

    Returns:
        The report.
    """
    first = proof.ledger.heads[0].manifest
    in_checkpoint = proof.verdict.kept
    rows, copied = proof.ledger.rows, proof.verdict.filled_from.values()
    sizes = rows.end - rows.begin
    return CheckReport(
        run_id=first.run_id,
        step=first.step,
        attempt=first.attempt,
        world_size=first.world_size,
        architecture=first.architecture,
        ledger_digest=proof.ledger.digest,
        num_tensors=len(proof.expected),
        num_parameters=proof.expected.num_elements(),
        num_rectangles=int(in_checkpoint.sum()),
        num_fragments=len(proof.fragments),
        total_bytes=int(sizes[in_checkpoint].sum()) + sum(int(sizes[filled].sum()) for filled in copied),
        verification=verification,
        warnings=(*proof.warnings, *_of_reference(proof, beside)),
        corrections=proof.corrections,
        grafted=tuple(sorted(name for file in proof.ledger.grafted for name in file.names)),
        mtp=proof.mtp,
        experts=dict(proof.ledger.facts().experts or {}),
        unchecked=tuple(_unchecked(proof, verification)),
        config=proof.compared,
        drops=dict(sum((Counter(head.manifest.drops) for head in proof.ledger.heads), Counter())),
        grafted_bytes=sum(
            tensor.end - tensor.begin for file in proof.ledger.grafted for tensor in file.placed
        ),
    )


def _of_reference(proof: Proof, beside: Mapping[str, bytes]) -> Iterator[str]:
    """Yield what is strange about the reference, and no fault of the dump."""
    yield from tokenizer.warnings(beside, proof.blueprint.dimensions.get("vocab"))
    declared = proof.reference.config.get("quantization_config")
    if declared is not None and proof.quantization is None:
        method = declared.get("quant_method", "unknown") if isinstance(declared, dict) else "unknown"
        yield (
            f"config.json of the reference declares a quantization ({method}), which the dump does not have: it is "
            "left out"
        )


def _first(names: Sequence[str]) -> str:
    """Return some names, and how many there are besides."""
    more = len(names) - SHOWN
    return ", ".join(names[:SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _unchecked(proof: Proof, verification: Verification) -> Iterator[str]:
    """Yield in words what was not looked at."""
    if verification == "size":
        yield "the bytes of tensors"
    if proof.ledger.rows.written.all():
        yield "whether other ranks hold the same replicas (the dump recorded none: --check-replicas)"
    if not proof.compared.settings:
        yield "what config.json says that shows in no shape or dtype (the dump does not say what the model computes)"
    else:
        named, more = proof.compared.not_compared[:SHOWN], len(proof.compared.not_compared) - SHOWN
        yield f"of config.json {', '.join(named)}{f' and {more:,} more' if more > 0 else ''}"


def merge_report(
    plan: Plan, check: CheckReport, out: str, sidecars: tuple[str, ...], *, dry_run: bool
) -> MergeReport:
    """Return the report of a merge as far as its plan says it.

    How fragments were adopted is added once they are, how long the merge took by `finished`.

    Args:
        plan: All shards.
        check: What the proof says.
        out: Where the checkpoint appears.
        sidecars: The names of what is copied beside the shards.
        dry_run: Whether nothing is published.

    Returns:
        The report of a merge that has taken no time yet.
    """
    largest = sorted(plan.shards, key=lambda shard: (-shard.num_bytes, shard.name))[:SHOWN]
    return MergeReport(
        check=check,
        out=out,
        plan_digest=plan.digest,
        num_shards=len(plan.shards),
        adopted_shards=len(plan.adopted),
        adopted_bytes=sum(shard.num_bytes for shard in plan.adopted),
        assembled_bytes=sum(shard.num_bytes for shard in plan.assembled),
        largest_shards=tuple((shard.name, shard.num_bytes) for shard in largest),
        adopted_by={},
        dry_run=dry_run,
        seconds=0.0,
        stages={},
        sidecars=sidecars,
    )


def finished(report: MergeReport, stages: Stages) -> MergeReport:
    """Return the report with how long the merge took."""
    return replace(report, seconds=stages.seconds, stages=dict(stages.ended))


def what_changed(rewritten: Sequence[str], removed: Sequence[str], *, dry_run: bool = False) -> str:
    """Say which files of an output were written again and removed, or would be.

    Args:
        rewritten: names of the former.
        removed: names of the latter.
        dry_run: whether nothing was written.

    Returns:
        A clause without a full stop.
    """
    wrote, took = ("would rewrite", "would remove") if dry_run else ("rewrote", "removed")
    parts = [f"{wrote} {', '.join(rewritten)}"] if rewritten else []
    parts += [f"{took} {', '.join(removed)}"] if removed else []
    return " and ".join(parts) or ("would change nothing" if dry_run else "nothing to change")


def warning_lines(warnings: Sequence[str]) -> list[str]:
    """Return a line for each of the first warnings, and one that counts the others."""
    more = len(warnings) - SHOWN
    shown = [f"Warning: {printable.one_line(text)}" for text in warnings[:SHOWN]]
    return shown + ([f"... and {more} more warnings (--report FILE holds all)"] if more > 0 else [])
