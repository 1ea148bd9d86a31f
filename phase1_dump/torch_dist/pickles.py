"""Reads pickles without executing them: names are looked up in a list of inert stand-ins, all else is refused by name.

A pickle is a program, and Python's own unpickler runs it. This one knows the opcodes that hold data, calls nothing but
functions of ours, and imports nothing. It reads from a window, and keeps of the memo what is asked for again.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Protocol, TypeAlias

from shardmerge.common.errors import CorruptFileError, UnknownInPickleError, printable

from . import opcodes as op

MAX_STACK = (
    1 << 16
)  # of values that wait for what they belong to; a pickler hands over a thousand items at a time
MAX_MARKS = 256  # of what is begun and not ended: how deep things are nested
MAX_LONG_BYTES = 8
PROTOCOLS = (2, 3, 4, 5)


class Record(Protocol):
    """What a stand-in makes of an object that has a state."""

    def build(self, state: Any) -> None:
        """Take the state. Raises ValueError if it is not what such an object has."""


@dataclass(frozen=True, slots=True)
class Name:
    """What stands for a class or function of a pickle: `make` gets the arguments and returns an inert value.

    `make` raises ValueError for arguments that the real one would not be given.
    """

    make: Callable[[tuple[Any, ...]], Any]


Names: TypeAlias = Mapping[tuple[str, str], Any]  # a Name, or the value that stands for a constant


@dataclass(frozen=True, slots=True)
class Containers:
    """What becomes of items that a list or dict is given: whoever reads millions of them puts them elsewhere.

    Both raise ValueError for items that cannot be.
    """

    extend: Callable[[list[Any], Sequence[Any]], None]
    update: Callable[[dict[Any, Any], Sequence[Any]], None]


def extend_list(target: list[Any], items: Sequence[Any]) -> None:
    """Put items into a list as they are."""
    target.extend(items)


def update_dict(target: dict[Any, Any], items: Sequence[Any]) -> None:
    """Put keys and values, which follow each other, into a dict. Keys are texts or integers.

    The hash of a tuple of tuples may take for ever. Raises ValueError for other keys.
    """
    for key, value in zip(items[::2], items[1::2], strict=True):
        if type(key) not in (str, int):
            raise ValueError(f"a key of type {type(key).__name__}")
        target[key] = value


PLAIN = Containers(extend_list, update_dict)


class Unpickler:
    """Reads one pickle."""

    def __init__(
        self,
        read: Callable[[int], bytes],
        names: Names,
        path: str,
        *,
        containers: Containers = PLAIN,
        persistent: Callable[[Any], Any] | None = None,
        asked_for: bytes | None = None,
    ) -> None:
        """Prepare to read.

        Args:
            read: Returns the next bytes of the pickle, at most as many as it is asked for, none at its end. Whoever
                gives it bounds how many there are, and so how many opcodes.
            names: Stand-ins by module and name.
            path: For messages.
            containers: What becomes of items.
            persistent: Makes a value of a persistent id, as torch has one for each storage. None: there are none.
            asked_for: Which entries of the memo must be kept, as `opcodes.asked_for` says. None: all.
        """
        self._read, self._names, self._path = read, names, path
        self._containers, self._persistent, self._asked_for = containers, persistent, asked_for
        self._data, self._at, self._ended = b"", 0, False
        self._stack: list[Any] = []
        self._marks: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._memoized = 0
        self._steps = self._table()

    def load(self) -> Any:
        """Return the value of the pickle.

        Raises:
            UnknownInPickleError: it names what is not in the list, or needs an opcode that is not understood.
            CorruptFileError: it is cut or damaged.
        """
        try:
            return self._run()
        except (ValueError, TypeError, IndexError, KeyError, OverflowError, struct.error) as error:
            reason = printable.one_line(str(error))[:200] or type(error).__name__
            raise CorruptFileError(self._path, f"as a pickle it makes no sense ({reason})") from None

    def _run(self) -> Any:
        """Take opcode after opcode. The few of which there are most are taken here, all others by their step."""
        asked = self._asked_for
        kept = len(asked) if asked is not None else 0
        while True:
            data, at, stack, memo = self._data, self._at, self._stack, self._memo
            last = len(data) if self._ended else len(data) - op.MAX_TEXT_BYTES
            while at < last:
                code = data[at]
                at += 1
                if code == op.MEMOIZE:
                    number = self._memoized
                    if asked is None or (number < kept and asked[number]):
                        memo[number] = stack[-1]
                    self._memoized = number + 1
                elif code == op.BINGET:
                    stack.append(memo[data[at]])
                    at += 1
                elif code == op.BININT1:
                    stack.append(data[at])
                    at += 1
                elif code == op.STOP:
                    return self._end()
                else:
                    self._at = at
                    self._step(code)
                    at, stack = self._at, self._stack
                    if data is not self._data:
                        break
            self._at = at
            self._refill()

    def _step(self, code: int) -> None:
        step = self._steps.get(code)
        if step is None:
            raise UnknownInPickleError(self._path, f"needs opcode {code:#04x}")
        step()

    def _end(self) -> Any:
        (value,) = self._stack
        if self._marks:
            raise ValueError("it ends inside of something")
        return value

    def _refill(self) -> None:
        """Move the window on. Whatever is begun in it then lies in it whole, or the pickle ends."""
        if self._ended:
            raise ValueError("it ends too early")
        more = self._read(op.WINDOW_BYTES)
        self._ended = not more
        self._data, self._at = self._data[self._at :] + more, 0
        if len(self._stack) > MAX_STACK:
            raise ValueError(f"{len(self._stack):,} values are begun and not ended")

    def _take(self, count: int) -> bytes:
        """Return the next bytes. Raises ValueError if the pickle ends before."""
        begin = self._at
        self._at = begin + count
        if self._at > len(self._data):
            raise ValueError("it ends too early")
        return self._data[begin : self._at]

    def _table(self) -> dict[int, Callable[[], None]]:
        push = self._stack_push
        return {
            op.PROTO: self._proto,
            op.FRAME: lambda: self._skip(8),
            op.MARK: self._mark,
            op.EMPTY_TUPLE: lambda: push(()),
            op.TUPLE: self._tuple,
            op.TUPLE1: lambda: self._tuple_of(1),
            op.TUPLE2: lambda: self._tuple_of(2),
            op.TUPLE3: lambda: self._tuple_of(3),
            op.EMPTY_LIST: lambda: push([]),
            op.APPEND: lambda: self._append([self._stack.pop()]),
            op.APPENDS: lambda: self._append(self._since_mark()),
            op.EMPTY_DICT: lambda: push({}),
            op.SETITEM: self._set_item,
            op.SETITEMS: lambda: self._set(self._since_mark()),
            op.NONE: lambda: push(None),
            op.NEWTRUE: lambda: push(True),
            op.NEWFALSE: lambda: push(False),
            op.BININT: lambda: push(int.from_bytes(self._take(4), "little", signed=True)),
            op.BININT2: self._two_bytes,
            op.LONG1: self._long,
            op.BINFLOAT: lambda: push(struct.unpack(">d", self._take(8))[0]),
            op.SHORT_BINUNICODE: lambda: self._text(1),
            op.BINUNICODE: lambda: self._text(4),
            op.GLOBAL: self._global,
            op.STACK_GLOBAL: self._stack_global,
            op.REDUCE: self._make,
            op.NEWOBJ: self._make,
            op.BUILD: self._build,
            op.BINPUT: lambda: self._put(self._take(1)[0]),
            op.LONG_BINPUT: lambda: self._put(int.from_bytes(self._take(4), "little")),
            op.LONG_BINGET: lambda: push(self._memo[int.from_bytes(self._take(4), "little")]),
            op.BINPERSID: self._persistent_id,
        }

    def _stack_push(self, value: Any) -> None:
        self._stack.append(value)

    def _two_bytes(self) -> None:
        at = self._at
        self._stack.append(self._data[at] | self._data[at + 1] << 8)
        self._at = at + 2

    def _skip(self, count: int) -> None:
        self._take(count)

    def _proto(self) -> None:
        protocol = self._take(1)[0]
        if protocol not in PROTOCOLS:
            raise UnknownInPickleError(self._path, f"has protocol {protocol}")

    def _mark(self) -> None:
        self._marks.append(self._stack)
        self._stack = []
        if len(self._marks) > MAX_MARKS:
            raise ValueError(f"more than {MAX_MARKS} things are begun and not ended")

    def _since_mark(self) -> list[Any]:
        items = self._stack
        self._stack = self._marks.pop()
        return items

    def _tuple(self) -> None:
        items = self._since_mark()
        self._stack.append(tuple(items))

    def _tuple_of(self, count: int) -> None:
        items = tuple(self._stack[-count:])
        if len(items) != count:
            raise ValueError("a tuple lacks items")
        self._stack[-count:] = [items]

    def _append(self, items: Sequence[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not list:
            raise ValueError("items for what is not a list")
        self._containers.extend(target, items)

    def _set_item(self) -> None:
        value, key = self._stack.pop(), self._stack.pop()
        self._set([key, value])

    def _set(self, items: Sequence[Any]) -> None:
        target = self._stack[-1]
        if type(target) is not dict:
            raise ValueError("items for what is not a dict")
        self._containers.update(target, items)

    def _long(self) -> None:
        length = self._take(1)[0]
        if length > MAX_LONG_BYTES:
            raise ValueError(f"an integer of {length} bytes")
        self._stack.append(int.from_bytes(self._take(length), "little", signed=True))

    def _text(self, length_bytes: int) -> None:
        length = int.from_bytes(self._take(length_bytes), "little")
        if length > op.MAX_TEXT_BYTES:
            raise ValueError(f"a text of {length:,} bytes")
        if self._at + length > len(self._data):
            self._refill()
        self._stack.append(self._take(length).decode())

    def _global(self) -> None:
        end = self._data.index(b"\n", self._data.index(b"\n", self._at) + 1)
        module, name = self._take(end + 1 - self._at).decode().splitlines()
        self._look_up(module, name)

    def _stack_global(self) -> None:
        name, module = self._stack.pop(), self._stack.pop()
        self._look_up(module, name)

    def _look_up(self, module: Any, name: Any) -> None:
        if type(module) is not str or type(name) is not str:
            raise ValueError("a name that is not a text")
        if (module, name) not in self._names:
            self._refuse(f"names {module}.{name}")
        self._stack.append(self._names[module, name])

    def _make(self) -> None:
        arguments, name = self._stack.pop(), self._stack.pop()
        if type(name) is not Name or type(arguments) is not tuple:
            raise ValueError("a call of what is not a function")
        self._stack.append(name.make(arguments))

    def _build(self) -> None:
        state, target = self._stack.pop(), self._stack[-1]
        if not hasattr(target, "build"):
            raise ValueError("a state for what has none")
        target.build(state)

    def _put(self, number: int) -> None:
        self._memo[number] = self._stack[-1]

    def _persistent_id(self) -> None:
        if self._persistent is None:
            self._refuse("has a persistent id")
        self._stack.append(self._persistent(self._stack.pop()))

    def _refuse(self, what: str) -> NoReturn:
        raise UnknownInPickleError(self._path, printable.one_line(what)[:200])
