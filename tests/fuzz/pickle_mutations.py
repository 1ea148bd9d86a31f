"""Changes pickles opcode by opcode, and archives of torch.save with their pickle: flips of bytes seldom stay readable.

Must not know what a pickle says, nor who reads it.
"""

from __future__ import annotations

import io
import pickletools
import struct
import zipfile
from random import Random

from .file_mutations import RAW, Blind
from .json_mutations import INTEGERS

MOST_CHANGES = 3
PICKLE = "data.pkl"
FIELDS = {2: "<H", 4: "<I", 8: "<Q"}
NAMES = (
    b"cos\nsystem\n",
    b"ctorch\nSize\n",
    b"cbuiltins\neval\n",
    b"ccollections\nOrderedDict\n",
    b"ctorch._utils\n_rebuild_tensor_v2\n",
)
ALONE = b"().]}KQRNabestu0 12\x81\x85\x86\x87\x88\x89\x93\x94"


def pickled(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change some opcodes of a pickle. What is not a pickle is changed blindly."""
    parts = opcodes_in(data)
    if rng.random() < RAW or len(parts) < 2:
        return blind(data)
    for _ in range(rng.randint(1, MOST_CHANGES)):
        at = rng.randrange(len(parts))
        kind = rng.randrange(7)
        if kind == 0:
            del parts[at]
        elif kind == 1:
            parts.insert(at, parts[rng.randrange(len(parts))])
        elif kind == 2:
            other = rng.randrange(len(parts))
            parts[at], parts[other] = parts[other], parts[at]
        elif kind == 3:
            end = at + rng.randint(1, 40)
            parts[at:end] = parts[at:end] * rng.choice((2, 3))
        elif kind == 4:
            parts[at] = rng.choice((_integer(rng), rng.choice(NAMES), bytes([rng.choice(ALONE)])))
        elif kind == 5:
            parts[at] = _changed(parts[at], rng)
        else:
            integers = [place for place, part in enumerate(parts) if part[:1] in b"KMJ\x8a"]
            parts[rng.choice(integers or [at])] = _integer(rng)
        if not parts:
            return b""
    return b"".join(parts)


def opcodes_in(data: bytes) -> list[bytes]:
    """Return the opcodes of a pickle with what belongs to each, up to the first that makes no sense."""
    starts: list[int] = []
    try:
        starts += [at for _, _, at in pickletools.genops(data) if at is not None]
    except Exception:  # the end of what can be told apart
        starts += [len(data)] if not starts else []
    return [data[begin:end] for begin, end in zip(starts, [*starts[1:], len(data)], strict=True)]


def archived(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change an archive: its pickle, with checksums that fit again, or numbers in its headers, or bytes blindly."""
    chance = rng.random()
    if chance < RAW:
        return blind(data)
    if chance < 0.5:
        return _with_number(data, rng)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
    except Exception:  # whatever zipfile makes of an archive that is damaged
        return blind(data)
    held |= {name: pickled(content, rng, blind) for name, content in held.items() if name.endswith(PICKLE)}
    if rng.random() < 0.2:
        held[rng.choice(list(held))] = b""
    return stored(held)


def stored(held: dict[str, bytes]) -> bytes:
    """Return an archive that holds files as they are."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_STORED) as archive:
        for name, content in held.items():
            archive.writestr(zipfile.ZipInfo(name), content)
    return made.getvalue()


def _with_number(data: bytes, rng: Random) -> bytes:
    """Return bytes with another number in one of the places where headers have one, which are many at the end."""
    length = rng.choice(tuple(FIELDS))
    if len(data) <= length:
        return data
    marks = [
        at
        for mark in (b"PK\x01\x02", b"PK\x03\x04", b"PK\x05\x06", b"PK\x06")
        if (at := data.rfind(mark)) >= 0
    ]
    at = min((rng.choice(marks) if marks else 0) + rng.randrange(4, 60), len(data) - length)
    value = rng.choice((*INTEGERS, rng.randrange(len(data)))) % (1 << (8 * length))
    return data[:at] + struct.pack(FIELDS[length], value) + data[at + length :]


def _integer(rng: Random) -> bytes:
    """Return the opcode of an integer."""
    value = rng.choice((*INTEGERS[:-2], rng.randrange(100)))
    if 0 <= value < 256:
        return b"K" + bytes([value])
    length = (value.bit_length() + 8) // 8
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def _changed(part: bytes, rng: Random) -> bytes:
    """Return an opcode with another byte in what belongs to it."""
    at = rng.randrange(len(part))
    return part[:at] + bytes([rng.randrange(256)]) + part[at + 1 :]


def lines(data: bytes, rng: Random, blind: Blind) -> bytes:
    """Change a few lines of a text: one is another's value, a number, nested deeper, an alias, or gone."""
    rows = data.split(b"\n")
    if rng.random() < RAW:
        return blind(data)
    for _ in range(rng.randint(1, MOST_CHANGES)):
        at = rng.randrange(len(rows))
        key, colon, _ = rows[at].partition(b":")
        values = (
            *(str(number).encode() for number in INTEGERS),
            *(
                b"null",
                b"[1, [2]]",
                b"{a: {b: c}}",
                b"!!python/object:os.system {}",
                b"2001-99-99",
                b".nan",
                b"*a",
            ),
            rows[rng.randrange(len(rows))].partition(b":")[2].strip(),
        )
        rows[at] = rng.choice(
            (key + colon + b" " + rng.choice(values), b"  " + rows[at], b"", blind(rows[at]))
        )
    return b"\n".join(rows)
