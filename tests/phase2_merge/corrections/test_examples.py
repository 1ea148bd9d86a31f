"""Every example of `--set` that a document or a message prints: transformers reads the new value of the result."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import transformers
from click.testing import CliRunner

from shardmerge.common.architectures import blueprint
from shardmerge.common.command.group import main
from shardmerge.common.errors import MtpMismatchError
from tests import generate_docs
from tests.dumps.dumps import Topology, moe_config
from tests.dumps.worlds import MakeWorld
from tests.phase2_merge.proof.config.mtp_dumps import DEEPSEEK, Written, deepseek_shapes

ROOT = generate_docs.ROOT
LOG = ROOT / "docs" / "inside" / "log.md"  # tells what did not work, too
EXAMPLE = re.compile(r"--set(?:-new)? (?:'config\.[^']+'|config\.[\w.+]+=[^\s'`\"()<]+)")
MOE = "Qwen3MoeForCausalLM"


def printed() -> Iterator[str]:
    """Every `--set config.KEY=VALUE` of documents and of our sources, in which help and messages stand."""
    documents = [*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if path != LOG)]
    sources = [path for folder in ("common", "phase2_merge") for path in (ROOT / folder).rglob("*.py")]
    of_the_table = MtpMismatchError("", "mtp.fc.weight", "", blueprint(DEEPSEEK).mtp_key)
    for text in (of_the_table.message(), *(path.read_text() for path in (*documents, *sources))):
        yield from (found[0].rstrip(".,;:") for found in EXAMPLE.finditer(text))


NO_VALUE = ("=VALUE", "=")  # ends what says only how an example is written
EXAMPLES = sorted({example for example in printed() if not example.endswith(NO_VALUE)})


def test_the_examples_are_found() -> None:
    assert {
        "--set config.rope_theta=1000000",
        "--set config.rope_theta=5000000",
        "--set config.rope_theta=5",
        "--set-new config.num_nextn_predict_layers=1",
    } <= set(EXAMPLES)


@pytest.mark.parametrize("spelling", ["transformers 5", "older", "both"])
@pytest.mark.parametrize("example", EXAMPLES)
def test_transformers_reads_what_an_example_sets(
    example: str, spelling: str, world: MakeWorld, tmp_path: Path
) -> None:
    words = shlex.split(example)
    key, _, value = words[1].removeprefix("config.").partition("=")
    if key in DEEPSEEK.keys() - moe_config().keys():
        out, command = deepseek(tmp_path, key)
    else:
        out = moe(world, spelling)
        command = ["metadata", str(out)]
        assert read_back(transformers.AutoConfig.from_pretrained(out), key) != json.loads(value)
    done = CliRunner().invoke(main, [*command, *words], catch_exceptions=False)
    assert done.exit_code == 0, done.stderr
    assert read_back(transformers.AutoConfig.from_pretrained(out), key) == json.loads(value)


def test_transformers_goes_on_with_the_old_value_if_only_one_of_two_places_changes(world: MakeWorld) -> None:
    """What `--set` did before it knew that both say the same, with tables that tell so of no key."""
    out = moe(world, "transformers 5")
    path = out / "config.json"
    path.write_text(json.dumps(json.loads(path.read_bytes()) | {"rope_theta": 5000000}))
    assert read_back(transformers.AutoConfig.from_pretrained(out), "rope_theta") == 10000.0


def moe(world: MakeWorld, spelling: str) -> Path:
    """A small Qwen3-MoE that was merged, with a config.json as transformers writes it or wrote it."""
    config = moe_config()
    old = {"rope_theta": config["rope_theta"]}
    written = transformers.Qwen3MoeConfig(**config).to_dict()
    assert written["rope_parameters"]["rope_theta"] == 10000.0
    assert "rope_theta" not in written
    del config["rope_theta"]
    if spelling == "older":
        del written["rope_parameters"]
    one = world(
        Topology(tp=2, ep=2), config | written | (old if spelling != "transformers 5" else {})
    ).write()
    one.merge()
    return one.out


def deepseek(folder: Path, key: str) -> tuple[Path, list[str]]:
    """Where a small DeepSeek-V3 is merged with a step that its config.json denies under this key, and the merge."""
    one, out = Written(folder, DEEPSEEK, deepseek_shapes()), folder / "out"
    one.say({**DEEPSEEK, key: 0})
    return out, ["merge", str(one.dump), str(out), "--hf-reference", str(one.reference), "--workers", "1"]


def read_back(config: Any, key: str) -> Any:
    """What transformers holds under a key of config.json. It keeps all that is about rotation in one object."""
    *objects, last = key.split(".")
    rotation = getattr(config, "rope_parameters", None) or {}
    if last in rotation and objects in ([], ["rope_scaling"], ["rope_parameters"]):
        return rotation[last]
    held = config.to_dict()
    for name in objects:
        held = held[name]
    return held[last]
