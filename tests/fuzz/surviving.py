"""What fuzzing holds on to: values and bytes to put in, and what a command may do with them.

A refusal of the tree or a sound end, within a deadline, in little memory. Must not know what is fuzzed.
"""

from __future__ import annotations

import json
import signal
import tracemalloc
from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st

from shardmerge.common.architectures.blueprint import MAX_EXPERTS
from shardmerge.common.errors import ShardmergeError

BOUNDED = settings(
    max_examples=60, deadline=None
)  # SECONDS ends what hangs; how long others take is the machine's
NUMBERS = st.integers() | st.sampled_from([-1, 0, 1 << 31, 1 << 62, 1 << 63, 1 << 70])
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=12,
)
SECONDS = 30
MEMORY_BYTES = 64 << 20
REFUSALS = {2, 3, 4, 5, 6}
BYTES = {"at": st.integers(0, 1 << 20), "put": st.binary(max_size=9), "cut": st.integers(0, 9)}


def is_small(key: str, value: object) -> bool:
    """Whether a config.json with this still declares a small model: memory is in proportion to what is declared."""
    many = type(value) is int and 4_000 < value <= MAX_EXPERTS
    return not (many and ("layers" in key or "experts" in key))


def survives(run: Callable[[], object]) -> None:
    """Whatever `run` is given, it ends well or with an error of the tree, in little memory."""
    refusal = None
    tracemalloc.start()
    signal.signal(signal.SIGALRM, _too_long)
    signal.alarm(SECONDS)
    try:
        run()
    except ShardmergeError as error:
        refusal = error
    finally:
        signal.alarm(0)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MEMORY_BYTES
    assert refusal is None or (refusal.exit_code in REFUSALS and json.dumps(refusal.facts()))


def _too_long(*_: object) -> None:
    raise TimeoutError(f"not finished after {SECONDS} s")


def changed(data: bytes, at: int, put: bytes, cut: int) -> bytes:
    at %= len(data)
    return data[:at] + put + data[at + cut :]
