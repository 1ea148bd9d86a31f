"""Model providers for the command: each returns this process's model, or fails as real ones do."""

from __future__ import annotations

import os
import signal
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import distributed

from tests.worlds.families import by_name
from tests.worlds.topology import SINGLE, Topology

NOT_CALLABLE = 7
SLOW_S = 4.0  # much longer than torchrun takes to end a node of which a process has failed


def whole() -> Any:
    """A model in a process that stands alone, without torch.distributed."""
    from tests.worlds.fake import build_model, fake_world

    with fake_world(SINGLE, 0):
        return build_model(by_name("llama"), SINGLE)


def whole_if_no_failure_stands() -> Any:
    """The same, unless an earlier attempt's failure still stands in the folder that WATCHED names."""
    if list(Path(os.environ["WATCHED"]).glob("*.failed.json")):
        raise RuntimeError("others would take this attempt for failed")
    return whole()


def fails() -> Any:
    """What a provider's own defect looks like."""
    raise RuntimeError("no checkpoint to load")


def exits() -> Any:
    """What an argument parser does to arguments it does not know."""
    sys.exit(2)


def ends_as_if_all_were_well() -> Any:
    """What Megatron-LM does with `--exit-on-missing-checkpoint`."""
    sys.exit()


def second_fails_at_once() -> Any:
    """One of two real ranks; rank 1 fails, rank 0 takes its time."""
    from tests.worlds.cpu import prepare
    from tests.worlds.fake import build_model, join_model_parallel

    prepare()
    topology = Topology(dp=2)
    distributed.init_process_group("gloo")
    join_model_parallel(topology)
    model = build_model(by_name("llama"), topology)
    if os.environ["RANK"] == "1":
        raise RuntimeError("rank 1 cannot read its shard")
    time.sleep(SLOW_S)
    return model


def whole_that_stops() -> Any:
    """The same model in a process that stops, as by Ctrl-Z, just before its first call that STOPS_AT describes.

    STOPS_AT is the name of an event of sys.audit and a pattern of file names: `os.mkdir .rank-*`.
    """
    wanted, pattern = os.environ["STOPS_AT"].split()
    stopped: list[str] = []

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        if event == wanted and not stopped and fnmatchcase(os.path.basename(str(arguments[0])), pattern):
            stopped.append(event)
            os.kill(os.getpid(), signal.SIGSTOP)

    sys.addaudithook(watch)
    return whole()
