"""Pickles that nobody should write: what each would do if it were executed, and what is done with it instead."""

from __future__ import annotations

import os
import pickle
import pickletools
from collections import OrderedDict
from typing import Any


class Runs:
    """Pickled, it calls a function when it is read."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


class Plain:
    """A class of somebody's own."""


def nested(depth: int) -> bytes:
    """Lists in lists, begun and never ended."""
    return b"\x80\x04" + b"(" * depth


def sharing(levels: int) -> bytes:
    """A dict whose key is a tuple of a tuple of ..., each twice: its hash would take for ever."""
    key: Any = ()
    for _ in range(levels):
        key = (key, key)
    return b"\x80\x04}" + pickle.dumps(key, 4)[2:-1].replace(b"\x95", b"\x95") + b"Ns."


HOSTILE = {
    "os.system": pickle.dumps(Runs(os.system, "touch executed")),
    "eval": pickle.dumps(Runs(eval, "open('executed', 'w')")),
    "exec, protocol 2": pickle.dumps(Runs(exec, "open('executed', 'w')"), 2),
    "getattr": pickle.dumps(Runs(getattr, OrderedDict, "fromkeys")),
    "a class of its own": pickle.dumps(Plain()),
    "a name beside an allowed one": b"\x80\x02ctorch\nload\n.",
    "a name inside an allowed one": b"\x80\x04\x8c\x05torch\x8c\x0dSize.__class__\x93.",
    "an opcode that builds by name": b"\x80\x02(S'touch executed'\nios\nsystem\n.",
    "the opcode OBJ": b"\x80\x02(cos\nsystem\nX\x04\x00\x00\x00trueo.",
    "an extension": b"\x80\x02\x82\x01.",
    "a persistent id": b"\x80\x02X\x01\x00\x00\x00aQ.",
    "an old protocol": pickle.dumps({"a": 1}, 0),
    "bytes": pickle.dumps(b"abc", 4),
    "a set": pickle.dumps({1, 2}, 4),
    "a state for a list": b"\x80\x02]}b.",
    "a call of a text": b"\x80\x02X\x01\x00\x00\x00a)R.",
    "a large integer": b"\x80\x02\x8a\xff" + b"\x01" * 255 + b".",
    "a long text": b"\x80\x02X\xff\xff\xff\x7f" + b"a" * 100,
    "an entry of the memo that is not there": b"\x80\x02j\xff\xff\xff\x7f.",
    "deep": nested(100_000),
    "tuples of tuples as keys": sharing(40),
    "nothing": b"",
    "only its begin": pickle.dumps({"a": [1, 2, (3, 4)]}, 4)[:-6],
    "two values": b"\x80\x02NN.",
    "a shape that is not one": b"\x80\x02ctorch\nSize\nX\x01\x00\x00\x00a\x85R.",
    "a negative shape": b"\x80\x02ctorch\nSize\n(J\xff\xff\xff\xfft\x85R.",
}


def opcodes_of(data: bytes) -> set[str]:
    """Names of the opcodes in a pickle, for messages of tests."""
    return {opcode.name for opcode, _, _ in pickletools.genops(data)}
