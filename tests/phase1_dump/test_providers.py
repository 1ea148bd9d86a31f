"""Providers of `phase1_dump.providers` as a user gives them to the command: what they load is what was saved."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from shardmerge.common.errors import BadInputError
from shardmerge.phase1_dump import providers
from shardmerge.phase2_merge import diff, merge
from tests.phase1_dump.conftest import References
from tests.worlds.checkpoints import read_hf_tensors

ROOT = Path(__file__).parents[2]
HERE = "tests.phase1_dump.megatron_lm"
needs_megatron_lm = pytest.mark.skipif(
    importlib.util.find_spec("megatron.training") is None,
    reason="this version of megatron-core comes without megatron.training",
)


def called(arguments: Sequence[str], variables: Mapping[str, str]) -> str:
    """Run `python -m` with arguments, and return what was printed; fail with all of it if the program does."""
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "PYTHONWARNINGS": "ignore",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    result = subprocess.run(
        [sys.executable, "-m", *arguments],
        cwd=ROOT,
        env=environment | dict(variables),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert result.returncode == 0, f"{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture(scope="module")
def training_run(references: References, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that Megatron-LM saved checkpoints to."""
    folder = tmp_path_factory.mktemp("megatron-lm") / "run"
    called([HERE, str(references.weights("qwen3_moe")), str(folder)], {})
    return folder


@needs_megatron_lm
@pytest.mark.parametrize(
    ("provider", "ranks"), [("model", 4), pytest.param("model_of_their_own", 1, marks=pytest.mark.sampled)]
)
def test_a_training_run_of_megatron_lm_becomes_the_checkpoint_that_it_began_with(
    provider: str, ranks: int, training_run: Path, references: References, tmp_path: Path
) -> None:
    reference, dump, out = references.weights("qwen3_moe"), tmp_path / "dump", tmp_path / "out"
    called(
        [
            *("torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"),
            *("-m", "shardmerge.phase1_dump", "--model-provider", f"{HERE}:{provider}"),
            *("--hf-reference", str(reference), "--out", str(dump), "--run-id", "run", "--step", "70"),
        ],
        {"MEGATRON_LM_CHECKPOINT": str(training_run)},
    )

    merge([dump], out, hf_reference=reference)

    difference = diff(out, reference)
    assert len([*dump.glob("rank-*")]) == ranks
    assert difference.equal == len(read_hf_tensors(reference))
    assert (difference.differing, difference.only_a, difference.only_b) == ((), (), ())


@pytest.mark.skipif(
    importlib.util.find_spec("megatron") is None or importlib.util.find_spec("megatron.bridge") is None,
    reason="Megatron-Bridge is not installed, with all that its training needs",
)
def test_a_checkpoint_of_megatron_bridge_becomes_the_one_that_it_imported(
    references: References, tmp_path: Path
) -> None:
    reference, dump, out = references.weights("qwen3_moe"), tmp_path / "dump", tmp_path / "out"
    bridge = "tests.phase1_dump.megatron_bridge"
    alone = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "29561"}
    called([bridge, str(reference), str(tmp_path / "bridge")], alone)
    called(
        [
            *("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", bridge, "dump"),
            *("--model-provider", f"{bridge}:model", "--hf-reference", str(reference)),
            *("--out", str(dump), "--run-id", "run", "--step", "70"),
        ],
        {"MEGATRON_BRIDGE_CHECKPOINT": str(tmp_path / "bridge")},
    )

    merge([dump], out, hf_reference=reference)

    assert diff(out, reference).equal == len(read_hf_tensors(reference))


@needs_megatron_lm
@pytest.mark.filterwarnings("ignore:'type' is deprecated:DeprecationWarning")  # of its parser, by argparse
@pytest.mark.parametrize(
    ("added", "says"),
    [
        ("", "Megatron-LM's arguments name no checkpoint"),
        ("--load {empty}", "{empty}: there is no latest_checkpointed_iteration.txt"),
        ("--load {run} --dist-ckpt-strictness log_all", "log_all leaves parameters random"),
    ],
)
def test_arguments_of_megatron_lm_that_would_leave_weights_random_are_refused(
    added: str, says: str, tmp_path: Path
) -> None:
    """Megatron-LM itself goes on with random weights, and says so in its log."""
    folders = {"empty": tmp_path / "empty", "run": tmp_path / "run"}
    for folder in folders.values():
        folder.mkdir()
    (tmp_path / "run" / providers.TRACKER).write_text("70")
    before = list(sys.argv)

    with pytest.raises(BadInputError) as refused:
        providers.megatron_lm(added.format(**folders))

    assert says.format(**folders) in f"{refused.value.message()}"
    assert sys.argv == before
