"""Folders in which the commands of a page of the documentation run as they are printed, and who prepares them.

Decides which dumps, references and outputs a page finds. Must not know what its commands do.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import distributed
import numpy as np

from shardmerge.phase2_merge import merge
from tests.dumps import dumps
from tests.dumps.dumps import Topology
from tests.dumps.quantized_dumps import dump_quantized
from tests.phase2_merge.proof.config.mtp_dumps import NEMOTRON, Written, nemotron_shapes
from tests.worlds.checkpoints import config_json, write_hf_checkpoint
from tests.worlds.families import by_name
from tests.worlds.gloo import GlooRanks
from tests.worlds.quantizing import QWEN3_MOE
from tests.worlds.topology import SINGLE

ROOT = Path(__file__).resolve().parents[2]
REFERENCE, DUMP, TUNED = "Qwen3-30B-A3B", "dump", "Qwen3-30B-A3B-tuned"
VOCAB = 151936  # of Qwen3, which a page names
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.M | re.S)
# beginnings of blocks that are not run -> why, and what runs instead
NOT_RUN = {
    "pip install": "tests/test_wheel.py installs the wheel in environments of its own.",
    "make setup": "These are the verbs of the Makefile, of which this test is a part.",
    "torchrun --nproc-per-node 8 -m shardmerge.phase1_dump --architecture": "tests/journeys/test_own_table.py runs it.",
    "job=$(sbatch": "It needs Slurm.",
    "dump=$1": "It needs Slurm.",
    "hf upload": "It needs an account; which files it selects is tested by the Hub's own filter.",
}


@dataclass(frozen=True, slots=True)
class Block:
    """Lines of one block, and the number of its first line in the page."""

    line: int
    text: str

    @property
    def why_not(self) -> str:
        """Return why it is not run, "" if it is."""
        commands = [line for line in self.text.splitlines() if line and not line.startswith("#")]
        return next((why for begin, why in NOT_RUN.items() if commands[0].startswith(begin)), "")


def blocks(page: Path, language: str = "bash") -> Iterator[Block]:
    """Yield the blocks of a page that are in a language."""
    text = page.read_text()
    for found in BLOCK.finditer(text):
        if found[1] == language:
            yield Block(text.count("\n", 0, found.start()) + 1, found[2])


def run(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    """Run a block in a folder as a shell would that stops at the first failure.

    Raises AssertionError with what it printed if it fails.
    """
    programs = str(Path(sys.executable).parent)
    paths = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
    given = os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1"} | dict(environment)
    given["PATH"] = os.pathsep.join([programs, given["PATH"]])
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    ended = subprocess.run(command, cwd=folder, env=given, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, f"line {block.line}: {block.text}\n{ended.stdout}\n{ended.stderr}"


# ---- what a page finds ---------------------------------------------------------------------------------------------


def qwen3_moe(folder: Path) -> None:
    """A reference and its dump on four ranks."""
    model = dumps.model_of(dumps.moe_config(rope_theta=10000.0, norm_topk_prob=False))
    dumps.write_reference(folder / REFERENCE, model)
    topology = Topology(tp=2, pp=2)
    dumps.write_dump(folder / DUMP, model, dumps.cuts_of(model, topology), topology)


def merged(folder: Path) -> None:
    """The same, and what was merged of it."""
    qwen3_moe(folder)
    merge([folder / DUMP], folder / TUNED, hf_reference=folder / REFERENCE, workers=1)


def miscounted(folder: Path) -> None:
    """A dump that says of a vocabulary of Qwen3's size that it is smaller."""
    shutil.rmtree(folder / DUMP, ignore_errors=True)
    config = dumps.moe_config(vocab_size=VOCAB)
    model = dumps.model_of(config)
    for name in ("model.embed_tokens.weight", "lm_head.weight"):
        shape = (VOCAB, config["hidden_size"])
        model.tensors[name] = ("BF16", shape, bytes(2 * int(np.prod(shape))))
    path = folder / REFERENCE / "config.json"
    path.write_text(json.dumps(config))
    facts = dumps.facts_of(config)
    dumps.write_dump(folder / DUMP, model, dumps.cuts_of(model, Topology()), Topology(), facts=facts)


def two_nodes(folder: Path) -> None:
    """Instead of the dump that is there, one whose ranks lie on two disks."""
    shutil.rmtree(folder / REFERENCE, ignore_errors=True)
    shutil.rmtree(folder / DUMP, ignore_errors=True)
    qwen3_moe(folder)
    for node, ranks in (("node-0", (0, 1)), ("node-1", (2, 3))):
        for rank in ranks:
            name = f"{DUMP}/rank-{rank:05d}"
            (folder / node / DUMP).mkdir(parents=True, exist_ok=True)
            shutil.move(folder / name, folder / node / name)
    (folder / DUMP).rmdir()


def with_provider(folder: Path) -> dict[str, str]:
    """A reference, a Megatron checkpoint of it, and a module that loads that checkpoint on eight ranks."""
    made = folder.parent / "with-provider"  # by the first page that needs it
    if not made.exists():
        command = [sys.executable, "-W", "ignore", "-m", "tests.demo.model"]
        subprocess.run([*command, str(made / REFERENCE), str(made / "megatron")], cwd=ROOT, check=True)
    shutil.copytree(made / REFERENCE, folder / REFERENCE)
    (folder / "my_job").mkdir()
    (folder / "my_job/export.py").write_text("from tests.demo.model import load as model\n")
    return {"SHARDMERGE_DEMO_CHECKPOINT": str(made / "megatron"), "PYTHONWARNINGS": "ignore"}


def on_disk(folder: Path) -> dict[str, str]:
    """A reference, and a checkpoint of the same model that megatron-core saved."""
    environment = with_provider(folder)
    shutil.copytree(environment["SHARDMERGE_DEMO_CHECKPOINT"], folder / "iter_0120000")
    return environment


def with_tower(folder: Path) -> None:
    """A dump of a language model, and a reference that holds a vision tower beside it."""
    family = by_name("qwen3_vl_moe")
    with GlooRanks(size=1) as ranks:
        ranks.call(write_hf_checkpoint, family, folder / "Qwen3-VL-30B-A3B")
        ranks.call(dump_quantized, family, SINGLE, "none", folder / DUMP, folder / "Qwen3-VL-30B-A3B")


def with_steps(folder: Path) -> None:
    """Instead of the dump that is there, one with a step of multi-token prediction, and its reference."""
    shutil.rmtree(folder / DUMP, ignore_errors=True)
    written = Written(folder, NEMOTRON, nemotron_shapes())
    written.reference.rename(folder / "NVIDIA-Nemotron-3-Super-120B-A12B-BF16")


def quantized(folder: Path) -> None:
    """What was merged of a model of one layer that Model-Optimizer quantized to FP8."""
    family = replace(QWEN3_MOE, layers=1)
    reference, dump = folder / "fp8-reference", folder / "fp8-dump"
    reference.mkdir()
    config = config_json(family)
    (reference / "config.json").write_text(json.dumps(config))
    with GlooRanks(size=1) as ranks:
        ranks.call(dump_quantized, family, SINGLE, "FP8", dump, reference)
    merge([dump], folder / "Qwen3-30B-A3B-FP8", hf_reference=reference, workers=1)


@contextmanager
def dask_cluster() -> Iterator[dict[str, str]]:
    """A scheduler with one worker process on this host; yields the variable that names it."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=True, dashboard_address="127.0.0.1:0", memory_limit=0
    ) as local:
        yield {"DASK_SCHEDULER_ADDRESS": local.scheduler_address}
