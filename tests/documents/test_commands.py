"""Every command that a page of the documentation prints runs, as it is printed, in a folder that has what it names."""

from __future__ import annotations

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import pytest
from huggingface_hub.utils._paths import filter_repo_objects

from tests.documents import sandbox
from tests.documents.sandbox import ROOT, Block, blocks, run

PAGES: Final = [
    page
    for page in (*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md")))
    if any(not block.why_not for block in blocks(page))
]
# what the commands of a page find when they begin
PREPARED: Final[Mapping[str, Callable[[Path], Any]]] = {
    "README.md": sandbox.with_provider,
    "dump.md": sandbox.with_provider,
    "merge.md": sandbox.qwen3_moe,
    "metadata.md": sandbox.merged,
    "grafts.md": sandbox.with_tower,
    "checkpoint.md": sandbox.on_disk,
}
# words of a block -> what is done before it
BEFORE: Final[Mapping[str, Callable[[Path], Any]]] = {
    "node-0/dump": sandbox.two_nodes,
    "facts.dimensions.vocab": sandbox.miscounted,
    "Qwen3-30B-A3B-FP8": sandbox.quantized,
    "--drop-mtp": sandbox.with_steps,
}


@pytest.mark.xdist_group("documents")  # they share a checkpoint
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_runs_as_it_is_printed(page: Path, tmp_path: Path) -> None:
    environment = PREPARED[page.name](tmp_path) or {}
    for block in blocks(page):
        if not block.why_not:
            _run(block, tmp_path, environment)


def _run(block: Block, folder: Path, environment: Mapping[str, str]) -> None:
    for words, prepare in BEFORE.items():
        if words in block.text:
            prepare(folder)
    if "DASK_SCHEDULER_ADDRESS" in block.text:
        with sandbox.dask_cluster() as address:
            run(block, folder, {**environment, **address})
    elif "SLURM_ARRAY_TASK_ID" in block.text:
        for job in range(1, 5):
            run(block, folder, {**environment, "SLURM_ARRAY_TASK_ID": str(job)})
    else:
        run(block, folder, environment)


def test_the_message_on_the_first_page_is_what_the_command_says(tmp_path: Path) -> None:
    """Of the small model that stands for the one on the page, without the last of its four ranks."""
    sandbox.qwen3_moe(tmp_path)
    shutil.rmtree(tmp_path / sandbox.DUMP / "rank-00003")
    ((command, said),) = (
        block.text.splitlines()
        for block in blocks(ROOT / "README.md", "text")
        if block.text.startswith("$ shardmerge")
    )
    words = [sys.executable, "-m", *shlex.split(command.removeprefix("$ "))]
    ended = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (3, "", f"{said}\n")
    assert not (tmp_path / sandbox.TUNED).exists()


def test_what_a_page_uploads_is_the_model_alone(tmp_path: Path) -> None:
    sandbox.merged(tmp_path)
    ((command, *_),) = (
        [line for line in block.text.splitlines() if line.startswith("hf upload")]
        for block in blocks(ROOT / "docs/guide/loading.md")
    )
    words = shlex.split(command)
    files = [
        str(path.relative_to(tmp_path / words[3]))
        for path in (tmp_path / words[3]).rglob("*")
        if path.is_file()
    ]
    chosen = set(filter_repo_objects(files, ignore_patterns=[words[words.index("--exclude") + 1]]))
    assert chosen == {name for name in files if not name.startswith(".shardmerge/")} < set(files)
    assert "config.json" in chosen
