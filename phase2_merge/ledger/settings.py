"""What all ranks together say of the model's settings: each rank tells those that it knows. No judgement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from shardmerge.common.manifest import Manifest
from shardmerge.common.manifest_facts import Facts


def united(manifests: Sequence[Manifest]) -> Facts:
    """Return the facts of the first rank, with the settings that any rank tells.

    Where ranks differ, the first counts. Settings are None if no rank tells any, as in dumps of older versions.
    """
    first = manifests[0].facts
    told = [manifest.facts.settings for manifest in manifests if manifest.facts.settings is not None]
    if not told:
        return first
    settings: dict[str, Any] = {}
    for one in told:
        if not one.keys() <= settings.keys():
            settings = {**one, **settings}
    return replace(first, settings=dict(sorted(settings.items())))
