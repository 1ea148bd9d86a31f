"""`make demo`: every step is a command, printed as it is run, so that it can be repeated by hand."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.demo.model import CHECKPOINT, FAMILY, TOPOLOGY

OUT = Path("demo-out")
BEFORE = "This takes one to two minutes on two cores, and 2 MB in {out}, which is made anew."
ONCE = {2: "dump", 4: "merged"}  # steps that never write over what is there, and what they make
QUIET = {
    "PYTHONWARNINGS": "ignore",
    "TQDM_DISABLE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "OMP_NUM_THREADS": "1",
}
TITLES = (
    "a small random {family} checkpoint by transformers, and the same weights in Megatron's torch_dist format",
    "phase one: the model on {ranks} real processes ({topology}), each writes what it owns",
    "phase two: is everything there?",
    "phase two: one Hugging Face checkpoint",
    "the result, read again byte by byte",
    "the result against the checkpoint it all began with",
)


def commands(out: Path) -> Sequence[Sequence[str]]:
    """The job, step by step."""
    python, programs = os.path.relpath(sys.executable), os.path.relpath(Path(sys.executable).parent)
    shardmerge, reference, dump, merged = f"{programs}/shardmerge", *(f"{out}/{n}" for n in NAMES)
    loading = ["env", f"{CHECKPOINT}={out}/megatron"]
    torchrun = [*loading, python, "-m", "torch.distributed.run", "--nproc-per-node", str(TOPOLOGY.world_size)]
    provider = ["--model-provider", "tests.demo.model:load", "--run-id", "demo", "--step", "100"]
    return (
        [python, "-m", "tests.demo.model", reference, f"{out}/megatron"],
        [*torchrun, "-m", "shardmerge.phase1_dump", *provider, "--hf-reference", reference, "--out", dump],
        [shardmerge, "check", dump, "--hf-reference", reference],
        [shardmerge, "merge", dump, merged, "--hf-reference", reference],
        [shardmerge, "verify", merged],
        [python, "-m", "tests.demo.compare", reference, merged],
    )


NAMES = ("reference", "dump", "merged")


def main(out: Path) -> int:
    """Run all steps; the exit code of the first that fails, else 0."""
    shutil.rmtree(out, ignore_errors=True)
    print(BEFORE.format(out=out), flush=True)
    variables = " ".join(f"{name}={value}" for name, value in QUIET.items())
    print(f"What keeps other libraries from talking:\n  $ export {variables}")
    began = time.monotonic()
    facts = {"family": FAMILY.architecture, "ranks": TOPOLOGY.world_size, "topology": TOPOLOGY.name}
    for number, (title, command) in enumerate(zip(TITLES, commands(out), strict=True), start=1):
        again = f"rm -rf {out}/{ONCE[number]} && " if number in ONCE else ""
        line = again + shlex.join(command)
        print(f"\n[{number}/{len(TITLES)}] {title.format(**facts)}\n  $ {line}", flush=True)
        code = subprocess.run(["bash", "-c", line], env=os.environ | QUIET, check=False).returncode
        if code:
            print(f"\nThat command failed with exit code {code}.", flush=True)
            return code
    print(f"\nDone in {time.monotonic() - began:.0f} s. Every step can be repeated as it is printed.")
    for name, what in zip(("reference", "megatron", "dump", "merged"), WHAT, strict=True):
        print(f"  {out / name!s:<20} {what}")
    return 0


WHAT = (
    "where it began",
    "the same as torch_dist",
    "a directory per rank",
    "the result, for transformers or vLLM",
)


if __name__ == "__main__":
    sys.exit(main(OUT))
