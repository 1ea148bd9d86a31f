"""What `inspect` shows of dumps, of dumps in progress, of outputs; and its page."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path

import pytest
from click.testing import CliRunner

from shardmerge.common.command.group import main
from shardmerge.common.errors import BadInputError
from shardmerge.common.processes import owner
from shardmerge.phase2_merge import diff, inspect, verify
from shardmerge.phase2_merge.inspection.coverage import FULL, NONE, LayerCover, cover
from shardmerge.phase2_merge.inspection.map_drawing import not_whole, svg
from tests.dumps.dumps import Topology, moe_config
from tests.dumps.refusals import edit
from tests.dumps.worlds import MakeWorld


class Cells(HTMLParser):
    """Classes of the map's rectangles by their titles, and every address that the page names."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: dict[str, str] = {}
        self.addresses: list[str] = []
        self.open: list[str] = []
        self.classes: list[str | None] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [str(found[name]) for name in ("src", "href") if name in found]
        self.classes.append(found.get("class"))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag == "path"

    def handle_data(self, data: str) -> None:
        if self.open[-2:] == ["rect", "title"]:
            self.cells[data] = str(self.classes[-2])

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def attempt(dump: Path, rank: int, **changes: object) -> Path:
    """The folder of an attempt by this process, or by one that differs from it."""
    mine = owner.here(f"the dump of rank {rank}")
    folder = dump / f".rank-{rank:05d}.{mine.token}.partial"
    folder.mkdir()
    (folder / "owner.json").write_text(json.dumps(mine.as_json() | changes))
    return folder


def test_a_whole_dump_is_covered_everywhere(world: MakeWorld) -> None:
    one = world(Topology(tp=2, ep=2, pp=2), moe_config()).write()
    found = inspect(one.dump)
    assert found.topology == {"pp": 2, "tp": 2, "ep": 2}
    assert found.ranks.done == tuple(range(8))
    assert [(layer.layer, layer.rest, set(layer.experts)) for layer in found.layers] == [
        (0, "full", {"full"}),
        (1, "full", {"full"}),
    ]
    assert found.total_bytes == sum(len(data) for _, _, data in one.model.tensors.values())
    assert found.problems == ()


def test_it_tells_for_how_long_training_stood_still(world: MakeWorld) -> None:
    """Of ranks that were dumped beside it; what is no number of seconds is passed over."""
    one = world(Topology(tp=2, pp=2)).write()
    for rank, seconds in enumerate((0.25, 1.5, "long", -1)):
        edit(one.dump / f"rank-{rank:05d}" / "manifest.json", statistics={"seconds_stalled": seconds})
    found = inspect(one.dump)
    assert found.stalls == {"rank 0": 0.25, "rank 1": 1.5}
    assert "Training stood still for at most 1.50 s (rank 1)." in found.text()
    assert found.facts()["stalls"] == found.stalls


def test_a_missing_rank_leaves_holes_where_its_experts_were(world: MakeWorld) -> None:
    """tp 1, ep 2, pp 2: rank 3 holds experts 2 and 3 of layer 1."""
    one = world(Topology(ep=2, pp=2), moe_config()).write()
    shutil.rmtree(one.rank(3))
    found = inspect(one.dump)
    assert found.layers[0].experts == ("full",) * 4
    assert found.layers[1].experts == ("full", "full", "none", "none")
    assert "3 of 4 done, 1 not begun (3)" in found.text()


def test_a_missing_piece_makes_a_part_and_a_second_one_a_double(world: MakeWorld) -> None:
    one = world(Topology(tp=2), moe_config())
    name = "model.layers.0.mlp.experts.1.up_proj.weight"
    del one.cuts[name][1]
    one.add(0, "model.layers.1.mlp.experts.2.up_proj.weight", (0, 0), (20, 8))
    found = inspect(one.write().dump)
    assert found.layers[0].experts == ("full", "part", "full", "full")
    assert found.layers[1].experts == ("full", "full", "double", "full")


def test_a_dump_in_progress_shows_who_is_done_running_and_failed(world: MakeWorld) -> None:
    one = world(Topology(tp=2, pp=2)).write()
    mine = attempt(one.dump, 1)
    one.rank(1).rename(mine / "rank-00001")
    shutil.rmtree(one.rank(2))
    record = {"rank": 2, "run_id": "run-1", "failure": {"message": "no space left"}}
    (one.dump / "rank-00002.failed.json").write_text(json.dumps(record))
    found = inspect(one.dump)
    assert (found.ranks.done, found.ranks.running, found.ranks.failed) == ((0, 3), (1,), {2: "no space left"})
    assert found.problems == ("rank 2 failed: no space left",)
    assert "2 of 4 done, 1 running (1), 1 failed (2)" in found.text()
    assert f"Rank 1 is being written by the dump of rank 1 (process {os.getpid()} on " in found.text()
    assert found.facts()["ranks"]["running"] == (1,)
    assert set(found.facts()["ranks"]["writers"]) == {"1"}


