"""Records the keys of models with LoRA adapters, as Megatron-Bridge and as PEFT under mcore-bridge make them.

Run by `make test-oracles`. A model of one rank gets adapters at its attention; its parameters are then listed as a dump
lists them. `tests/phase1_dump/rectangles/test_claims.py` shows that a dump refuses them. Must not know what it says.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tests.worlds.te_stub import install

install(str(Path(sys.prefix) / "te-python"))  # before anything imports megatron-core

from shardmerge.phase1_dump.sources.parameters import parameters_of  # noqa: E402
from tests.oracles.bridge import stand_in  # noqa: E402
from tests.worlds.fake import build_model, fake_world  # noqa: E402
from tests.worlds.families import by_name  # noqa: E402
from tests.worlds.topology import SINGLE  # noqa: E402

RECORD = Path(__file__).parent / "adapters.json"
FAMILY = by_name("qwen3_moe")
ADAPTED = ["linear_qkv", "linear_proj"]
ATTENTION = "decoder.layers.0.self_attention."


def main() -> int:
    """Write the record. Returns the exit code."""
    stand_in()
    found = {
        f"{program} {version(package)}": keys_of(adapted)
        for program, package, adapted in (
            ("megatron-bridge", "megatron-bridge", with_bridge),
            ("peft", "peft", with_peft),
        )
    }
    lines = [f"{json.dumps(program)}: [\n{_lines(keys)}\n]" for program, keys in found.items()]
    RECORD.write_text("{\n" + ",\n".join(lines) + "\n}\n")
    print({program: len(keys) for program, keys in found.items()})
    return 0


def _lines(keys: list[list[Any]]) -> str:
    return ",\n".join(json.dumps(one) for one in keys)


def keys_of(adapted: Any) -> list[list[Any]]:
    """Return key and shape of every parameter of the first layer's attention."""
    with fake_world(SINGLE, 0):
        (model,) = build_model(FAMILY, SINGLE, te=True, vocab_rows=FAMILY.vocab)
        held = list(parameters_of(adapted(model), 0))
    return [[one.key, list(one.global_shape)] for one in held if one.key.startswith(ATTENTION)]


def with_bridge(model: Any) -> Any:
    """Return the model with Megatron-Bridge's adapters."""
    from megatron.bridge.peft.lora import LoRA

    adapted = LoRA(dim=4, alpha=8, target_modules=ADAPTED)(model, training=True)
    return adapted[0] if isinstance(adapted, list) else adapted


def with_peft(model: Any) -> Any:
    """Return the model inside of a PEFT model, which mcore-bridge teaches Megatron's layers."""
    from mcore_bridge.tuners import lora  # noqa: F401
    from peft import LoraConfig, get_peft_model

    return get_peft_model(model, LoraConfig(r=4, target_modules=ADAPTED))


if __name__ == "__main__":
    sys.exit(main())
