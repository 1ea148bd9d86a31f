"""Writes run_config.yaml as Megatron-Bridge does, and compares what we read there with what our tables read.

`python -m tests.oracles.run_configs FAMILY ... ` records those of families under `records/run_configs`; without a name
all families that Bridge knows are compared. Exits 1 if a setting differs from what the table reads in config.json.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from shardmerge.common.architectures import blueprint
from shardmerge.common.architectures.settings.vocabulary import agree
from shardmerge.phase1_dump.settings.recorded import recorded_settings
from tests.oracles.bridge import stand_in  # first: it installs Transformer Engine's stub
from tests.oracles.settings import FAMILIES, provider_of, written
from tests.oracles.settings_cases import CASES, WRONG_IN_ORACLE
from tests.oracles.table import MCORE_BRIDGE, ORACLES

RECORDS = Path(__file__).parent / "records" / "run_configs"


def main(names: list[str]) -> int:
    """Compare, and record if families are named. Returns the exit code."""
    stand_in()
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for at, (name, edits) in enumerate(CASES):
            if (names and name not in names) or ORACLES[name].program == MCORE_BRIDGE:
                continue
            path = written(FAMILIES[name], edits, Path(folder) / str(at))
            text = recorded(path)
            told = recorded_settings(yaml.safe_load(text)["model"])
            said = blueprint(json.loads((path / "config.json").read_text())).settings()
            wrong = {
                one: (told[one], said[one].value)
                for one in told.keys() & said.keys() - WRONG_IN_ORACLE.get(name, set())
                if not agree(told[one], said[one].value)
            }
            print(
                f"{name} {sorted(edits)}: {len(told.keys() & said.keys())} recorded, {wrong or 'none'} differ"
            )
            failed |= bool(wrong)
            if names and not edits:
                RECORDS.mkdir(exist_ok=True)
                (RECORDS / f"{name}.yaml").write_text(text)
    return int(failed)


def recorded(path: Path) -> str:
    """Return the run_config.yaml that Bridge writes of the model that it makes of a config.json."""
    from megatron.bridge.training.utils.config_utils import _ConfigContainerBase

    @dataclass
    class Container(_ConfigContainerBase):
        """That of a training needs packages which are not installed; how fields are written is here."""

        model: Any = None

    provider = provider_of(path)
    provider.finalize()
    Container(model=provider).to_yaml(str(path / "run_config.yaml"))
    return (path / "run_config.yaml").read_text()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
