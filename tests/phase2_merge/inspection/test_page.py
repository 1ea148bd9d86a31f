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

GREEN, YELLOW = "rgb(58, 157, 93)", "rgb(230, 180, 34)"
# what the browser made of the page, left where --dump-dom shows it
LOOK = """<pre id="seen"></pre><script>
const box = e => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.width, b.height] };
document.getElementById("seen").textContent = JSON.stringify({
  cells: [...document.querySelectorAll(".map rect")].map(
    e => [e.textContent, getComputedStyle(e).fill, ...box(e)]),
  ticks: [...document.querySelectorAll(".tick")].map(e => [e.textContent, ...box(e)]),
  verdict: document.querySelector(".verdict").innerText,
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
    assert colours == {
        "layer 0: whole": GREEN,
        "layer 0, experts 0 to 3: whole": GREEN,
        "layer 1: whole": GREEN,
        "layer 1, experts 0 to 1: whole": GREEN,
        "layer 1, experts 2 to 3: in part": YELLOW,
    }


def test_the_map_is_a_grid_of_layers_and_experts(seen: Any) -> None:
    rows: dict[float, list[tuple[float, float]]] = {}
    for _, _, left, top, width, height in seen["cells"]:
        assert width > 8
        assert height > 8
        rows.setdefault(top, []).append((left, width))
    first, second = rows.values()
    assert (len(first), len(second)) == (2, 3)
    assert first[0] == second[0]
    assert (first[1][0], first[1][1]) == (second[1][0], second[1][1] + second[2][1])
    assert all(a[0] + a[1] <= b[0] + 0.5 for a, b in itertools.pairwise(second))


def test_numbers_of_experts_stand_above_their_cells_and_apart(seen: Any) -> None:
    (zero, left, *_), (two, right, *_) = seen["ticks"]
    experts = seen["cells"][1]
    assert (zero, two) == ("0", "2")
    assert left == pytest.approx(experts[2], abs=2)
    assert right == pytest.approx(experts[2] + experts[4] / 2, abs=2)


def test_problems_sizes_and_headings_are_shown(seen: Any) -> None:
    assert seen["headings"] == ["Problems", "What it is", "Coverage", "Sizes"]
    assert seen["verdict"] == "Not complete: 7 of 8 ranks are there, 2 parts of the map not whole, 1 problem."
    assert seen["problems"] == ["rank 7 failed: no <space> left"]
    assert len(seen["bars"]) == 7  # a bar for each rank that is done
    assert max(seen["bars"]) == 400
    assert min(seen["bars"]) > 0


def test_nothing_is_loaded_and_nothing_runs_off_the_page(seen: Any) -> None:
    assert seen["loaded"] == []
    assert seen["wider"] <= 0
