"""What a reader may do with an input, and what is a finding: the measure of the fuzzers and of the corpus alike.

An input is accepted or refused. It is refused by an error of the tree, by an OSError with an errno, or by what the
table of targets allows. Everything else is a finding: another exception, an answer after more than a second of the
processor, memory out of proportion, an outcome or refusal that cannot be printed, or that a terminal would obey. Must
not know what is read.
"""

from __future__ import annotations

import contextlib
import resource
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from shardmerge.common.errors import ShardmergeError

from .printed import UnprintableError, as_command

SECONDS = 1.0  # of the processor, for one input
MEMORY_BYTES = 64 << 20
MEMORY_PER_BYTE = 64
EXIT_CODES = {2, 3, 4, 5, 6}
PACKAGES = ("common", "phase1_dump", "phase2_merge")
RESET_PEAK = "5"  # what /proc/PID/clear_refs takes for it

Read = Callable[[bytes], object]
Refusals = tuple[type[Exception], ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What went wrong: `key` is the same for the same defect, `words` say it at length."""

    key: str
    words: str


class NotAllowedError(AssertionError):
    """What a target tests beside the reader itself does not hold."""


def judge(read: Read, data: bytes, refusals: Refusals = ()) -> Finding | None:
    """Read an input.

    Args:
        read: A reader, which returns what it found out, or raises.
        data: The input.
        refusals: What it may raise beside errors of the tree and system errors.

    Returns:
        What went wrong. None if the input was accepted or refused as it should be.
    """
    return _measured(read, data, refusals)[1]


def is_accepted(read: Read, data: bytes, refusals: Refusals = ()) -> bool:
    """Whether an input is neither refused nor a finding."""
    return _measured(read, data, refusals) == (True, None)


def _measured(read: Read, data: bytes, refusals: Refusals) -> tuple[bool, Finding | None]:
    """Return whether the input was accepted, and what went wrong."""
    before, begin = peak_bytes(reset=True), time.process_time()
    accepted, finding = _run(read, data, refusals)
    seconds, grown = time.process_time() - begin, peak_bytes() - before
    if finding is None and grown > MEMORY_BYTES + MEMORY_PER_BYTE * len(data):
        finding = Finding("memory", f"{len(data):,} bytes took {grown:,} bytes of memory")
    if finding is None and seconds > SECONDS and _is_slow_again(read, data, refusals):
        finding = Finding("slow", f"{len(data):,} bytes took {seconds:.1f} s")
    return accepted, finding


def _is_slow_again(read: Read, data: bytes, refusals: Refusals) -> bool:
    """Whether it was the input that took long, and not something that happens once."""
    begin = time.process_time()
    _run(read, data, refusals)
    return time.process_time() - begin > SECONDS


def _run(read: Read, data: bytes, refusals: Refusals) -> tuple[bool, Finding | None]:
    """Return whether an input was accepted, and what went wrong. What a command would say of it is printed too."""
    try:
        outcome = read(data)
    except ShardmergeError as error:
        return False, _of_refusal(error)
    except refusals:
        return False, None
    except OSError as error:
        return False, _of_refusal(error) if error.errno is not None else _finding(error)
    except Exception as error:
        return False, _finding(error)
    printable = hasattr(outcome, "facts") and hasattr(outcome, "text")
    return True, _of_printing(lambda: outcome) if printable else None


def _of_refusal(refusal: ShardmergeError | OSError) -> Finding | None:
    """Return what is wrong with a refusal, None if a command can say it."""
    if isinstance(refusal, ShardmergeError) and refusal.exit_code not in EXIT_CODES:
        return Finding(f"exit code {refusal.exit_code}", f"{type(refusal).__name__}: {refusal.message()}")

    def end() -> object:
        raise refusal

    return _of_printing(end)


def _of_printing(end: Callable[[], object]) -> Finding | None:
    try:
        as_command(end)
    except Exception as error:
        return _finding(error)
    return None


def _finding(error: Exception) -> Finding:
    """Return a finding that is called after the exception and the last function of shardmerge that it passed."""
    if isinstance(error, NotAllowedError | UnprintableError):
        return Finding(str(error).partition(":")[0], "".join(traceback.format_exception(error)))
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if any(f"/{name}/" in frame.filename for name in PACKAGES)] or frames
    where = f"{Path(own[-1].filename).name}:{own[-1].name}" if own else "nowhere"
    return Finding(f"{type(error).__name__} in {where}", "".join(traceback.format_exception(error)))


def peak_bytes(*, reset: bool = False) -> int:
    """Return the most memory that this process had, since it was last reset where the kernel can do that."""
    if reset:
        with contextlib.suppress(OSError):  # then only what is above the highest peak so far is seen
            Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
