"""A dump of a real small model, tortured like the others: the model is built once, before a child is forked.

Needs torch, megatron-core and transformers, which nothing else here does.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

FAMILY = "qwen3_moe"
MAX_FRAGMENT_BYTES = 200_000
_FOR_EVER = ExitStack()  # the world that the model lives in


@cache
def _model(reference: Path) -> Any:
    """A model of one rank, whose config is written to `reference`."""
    from tests.phase1_dump.dumped import single_model
    from tests.worlds.checkpoints import write_hf_checkpoint
    from tests.worlds.fake import fake_world
    from tests.worlds.families import by_name
    from tests.worlds.topology import SINGLE

    family = by_name(FAMILY)
    write_hf_checkpoint(family, reference)  # transformers asks torch.distributed who saves
    _FOR_EVER.enter_context(fake_world(SINGLE, 0))
    return single_model(family)


def dumping(out: Path) -> Callable[[], None]:
    """What a child runs: `shardmerge.phase1_dump.dump` of the model, and the exit code that the command would have."""
    reference = out.parent.with_name("live-reference")
    model = _model(reference)

    def run() -> None:
        from tests.phase1_dump.dumped import dumped

        try:
            dumped(model, out, reference, max_fragment_bytes=MAX_FRAGMENT_BYTES)
        except Exception as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
            raise SystemExit(getattr(error, "exit_code", 1)) from error

    return run
