"""The opcodes of pickles that are understood, and which entries of its memo a pickle asks for again.

What is not listed is refused: the files of a checkpoint need no other.
Source: CPython, Lib/pickletools.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import numpy as np

PROTO, FRAME, STOP, MARK = 0x80, 0x95, 0x2E, 0x28
EMPTY_TUPLE, TUPLE, TUPLE1, TUPLE2, TUPLE3 = 0x29, 0x74, 0x85, 0x86, 0x87
EMPTY_LIST, APPEND, APPENDS = 0x5D, 0x61, 0x65
EMPTY_DICT, SETITEM, SETITEMS = 0x7D, 0x73, 0x75
NONE, NEWTRUE, NEWFALSE = 0x4E, 0x88, 0x89
BININT, BININT1, BININT2, LONG1, BINFLOAT = 0x4A, 0x4B, 0x4D, 0x8A, 0x47
SHORT_BINUNICODE, BINUNICODE = 0x8C, 0x58
GLOBAL, STACK_GLOBAL, REDUCE, NEWOBJ, BUILD = 0x63, 0x93, 0x52, 0x81, 0x62
MEMOIZE, BINPUT, LONG_BINPUT, BINGET, LONG_BINGET = 0x94, 0x71, 0x72, 0x68, 0x6A
BINPERSID = 0x51

WINDOW_BYTES = 1 << 20
LONGEST = 9  # bytes of an opcode whose length is fixed
MAX_TEXT_BYTES = 1 << 16
_ALONE = rb"[\x28\x29\x2e\x4e\x51\x52\x5d\x61\x62\x65\x73\x74\x75\x7d\x81\x85-\x89\x93\x94]"
_OTHERS = rb"(?:" + _ALONE + rb"++|[\x4b\x68\x71\x80].|\x4d..|[\x4a\x72].{4}|[\x47\x95].{8})"
_RUN = re.compile(rb"(?:" + _OTHERS + rb"|\x6a.{4})*+", re.DOTALL)
_GETS = re.compile(
    _OTHERS + rb"*+(?:\x6a(.{4}))?+", re.DOTALL
)  # always moves on: never looks at anything twice
SHORT_IDS = 256  # entries that BINGET can ask for


def asked_for(read: Callable[[int], bytes], num_bytes: int) -> bytes:
    """Return which entries of its memo a pickle may ask for again: a byte for each up to the last of them, 1 or 0.

    Hardly any are. To keep all until the end would take gigabytes for a million chunks. Opcodes of fixed length stand
    in long runs, which regular expressions take apart. The first 256 are asked for all the time, and all kept.

    Args:
        read: returns the next bytes of the pickle, at most as many as it is asked for, none at its end.
        num_bytes: size of the pickle; it has fewer entries.

    Returns:
        The bytes. A pickle with an opcode that is not understood is looked at up to there.
    """
    asked = np.zeros(num_bytes + SHORT_IDS, np.uint8)
    asked[:SHORT_IDS] = 1
    last = SHORT_IDS - 1
    for run in _runs(read):
        ids = np.frombuffer(b"".join(_GETS.findall(run)), "<u4")
        ids = ids[ids <= num_bytes]
        asked[ids] = 1
        last = max(last, int(ids.max())) if ids.size else last
    return asked[: last + 1].tobytes()


def _runs(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """Yield runs of opcodes of fixed length, skipping what lies between them."""
    data, at = read(WINDOW_BYTES), 0
    while True:
        end = _RUN.match(data, at).end()  # type: ignore[union-attr]
        yield data[at:end]
        at = end
        if len(data) - at < 2 * LONGEST and (more := read(WINDOW_BYTES)):
            data, at = data[at:] + more, 0
            continue
        if at >= len(data):
            return
        length = _length(data, at)
        if length is None:
            return
        while at + length > len(data):
            more = read(WINDOW_BYTES)
            if not more:
                return
            data, at = data[at:] + more, 0
        at += length


def _length(data: bytes, at: int) -> int | None:
    """Return the length of an opcode with its text or number, None if it is not one of those."""
    op = data[at]
    if op in (SHORT_BINUNICODE, LONG1):
        return 2 + data[at + 1] if at + 1 < len(data) else None
    if op == BINUNICODE:
        length = int.from_bytes(data[at + 1 : at + 5], "little")
        return 5 + length if length <= MAX_TEXT_BYTES else None
    if op == GLOBAL:
        name = data.find(b"\n", data.find(b"\n", at) + 1)
        return name + 1 - at if name > at else None
    return None