def test_a_rank_whose_process_was_killed_is_a_problem_and_not_called_running(world: MakeWorld) -> None:
    one = world(Topology(tp=2, pp=2)).write()
    shutil.rmtree(one.rank(1))
    left = attempt(one.dump, 1, started=1)
    found = inspect(one.dump)
    assert found.ranks.running == ()
    assert "3 of 4 done, 1 not begun (1)" in found.text()
    (problem,) = found.problems
    assert problem.startswith("the process that wrote rank 1 has ended: the dump of rank 1 (process ")
    assert f"{left.name} is left of it, and the next dump of this rank removes it" in problem


def test_an_attempt_on_another_host_may_have_ended(world: MakeWorld) -> None:
    one = world(Topology(tp=2, pp=2)).write()
    shutil.rmtree(one.rank(1))
    attempt(one.dump, 1, host="elsewhere")
    beside = attempt(one.dump, 2, host="elsewhere")
    found = inspect(one.dump)
    assert found.ranks.running == (1,)
    assert "which may have ended: it cannot be seen from here" in found.ranks.writers[1]
    (problem,) = found.problems
    assert problem.startswith(
        f"rank 2 is complete, and {beside.name} beside it belongs to the dump of rank 2"
    )


@pytest.mark.parametrize("held", [None, "fifo", "", "{}", "[" * 100_000, '{"token": 1}'])
def test_an_attempt_with_a_strange_record_is_shown_and_does_not_hinder(
    held: str | None, tmp_path: Path
) -> None:
    folder = tmp_path / "d" / ".rank-00000.0123456789abcdef.partial"
    folder.mkdir(parents=True)
    if held == "fifo":
        os.mkfifo(folder / "owner.json")
    elif held is not None:
        (folder / "owner.json").write_text(held)
    assert "somebody who left no readable record" in inspect(tmp_path / "d").ranks.writers[0]


def test_a_dump_in_which_no_rank_is_done_yet(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    attempt(tmp_path / "d", 0)
    found = inspect(tmp_path / "d")
    assert found.ranks.running == (0,)
    assert "no manifest yet" in found.text()


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match="no rank of a dump and no checkpoint"):
        inspect(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
@pytest.mark.parametrize("look", [inspect, verify, lambda dump: diff(dump, dump)])
def test_ranks_of_another_user_that_may_not_be_read_are_not_taken_for_none(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, look: Callable[[Path], object]
) -> None:
    one = world().write()
    one.rank(0).chmod(0o700)
    one.folder.chmod(0o755)
    monkeypatch.chdir(one.folder)
    os.seteuid(12345)
    try:
        with pytest.raises(PermissionError, match=r"rank-00000/manifest\.json"):
            look(Path("dump"))
    finally:
        os.seteuid(0)


def test_an_output_is_shown_by_shard(world: MakeWorld) -> None:
    one = world(Topology(ep=2), moe_config()).write()
    one.merge()
    found = inspect(one.out)
    assert (found.kind, len(found.sizes)) == ("output", 2)
    assert found.num_tensors == len(one.model.tensors)
    assert all(set(layer.experts) == {"full"} for layer in found.layers)


def test_layers_that_nobody_wrote_are_shown_if_the_dump_says_how_many_there_are() -> None:
    found = cover({"model.layers.0.norm.weight": 1.0}, num_layers=3)
    assert [one.rest for one in found] == ["full", "none", "none"]


def test_page_is_one_file_with_a_rectangle_for_neighbours_of_the_same_state(
    world: MakeWorld, tmp_path: Path
) -> None:
    one = world(Topology(ep=2, pp=2), moe_config()).write(run_id="<script>")
    shutil.rmtree(one.rank(3))
    result = CliRunner().invoke(main, ["inspect", str(one.dump), "--html", str(tmp_path / "page.html")])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "page.html").read_text()
    found = Cells(text)
    assert (found.open, found.addresses) == ([], [])
    assert "<script>" not in text
    assert found.cells == {
        "layer 0: whole": "full",
        "layer 0, experts 0 to 3: whole": "full",
        "layer 1: whole": "full",
        "layer 1, experts 0 to 1: whole": "full",
        "layer 1, experts 2 to 3: nothing": "none",
    }
    assert "Not complete: 3 of 4 ranks are there, 2 parts of the map not whole." in text
    assert "<li>1 rank never began: 3</li>" in text
    assert "Not whole:<br>layer 1, experts 2 to 3: nothing</p>" in text
    assert '<td colspan="3">1 rank never began: 3</td>' in text
    assert f"Looked at on {datetime.now(UTC):%Y-%m-%d} at " in text


