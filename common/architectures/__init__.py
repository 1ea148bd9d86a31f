"""The registry of architectures: a visible dict, by the name that config.json gives in `architectures`."""

from __future__ import annotations

from ..errors import BadInputError, UnsupportedArchitectureError
from .deepseek import DEEPSEEK_V3
from .llama import LLAMA, QWEN2, QWEN3
from .mixtral import MIXTRAL
from .qwen3_moe import QWEN3_MOE
from .table import Architecture, Blueprint, Claim, Config, Layout, Tensor, key_ids

ARCHITECTURES = {table.name: table for table in (LLAMA, QWEN2, QWEN3, QWEN3_MOE, MIXTRAL, DEEPSEEK_V3)}

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Blueprint",
    "Claim",
    "Config",
    "Layout",
    "Tensor",
    "blueprint",
    "key_ids",
]


def blueprint(config: Config) -> Blueprint:
    """The table of the architecture that a config.json names, bound to it.

    Raises BadInputError if the config names none, UnsupportedArchitectureError if there is no table for it.
    """
    names = config.get("architectures")
    if not isinstance(names, list) or not names or not isinstance(names[0], str):
        raise BadInputError(
            'config.json has no "architectures"',
            'Add it, for example "architectures": ["Qwen3MoeForCausalLM"].',
        )
    if names[0] not in ARCHITECTURES:
        raise UnsupportedArchitectureError(names[0], tuple(sorted(ARCHITECTURES)))
    return Blueprint(ARCHITECTURES[names[0]], config)
