"""What transformers' configs of single architectures call otherwise than most, or have besides.

Must not know megatron-core. Source: transformers 5, models/*/configuration_*.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.worlds.families import Family

Json = dict[str, Any]


def _mistral(family: Family, config: Json) -> Json:
    return config | {"sliding_window": family.window or None}


# architecture -> the arguments of its config class, from a family and what most classes share
OWN_WORDS: dict[str, Callable[[Family, Json], Json]] = {
    "MistralForCausalLM": _mistral,
}