def test_a_rank_that_cannot_be_read_hides_no_other(world: MakeWorld, tmp_path: Path) -> None:
    one = world(Topology(tp=2, ep=2), moe_config()).write()
    manifest = one.rank(1) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes()[:200])
    (short,), (gone,) = (list(one.rank(rank).glob("*.safetensors")) for rank in (2, 3))
    with short.open("r+b") as file:
        file.truncate(100)
    gone.unlink()
    result = CliRunner().invoke(main, ["inspect", str(one.dump), "--html", str(tmp_path / "page.html")])

    assert result.exit_code == 4
    assert "Ranks: 3 of 4 done, 1 damaged (1)." in result.stdout
    assert f"Problem: rank 1: {manifest} is not a manifest" in result.stdout
    assert f"Problem: rank 2: {short.name} has 100 bytes, and its manifest says" in result.stdout
    assert f"Problem: rank 3: {gone.name} cannot be read: No such file or directory" in result.stdout
    text = (tmp_path / "page.html").read_text()
    assert "Not complete: 3 of 4 ranks are there" in text
    assert '<td colspan="3">damaged: 1</td>' in text


@pytest.mark.parametrize("spoil", [None, "fragment", "rank", "expert", "manifest"])
def test_the_exit_code_says_what_the_verdict_says_if_it_is_asked(world: MakeWorld, spoil: str | None) -> None:
    """A manifest that cannot be read is an error all the same: no map shows what it said."""
    one = world(Topology(tp=2), moe_config())
    if spoil == "expert":
        del one.cuts["model.layers.1.mlp.experts.2.up_proj.weight"]
    one.write()
    if spoil == "fragment":
        next(one.rank(1).glob("*.safetensors")).unlink()
    elif spoil == "rank":
        shutil.rmtree(one.rank(1))
    elif spoil == "manifest":
        (one.rank(1) / "manifest.json").write_text("{}")
    plain, asked = (
        CliRunner().invoke(main, ["inspect", str(one.dump), "--json", *how]) for how in ([], ["--exit-code"])
    )
    code = 4 if spoil == "manifest" else 0
    assert (plain.exit_code, asked.exit_code) == (code, code or int(spoil is not None))
    facts = json.loads(asked.stdout)
    assert (facts["complete"], facts["ok"]) == (spoil is None, spoil is None)
    shown = CliRunner().invoke(main, ["inspect", str(one.dump)]).stdout
    assert shown.splitlines()[-1] == facts["verdict"]
    assert facts["verdict"].startswith("All 2 ranks are there" if spoil is None else "Not complete: ")


def test_a_last_expert_and_a_last_layer_that_no_file_holds_are_seen_by_config_json(world: MakeWorld) -> None:
    """Nothing in the names of the others shows that there was one more."""
    one = world(config=moe_config()).write(weights=True)
    path = one.reference / "config.json"
    config = json.loads(path.read_text())
    assert inspect(one.reference).verdict()[0]
    path.write_text(json.dumps(config | {"num_experts": 5, "num_hidden_layers": 3}))
    seen = inspect(one.reference)
    assert (seen.layers[1].experts, seen.layers[2].rest) == ((FULL,) * 4 + (NONE,), NONE)
    assert not seen.verdict()[0]


def test_one_rank_is_not_called_all(world: MakeWorld) -> None:
    assert inspect(world().write().dump).verdict()[1].startswith("The only rank is there, every layer")


def test_a_map_of_512_experts_and_108_layers_is_small_and_has_an_axis() -> None:
    layers = tuple(
        LayerCover(
            layer,
            FULL,
            tuple(NONE if (layer, expert) == (50, 300) else FULL for expert in range(512))
            if layer > 2
            else (),
        )
        for layer in range(108)
    )

    drawing = svg(layers)

    assert len(drawing) < 60_000
    assert 'width="1134" height="1098"' in drawing  # two pixels an expert, and ten a layer
    ticks = [int(number) for number in re.findall(r'class="tick"[^>]*>(\d+)<', drawing)]
    assert ticks == list(range(0, 512, 16))
    assert '<rect class="none" x="680" y="518" width="2" height="9">' in drawing
    assert not_whole(layers) == ["layer 50, expert 300: nothing"]


def test_a_map_without_experts_is_drawn() -> None:
    assert '<rect class="part"' in svg((LayerCover(0, FULL, ()), LayerCover(1, "part", ())))


def test_json_holds_the_map_and_the_screen_has_no_colour_without_a_terminal(world: MakeWorld) -> None:
    one = world(Topology(ep=2), moe_config()).write()
    shown = CliRunner().invoke(main, ["inspect", str(one.dump)])
    assert "    0 # ####" in shown.output
    assert "\x1b" not in shown.output
    facts = json.loads(CliRunner().invoke(main, ["inspect", str(one.dump), "--json"]).stdout)
    assert facts["layers"][0] == {"layer": 0, "rest": "full", "experts": ["full"] * 4}
