"""How a spoiled dump is refused: by check and merge alike, nothing left behind; and how to spoil a manifest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash

from shardmerge.common import canonical_json
from shardmerge.common.errors import ProblemsFoundError, ShardmergeError
from tests.dumps.worlds import World


def refusal(world: World, kind: type[ShardmergeError], exit_code: int) -> Any:
    """The error that check and merge raise alike. Nothing is published; what was linked until then may stay."""
    before = set(world.folder.iterdir())
    with pytest.raises(kind) as error:
        world.merge()
    assert error.value.exit_code == exit_code
    assert set(world.folder.iterdir()) - before <= {world.folder / "out.partial"}
    with pytest.raises(kind) as again:
        world.check()
    assert again.value.facts() == error.value.facts()
    json.dumps(error.value.facts())
    return error.value


def problems(world: World, exit_code: int) -> tuple[ShardmergeError, ...]:
    found: tuple[ShardmergeError, ...] = refusal(world, ProblemsFoundError, exit_code).problems
    return found


def edit(manifest: Path, **changes: Any) -> None:
    """Change a manifest and give it a digest that fits, as a faulty dump would."""
    value = json.loads(manifest.read_bytes()) | changes
    del value["xxh3_128"]
    body = canonical_json.encode(value)[:-2]
    digest = xxhash.xxh3_128_hexdigest(body)
    manifest.write_bytes(body + f',"xxh3_128":"{digest}"}}\n'.encode())
