"""Writes `modelopt_run_config.yaml` as Model-Optimizer 0.41 does beside every checkpoint of Megatron-LM.

    pip install --no-deps --target build/modelopt-0.41.0 nvidia-modelopt==0.41.0
    PYTHONPATH=build/modelopt-0.41.0:. python -m tests.phase1_dump.checkpoint.older_modelopt OUT

OUT then holds the file of the model that the other tests here save; it is `saved_by_older/modelopt-0.41.0.yaml`.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE


def main(out: Path) -> None:
    """Let modelopt record the config of a model."""
    from modelopt.torch.opt.plugins.mcore_dist_checkpointing import save_sharded_modelopt_state

    out.mkdir(parents=True, exist_ok=True)
    with fake_world(SINGLE, 0):
        save_sharded_modelopt_state(build_model(by_name("qwen3_moe"), SINGLE), out)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
