"""docs/reference/errors.md: every class of errors with its exit code, and what it says, written by the class itself.

Decides the samples that stand for facts. Must not know what any error is about.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

from shardmerge.common.errors import ProblemsFoundError, ShardmergeError

HEAD = """# Errors

Written by `make docs`: every class says its own message here, with the names of its facts in place of them. `--json`
and `--report` hold the facts by these names. What else a command may meet (a full disk, a file that cannot be read) is
the error of the system, which names the file, with exit code 1.

| exit code | meaning |
|---|---|
| 0 | done; an output is published exactly then, but for the moment after its last rename, and what 1 says of files |
| 1 | anything else: a full disk, a killed worker, a defect; done, but `--report`, `--html` or stdout was not written |
| 2 | usage; no config.json; torch.distributed not initialised |
| 3 | incomplete: a rank, a tensor or a part of one, a part of a merge, or a record of an output is missing |
| 4 | conflicting or corrupt: two generations, two world sizes, damaged files, rectangles that overlap, changed shards |
| 5 | unsupported architecture or parameter |
| 6 | the output, or a rank of a dump, exists, is being written by another, or finds no room; its lock was taken away |
| 130 | interrupted by Ctrl-C |
| 143 | ended by SIGTERM, as schedulers send it |

Several problems are all reported; the exit code is the highest of 5, 4 and 3."""


def leaves(kind: type[ShardmergeError] = ShardmergeError) -> list[type[ShardmergeError]]:
    """Return every class of errors that is raised or reported."""
    below = [leaf for child in kind.__subclasses__() for leaf in leaves(child)]
    return below or [kind]


def sample(kind: type[ShardmergeError]) -> ShardmergeError:
    """Return an error whose facts are their own names, or small numbers; what to do is what it says by default."""
    said = [
        field
        for field in dataclasses.fields(kind)
        if field.name != "do" or field.default is dataclasses.MISSING
    ]
    return kind(**{field.name: _sample(field.name, str(field.type)) for field in said})


def page() -> str:
    """Return the page."""
    kinds = [kind for kind in leaves() if kind is not ProblemsFoundError]
    branches: dict[int, list[type[ShardmergeError]]] = {}
    for kind in kinds:
        branches.setdefault(kind.exit_code, []).append(kind)
    parts = [HEAD]
    for code, members in sorted(branches.items()):
        parts.append(f"## Exit code {code}")
        parts += ["\n".join(_lines(kind)) for kind in sorted(members, key=lambda kind: kind.__name__)]
    return "\n\n".join(parts) + "\n"


def _lines(kind: type[ShardmergeError]) -> Iterator[str]:
    yield f"### {kind.__name__}"
    yield ""
    yield "```text"
    yield sample(kind).message()
    yield "```"
    if kind.allow:
        yield ""
        yield f"`--allow {kind.allow}` makes a warning of it."


def _sample(name: str, kind: str) -> Any:
    text = f"<{name.replace('_', ' ')}>"
    samples: dict[str, Any] = {
        "int": 3,
        "int | None": 4,
        "bool": True,
        "str": text,
        "str | None": text,
        "tuple[int, ...]": (1, 2),
        "tuple[str, ...]": (text,),
        "dict[str, int]": {"pp": 2},
        "dict[str, tuple[int, ...]]": {"<one>": (0,), "<another>": (1,)},
    }
    return samples[kind]
