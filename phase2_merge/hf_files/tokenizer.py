"""What can be seen to be wrong with the tokenizer of a checkpoint, without a library that knows tokenizers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from shardmerge.common import canonical_json
from shardmerge.common.places import is_of_tokenizer

TOKENIZER = "tokenizer.json"
TEMPLATES = (".jinja", "chat_template.json")  # beside a tokenizer, and no part of one


def warnings(sidecars: Mapping[str, bytes], num_rows: int | None) -> Iterator[str]:
    """Yield a warning if there is no tokenizer, or one with ids that the embedding has no row for.

    Args:
        sidecars: What stands beside the shards, by name.
        num_rows: Rows of the embedding, None if that is not known.
    """
    if not any(is_of_tokenizer(name) and not name.endswith(TEMPLATES) for name in sidecars):
        yield "no tokenizer is beside config.json, and readers need one (--tokenizer DIR takes it from elsewhere)"
    highest = _highest_id(sidecars.get(TOKENIZER, b""))
    if num_rows and highest is not None and highest >= num_rows:
        yield f"{TOKENIZER} has ids up to {highest:,}, the embedding only {num_rows:,} rows: is it another model's?"


def _highest_id(data: bytes) -> int | None:
    """Return the highest id that a tokenizer.json gives, None if it gives none that we can read."""
    try:
        content = canonical_json.decode(data)
    except ValueError:
        return None
    return max(_ids(content), default=None) if isinstance(content, dict) else None


def _ids(content: dict[str, Any]) -> Iterator[int]:
    """Yield the ids of a tokenizer.json. Source: the format that the library tokenizers writes."""
    model, added = content.get("model"), content.get("added_tokens")
    vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if isinstance(vocabulary, dict):
        yield from _numbers(vocabulary.values())
    elif isinstance(vocabulary, list) and vocabulary:  # Unigram: an id is a place
        yield len(vocabulary) - 1
    if isinstance(added, list):
        yield from _numbers(token.get("id") for token in added if isinstance(token, dict))


def _numbers(values: Iterable[Any]) -> Iterator[int]:
    return (value for value in values if type(value) is int)
