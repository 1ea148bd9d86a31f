"""The page of `inspect --html` in a real browser without a screen: what is drawn, where, in which colour."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import subprocess
from html import unescape
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from shardmerge.common.command.group import main
from tests.dumps.dumps import Topology, moe_config
from tests.dumps.worlds import MakeWorld

pytestmark = pytest.mark.browser

GREEN, YELLOW, RED = "rgb(58, 157, 93)", "rgb(230, 180, 34)", "rgb(214, 69, 69)"
# what the browser made of the page, left where --dump-dom shows it
LOOK = """<pre id="seen"></pre><script>
const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] };
document.getElementById("seen").textContent = JSON.stringify({
  cells: [...document.querySelectorAll(".map td")].map(
    e => [e.title, getComputedStyle(e).backgroundColor, ...box(e)]),
  bars: [...document.querySelectorAll(".bar")].map(e => box(e)[2]),
  problems: [...document.querySelectorAll("li")].map(e => e.innerText),
  headings: [...document.querySelectorAll("h2")].map(e => e.innerText),
  loaded: performance.getEntriesByType("resource").map(e => e.name),
  wider: document.documentElement.scrollWidth - document.documentElement.clientWidth})
</script></body>"""


def dom(browser: str, page: Path) -> str:
    """The page as the browser has it after its scripts ran; no address outside this machine can be reached."""
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--host-resolver-rules=MAP * ~NOTFOUND"]
    profile = f"--user-data-dir={page.parent / 'profile'}"
    found = subprocess.run(
        [browser, *quiet, profile, "--window-size=1000,800", "--dump-dom", page.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return found.stdout


@pytest.fixture
def page(world: MakeWorld, tmp_path: Path) -> Path:
    """tp 2, ep 2, pp 2 without rank 7 (layer 1, experts 2 and 3, second half), which failed."""
    one = world(Topology(tp=2, ep=2, pp=2), moe_config()).write()
    shutil.rmtree(one.rank(7))
    record = {"rank": 7, "run_id": "run-1", "failure": {"message": "no <space> left"}}
    (one.dump / "rank-00007.failed.json").write_text(json.dumps(record))
    path = tmp_path / "page.html"
    result = CliRunner().invoke(main, ["inspect", str(one.dump), "--html", str(path)])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture
def seen(page: Path, browser: str) -> Any:
    """What the browser made of it."""
    looked_at = page.with_name("looked-at.html")
    looked_at.write_text(page.read_text().replace("</body>", LOOK))
    found = re.search(r'<pre id="seen">(.*?)</pre>', dom(browser, looked_at), re.S)
    assert found
    return json.loads(unescape(found[1]))


def test_cells_have_the_colours_of_what_is_there(seen: Any) -> None:
    colours = {title: colour for title, colour, *_ in seen["cells"]}
    half = {f"layer 1, expert {expert}: part" for expert in (2, 3)}
    assert {title for title, colour in colours.items() if colour == YELLOW} == half
    assert [title for title, colour in colours.items() if colour == RED] == []
    assert len([colour for colour in colours.values() if colour == GREEN]) == 2 * (1 + 4) - 2


def test_the_map_is_a_grid_of_layers_and_experts(seen: Any) -> None:
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, _, left, top, width, height in seen["cells"]:
        assert width > 8
        assert height > 8
        rows.setdefault(top, []).append((left, width))
    first, second = rows.values()
    assert first == second
    assert len(first) == 5
    assert all(a[0] + a[1] <= b[0] + 0.5 for a, b in itertools.pairwise(first))


def test_problems_sizes_and_headings_are_shown(seen: Any) -> None:
    assert seen["headings"] == ["Problems", "Coverage", "Sizes"]
    assert seen["problems"] == ["rank 7 failed: no <space> left"]
    assert len(seen["bars"]) == 7  # a bar for each rank that is done
    assert max(seen["bars"]) == 400
    assert min(seen["bars"]) > 0


def test_nothing_is_loaded_and_nothing_runs_off_the_page(seen: Any) -> None:
    assert seen["loaded"] == []
    assert seen["wider"] <= 0
