"""What a program exported of a family's model, as one small file: name, dtype, shape and hash of each tensor.

Decides how tensors are told, when a record is out of date, and what a comparison finds. A model is filled by the
formula of `tests.worlds.filling`, so any rank of any world holds the same numbers; the record says of which formula,
model and table it is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from shardmerge.common.architectures import ARCHITECTURES
from shardmerge.common.architectures.digest import digest, table_digest, without_defaults
from tests.oracles.table import ORACLES
from tests.worlds.families import Family
from tests.worlds.filling import expected

RECORDS = Path(__file__).parent / "records"
CONFIRMED = Path(__file__).parent / "confirmed.json"  # by a second program
FORMULA = "tests.worlds.filling, a polynomial of row and column set by the crc32 of the parameter's name"
DIGITS = 16  # of a hash: against mistakes, not against forgers
Tensors = Mapping[str, torch.Tensor]
Json = dict[str, Any]


def path_of(family: Family) -> Path:
    """Where the record of a family is."""
    return RECORDS / f"{family.name}.json"


def read(family: Family) -> Json:
    """Return the record of a family."""
    found: Json = json.loads(path_of(family).read_text())
    return found


def write(family: Family, theirs: Tensors, versions: Mapping[str, str]) -> bool:
    """Write the record of a family, one line a tensor. Returns whether it changed."""
    record = {
        "made_with": dict(versions),
        **current(family),
        "tensors": {name: told(theirs[name]) for name in sorted(theirs)},
    }
    lines = [f"{json.dumps(key)}: {_spelled(value)}" for key, value in record.items()]
    text = "{\n" + ",\n".join(lines) + "\n}\n"
    before = path_of(family).read_text() if path_of(family).exists() else ""
    path_of(family).write_text(text)
    return text != before


def confirm(agreeing: Mapping[str, str], versions: Mapping[str, str]) -> None:
    """Keep that a second program exported these families as their records say, beside those it did before."""
    families = confirmed() | dict(agreeing)
    lines = ",\n".join(f'"{name}": "{families[name]}"' for name in sorted(families))
    CONFIRMED.write_text(f'{{\n"made_with": {json.dumps(dict(versions))},\n"families": {{\n{lines}\n}}\n}}\n')


def confirmed() -> dict[str, str]:
    """Return families that a second program exported alike, with the digest of the record that it was compared with."""
    found: dict[str, str] = json.loads(CONFIRMED.read_text())["families"] if CONFIRMED.exists() else {}
    return found


def tensors_digest(family: Family) -> str:
    """Return a digest of what a record says of tensors."""
    return hashlib.sha256(json.dumps(read(family)["tensors"], sort_keys=True).encode()).hexdigest()[:DIGITS]


def _spelled(value: Any) -> str:
    if not isinstance(value, dict):
        return json.dumps(value)
    return "{\n" + ",\n".join(f"{json.dumps(key)}: {json.dumps(one)}" for key, one in value.items()) + "\n}"


def current(family: Family) -> Json:
    """What a record must say to be of today's table, model and formula."""
    return {
        "program": ORACLES[family.name].program,
        "formula": FORMULA,
        "formula_digest": digest(
            [expected(name, range(9), range(7)).tolist() for name in ("weight", "expert_bias")]
        ),
        "family_digest": digest(without_defaults(family)),
        "table_digest": table_digest(ARCHITECTURES[family.architecture]),
    }


def told(tensor: torch.Tensor) -> list[Any]:
    """Return dtype, shape, and a hash of the bytes of a tensor."""
    data = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return [_name(tensor.dtype), list(tensor.shape), hashlib.sha256(data).hexdigest()[:DIGITS]]


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def differing(ours: Tensors, record: Json, copies: Iterable[tuple[str, str]] = ()) -> list[str]:
    """Return names of tensors that only one side has, or that differ in shape or in bytes.

    What shardmerge keeps in float32 is rounded as the program rounded it; any other dtype must be equal.

    Args:
        ours: What shardmerge published.
        record: What the program exported.
        copies: Names that the program leaves out, with the name of the tensor that each must repeat.
    """
    theirs = dict(record["tensors"])
    theirs |= {name: theirs[source] for name, source in copies}
    both = ours.keys() & theirs.keys()
    wrong = {name for name in both if told(_as_rounded(ours[name], theirs[name][0])) != theirs[name]}
    return sorted(wrong | (ours.keys() ^ theirs.keys()))


def _as_rounded(tensor: torch.Tensor, dtype: str) -> torch.Tensor:
    return tensor.to(getattr(torch, dtype)) if tensor.dtype == torch.float32 else tensor
