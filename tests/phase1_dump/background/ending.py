"""A process that dumps beside its work and then ends in the way that it is told: `python -m ... WAY FOLDER REFERENCE`.

Prints the process id of its writer, whom it stops before the dump begins unless it is to end by itself.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

WAYS = (
    "returns",
    "raises",
    "waits",
    "killed",
    "exits-hard",
    "killed-beside-a-fork",
    "told-to-end",
    "terminated",
)


def main(way: str, folder: Path, reference: Path) -> None:
    from shardmerge.phase1_dump import dump_async, prepare
    from shardmerge.phase1_dump.dump_in_background import background_of
    from tests.phase1_dump.dumped import GENERATION, single_model
    from tests.worlds.fake import fake_world
    from tests.worlds.families import by_name
    from tests.worlds.topology import SINGLE

    with fake_world(SINGLE, 0):
        model = single_model(by_name("qwen3_moe"))
        prepare(1 << 20)
        writer = background_of(os.getpid()).writer
        assert writer is not None
        print(writer.process.pid, flush=True)
        if way not in ("returns", "raises", "waits"):
            os.kill(writer.process.pid, signal.SIGSTOP)
        if way == "killed-beside-a-fork" and not os.fork():
            time.sleep(30)  # as a process of a data loader, which holds everything open that its parent had
            os._exit(0)
        dumping = dump_async(model, folder, hf_reference=reference, **GENERATION)
    if way == "waits":
        dumping.wait()
    elif way == "raises":
        raise KeyError("training failed")
    elif way == "told-to-end":
        _end_as_told(writer.process.pid)
    elif way == "exits-hard":
        os._exit(7)
    elif way == "terminated":
        os.killpg(0, signal.SIGTERM)
    elif way.startswith("killed"):
        os.kill(os.getpid(), signal.SIGKILL)


def _end_as_told(writer: int) -> None:
    """A scheduler tells the whole job, before it is requeued; the handler is as Megatron-LM's."""
    signals = list[int]()
    signal.signal(signal.SIGTERM, lambda number, _frame: signals.append(number))
    os.killpg(0, signal.SIGTERM)
    os.kill(writer, signal.SIGCONT)
    assert signals


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
