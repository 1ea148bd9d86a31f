"""What every test may ask for: pools of real ranks, Transformer Engine's folder, and a record of what was tested.

Decides which tests are skipped, which share a process under xdist, and where the record goes. Must not know
what any test does.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import shutil
import signal
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import matrix

RANK_POOLS = ("ranks", "te_ranks", "pool", "te_pool")
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
TE_PATH = Path(sys.prefix) / "te-python"


@pytest.fixture(scope="session")
def te_path(request: pytest.FixtureRequest) -> Path:
    """The folder beside the environment that holds Transformer Engine's Python classes, kernels absent."""
    folder = request.config.getoption("--te-path")
    if folder is None:
        pytest.skip(f"{TE_PATH} is missing: make setup brings Transformer Engine's Python classes")
    return Path(folder)


@pytest.fixture(scope="session")
def browser() -> str:
    """The browser of tests that are marked `browser`."""
    found = chromium()
    assert found is not None, "mark the test with pytest.mark.browser"
    return found


@pytest.fixture(scope="session")
def ranks() -> Iterator[Any]:
    """Eight processes that become the ranks of one gloo world after another."""
    from tests.worlds.gloo import GlooRanks

    with GlooRanks() as pool:
        yield pool


@pytest.fixture(scope="session")
def te_ranks(te_path: Path) -> Iterator[Any]:
    """The same with Transformer Engine's classes importable."""
    from tests.worlds.gloo import GlooRanks

    with GlooRanks(te_path=str(te_path)) as pool:
        yield pool


@pytest.fixture
def tested(record_property: Callable[[str, object], None]) -> Callable[[str, str, str], None]:
    """Call `tested(architecture, topology, how)`: the README's matrix shows it if the test then passes.

    `how` is one of `matrix.HOW`.
    """

    def record(architecture: str, topology: str, how: str) -> None:
        record_property(matrix.PROPERTY, matrix.cell(architecture, topology, how))

    return record


def pytest_addoption(parser: pytest.Parser) -> None:
    te_path = str(TE_PATH) if TE_PATH.is_dir() else None
    parser.addoption("--te-path", metavar="DIR", default=te_path, help="folder of TE's Python-only wheel")
    parser.addoption(
        "--sample", type=int, default=1, metavar="N", help="of the tests that --sample-of says run one in N"
    )
    parser.addoption(
        "--sample-of",
        choices=["alike", "all"],
        default="alike",
        help="those marked `sampled`, or all but those marked `always`",
    )
    parser.addoption("--seed", metavar="TEXT", help="which of them; printed if it is not given")
    parser.addoption(
        "--matrix", metavar="FILE", help="write which architectures and topologies passed, as JSON"
    )


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell ignores it for background jobs
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if not hasattr(config, "workerinput") and config.option.seed is None:
        config.option.seed = secrets.token_hex(4)  # workers of xdist get all options
    if config.getoption("--matrix") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(_Recorder(Path(config.getoption("--matrix"))))


def pytest_report_header(config: pytest.Config) -> str | None:
    """Print how to run the same sample again."""
    every, seed = config.getoption("--sample"), config.getoption("--seed")
    everything = config.getoption("--sample-of") == "all"
    which = "all tests but those marked `always`" if everything else "the tests marked `sampled`"
    return None if every == 1 else f"sample: one in {every} of {which}, --seed {seed}"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not in the sample."""
    every, seed = config.getoption("--sample"), config.getoption("--seed")
    everything = config.getoption("--sample-of") == "all"
    left = [
        item
        for item in items
        if (not item.get_closest_marker("always") if everything else item.get_closest_marker("sampled"))
        and zlib.crc32(f"{seed} {item.nodeid}".encode()) % every
    ]
    if left:
        config.hook.pytest_deselected(items=left)
        items[:] = [item for item in items if item not in set(left)]


def pytest_itemcollected(item: pytest.Item) -> None:
    """Keep the users of one pool of ranks in one xdist process: a pool costs half a minute to start."""
    for pool in RANK_POOLS:
        if pool in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.xdist_group(pool))
            return


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not _has_gpu():
        pytest.skip("needs a CUDA device, and torch sees none")
    if item.get_closest_marker("browser") and chromium() is None:
        pytest.skip(f"needs a browser, and none of {', '.join(BROWSERS)} is installed")
    if item.get_closest_marker("reflink") and (os.geteuid() or not shutil.which("mkfs.xfs")):
        pytest.skip("needs root, to mount, and mkfs.xfs")


def chromium() -> str | None:
    """The first browser on the path that takes Chromium's options."""
    return next((found for name in BROWSERS if (found := shutil.which(name))), None)


def _has_gpu() -> bool:
    if importlib.util.find_spec("torch") is None:
        return False
    import torch

    return torch.cuda.is_available()


class _Recorder:
    """Collects what passed from all processes and writes it once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._cells: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "call" and report.passed:
            self._cells += [str(value) for name, value in report.user_properties if name == matrix.PROPERTY]

    def pytest_sessionfinish(self) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(json.dumps(matrix.collect(self._cells), indent=1, sort_keys=True) + "\n")
