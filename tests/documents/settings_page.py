"""docs/reference/settings.md: what is compared of config.json, and by which keys each architecture says it."""

from __future__ import annotations

import json
from collections.abc import Iterable

from shardmerge.common.architectures import ARCHITECTURES
from shardmerge.common.architectures.settings.vocabulary import SETTINGS, UNSPOKEN
from shardmerge.phase1_dump.settings import fields

HEAD = """# Settings of config.json

Written by `make docs` from the tables of architectures and of megatron-core's options.

The dump records what the live model computes with, of everything that shows in no shape; `check`, `merge`, `metadata`
and `verify` compare it with config.json. A difference is an error, and with `--allow config` a warning. A setting that
an architecture has no key for has the value that stands here; without one it is not compared.
"""
OPTIONS = """## Options of megatron-core

Every field of TransformerConfig and MLATransformerConfig is compared through a setting, harmless to a checkpoint, or
refused. A test fails for a field of a newer megatron-core that is in none of the three.
"""


def page() -> str:
    """Return the whole page."""
    parts = [HEAD, _table(("setting", "what it is", "without a key"), _settings()), "\n"]
    for name, table in sorted(ARCHITECTURES.items()):
        rows = ((_code([row.setting]), _code(row.keys) or "always the same") for row in table.settings)
        parts += [f"## {name}\n\n", _table(("setting", "keys of config.json"), rows), "\n"]
    refused = (f"- `{name}`: {row.effect}\n" for name, row in fields.REFUSED.items())
    harmless = (f"- {row.reason} {_code(row.fields)}\n" for row in fields.HARMLESS)
    parts += [OPTIONS, f"\nCompared: {_code(sorted(fields.COMPARED))}.\n"]
    parts += ["\nRefused, unless they have a value that changes nothing:\n\n", *refused]
    parts += ["\nHarmless:\n\n", *harmless]
    return "".join(parts).replace("\n\n\n", "\n\n")


def _settings() -> Iterable[tuple[str, ...]]:
    for name, one in SETTINGS.items():
        yield _code([name]), one.meaning, "" if one.neutral is UNSPOKEN else _code([json.dumps(one.neutral)])


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    lines = (head, ("---",) * len(head), *rows)
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _code(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)
