"""A table of one's own, as docs/contribute/architecture.md writes it: dumped, merged, and refused where it must be."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from importlib import import_module
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner, Result

from shardmerge.common.architectures import TABLES, Architecture, Layout, own
from shardmerge.common.architectures.digest import table_digest
from shardmerge.common.command.group import main
from shardmerge.common.errors import (
    ArchitectureTableError,
    BadInputError,
    TableMismatchError,
    UnclaimedParameterError,
    UnsupportedArchitectureError,
)
from shardmerge.common.errors.several import ProblemsFoundError
from shardmerge.common.manifest import read
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check, merge, merge_part, metadata, verify
from tests.worlds.checkpoints import read_hf_tensors
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import Family, by_name
from tests.worlds.filling import expected, fill
from tests.worlds.topology import SINGLE, Topology

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "contribute" / "architecture.md"
ACME: Family = by_name("qwen3_moe")
CUT = Topology(tp=2, pp=2, ep=2, etp=2, dp=2)
NAME = "AcmeMoeForCausalLM"
WHERE = "acme_tables:ACME_MOE"
SHARDMERGE = "from shardmerge.common.command.group import main; main()"
MOST_LINES = 60


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the path of this process with the page's module, and others that are wrong."""
    folder = tmp_path_factory.mktemp("lab")
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    (folder / "acme_tables.py").write_text(block)
    (folder / "acme_broken.py").write_text("raise RuntimeError('no such cluster')\n")
    (folder / "acme_other.py").write_text(OTHER)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))
    for name in ("acme_tables", "acme_broken", "acme_other"):
        sys.modules.pop(name, None)


OTHER = """
from dataclasses import replace
from acme_tables import ACME_MOE

NOT_ONE = 7
# the norms of a layer exchanged
first, second = (row for row in ACME_MOE.rows if "norm_" in row.targets[0].name)
turned = {first: replace(first, targets=second.targets), second: replace(second, targets=first.targets)}
EXCHANGED = replace(ACME_MOE, rows=tuple(turned.get(row, row) for row in ACME_MOE.rows))
FEWER = replace(ACME_MOE, rows=ACME_MOE.rows[:-3])
"""


@pytest.fixture(scope="module")
def reference(lab: Path) -> Path:
    """config.json alone, in Acme's words."""
    folder = lab / "acme-hf"
    folder.mkdir()
    assert ACME.experts is not None
    config = {
        "architectures": [NAME],
        "hidden_size": ACME.hidden,
        "num_hidden_layers": ACME.layers,
        "num_attention_heads": ACME.heads,
        "num_key_value_heads": ACME.groups,
        "head_dim": ACME.head_channels,
        "vocab_size": ACME.vocab,
        "num_experts": ACME.experts.num_experts,
        "expert_size": ACME.experts.width,
        "num_experts_per_tok": ACME.experts.top_k,
        "rms_norm_eps": ACME.norm_eps,
        "rope_theta": float(ACME.rope_theta),
        "torch_dtype": "bfloat16",
    }
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def dumped(lab: Path, reference: Path) -> Path:
    """A dump of all ranks of a world that cuts everything, with the page's table."""
    return dump_filled(lab / "dump", reference, CUT, WHERE)


def dump_filled(out: Path, reference: Path, topology: Topology, table: str | Architecture | None) -> Path:
    for rank in range(topology.world_size):
        with fake_world(topology, rank):
            chunks = build_model(ACME, topology)
            fill(chunks, ACME, topology, rank)
            dump(chunks, out, hf_reference=reference, run_id="acme", step=1, architecture=table)
    return out


def table(name: str = "ACME_MOE", module: str = "acme_tables") -> Architecture:
    found: Architecture = getattr(import_module(module), name)
    return found


def by_hand() -> dict[str, torch.Tensor]:
    """Every tensor that Acme-MoE has, by the names that the page promises, from what the formula gives Megatron's."""
    assert ACME.experts is not None
    hidden, heads, groups, dim = range(ACME.hidden), ACME.heads, ACME.groups, ACME.head_channels
    every = range(ACME.vocab)
    found = {
        "transformer.embed.weight": expected("embedding.word_embeddings.weight", every, hidden),
        "lm_head.weight": expected("output_layer.weight", every, hidden),
        "transformer.norm.weight": expected("decoder.final_layernorm.weight", hidden),
    }
    for layer in range(ACME.layers):
        at, key = f"transformer.blocks.{layer}.", f"decoder.layers.{layer}."
        found[at + "norm_1.weight"] = expected(key + "input_layernorm.weight", hidden)
        found[at + "norm_2.weight"] = expected(key + "pre_mlp_layernorm.weight", hidden)
        # rows group by group: the queries of the group, its key, its value
        per_group = heads // groups
        rows = torch.arange((heads + 2 * groups) * dim).reshape(groups, per_group + 2, dim)
        parts = {"q": rows[:, :per_group], "k": rows[:, per_group], "v": rows[:, per_group + 1]}
        for part, own_rows in parts.items():
            fused = expected(key + "self_attention.linear_qkv.weight", own_rows.flatten().tolist(), hidden)
            found[f"{at}attention.{part}_proj.weight"] = fused
        attention = key + "self_attention."
        inner = range(heads * dim)
        found[at + "attention.o_proj.weight"] = expected(attention + "linear_proj.weight", hidden, inner)
        for side in "qk":
            found[f"{at}attention.{side}_norm.weight"] = expected(
                f"{attention}{side}_layernorm.weight", range(dim)
            )
        experts, width = range(ACME.experts.num_experts), ACME.experts.width
        found[at + "router.weight"] = expected(key + "mlp.router.weight", experts, hidden)
        for expert in experts:
            of, fc1 = f"{at}experts.{expert}.", f"{key}mlp.experts.{expert}.linear_fc1.weight"
            found[of + "gate_proj.weight"] = expected(fc1, range(width), hidden)
            found[of + "up_proj.weight"] = expected(fc1, range(width, 2 * width), hidden)
            down = expected(f"{key}mlp.experts.{expert}.linear_fc2.weight", hidden, range(width))
            found[of + "down_proj.weight"] = down
    return {name: tensor.bfloat16() for name, tensor in found.items()}


def require_right(out: Path) -> None:
    ours, theirs = read_hf_tensors(out), by_hand()
    assert ours.keys() == theirs.keys()
    assert [name for name, tensor in theirs.items() if not torch.equal(tensor, ours[name])] == []


def test_the_page_is_short() -> None:
    (block,) = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(block.splitlines()) <= MOST_LINES


def test_the_page_makes_a_checkpoint_with_every_value_in_its_place(
    dumped: Path, reference: Path, tmp_path: Path
) -> None:
    """Merged by workers that are spawned, and by an executor whose processes cannot import the table."""
    assert read(dumped / "rank-00003" / "manifest.json").facts.table == table_digest(table())
    check([dumped], hf_reference=reference, architecture=WHERE)
    merge([dumped], tmp_path / "out", hf_reference=reference, architecture=WHERE, workers=2)
    require_right(tmp_path / "out")
    with ProcessPoolExecutor(
        2, get_context("spawn"), initializer=sys.path.remove, initargs=(sys.path[0],)
    ) as pool:
        merge([dumped], tmp_path / "other", hf_reference=reference, architecture=table(), executor=pool)
    require_right(tmp_path / "other")
    for part in ("1/2", "2/2"):
        merge_part([dumped], tmp_path / "parts", part, hf_reference=reference, architecture=WHERE, workers=1)
    merge([dumped], tmp_path / "parts", hf_reference=reference, architecture=WHERE, workers=1, finalize=True)
    require_right(tmp_path / "parts")
    assert verify(tmp_path / "out", architecture=WHERE).warnings == ()
    corrected = metadata(tmp_path / "out", architecture=WHERE, new_corrections=["config.eos_token_id=5"])
    assert "config.json" in corrected.changed


def shardmerge(lab: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, in which torch cannot be imported."""
    without_torch = "import sys; sys.modules['torch'] = None; "
    paths = os.pathsep.join([str(lab), os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", without_torch + SHARDMERGE, *arguments],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )


def test_every_command_of_phase_two_takes_it_where_torch_is_not_installed(
    lab: Path, dumped: Path, reference: Path, tmp_path: Path
) -> None:
    out, at = str(tmp_path / "out"), ("--architecture", WHERE)
    from_reference = (*at, "--hf-reference", str(reference))
    for arguments in (
        ("check", str(dumped), *from_reference),
        ("merge", str(dumped), out, *from_reference),
        ("metadata", out, *at, "--set", "config.rope_theta=10000.5", "--allow", "config"),
        ("verify", out, *at),
    ):
        done = shardmerge(lab, *arguments)
        assert done.returncode == 0, done.stderr
    require_right(tmp_path / "out")
    unknown = shardmerge(lab, "check", str(dumped), "--hf-reference", str(reference))
    assert unknown.returncode == 5
    assert f"No table for architecture {NAME}" in unknown.stderr
    assert "docs/contribute/architecture.md" in unknown.stderr


WRONG = [
    ("acme_tables", "not spelled package.module:TABLE"),
    (":ACME_MOE", "not spelled package.module:TABLE"),
    ("acme_tables:", "not spelled package.module:TABLE"),
    ("acme_tables:ACME.MOE", "not spelled package.module:TABLE"),
    ("acme.no_such:ACME_MOE", "No module named 'acme'"),
    ("acme_broken:ACME_MOE", "RuntimeError: no such cluster"),
    ("acme_tables:ACME", "has no attribute 'ACME'"),
    ("acme_other:NOT_ONE", "it is a int, and not an Architecture"),
]


@pytest.mark.parametrize(("where", "says"), WRONG)
def test_what_is_not_a_table_is_refused(
    where: str, says: str, lab: Path, reference: Path, tmp_path: Path
) -> None:
    """By every command, before it does anything else: nothing of what they are given exists."""
    nowhere = str(tmp_path / "nowhere")
    provider = ["--model-provider", "no.such:model", "--run-id", "r", "--step", "1", "--wait", "0"]
    for arguments in (
        ["dump", *provider, "--out", str(tmp_path / "dump"), "--hf-reference", nowhere],
        ["check", nowhere, "--hf-reference", nowhere],
        ["merge", nowhere, str(tmp_path / "out"), "--hf-reference", nowhere],
        ["metadata", nowhere],
        ["verify", nowhere],
    ):
        result = invoke(*arguments, "--architecture", where, "--json")
        facts = json.loads(result.stdout)
        assert (result.exit_code, facts["error"], facts["table"]) == (2, "ArchitectureTableError", where), (
            arguments
        )
        assert says in facts["message"]
        assert says in facts["reason"]
    assert not (tmp_path / "out").exists()


def invoke(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments))


def test_another_table_than_the_dump_was_made_with_is_refused(
    lab: Path, dumped: Path, reference: Path, tmp_path: Path
) -> None:
    """Its norms are exchanged: all names, shapes and dtypes fit, and no check but this one can know."""
    other, digests = (
        "acme_other:EXCHANGED",
        (table_digest(table()), table_digest(table("EXCHANGED", "acme_other"))),
    )
    merge([dumped], tmp_path / "right", hf_reference=reference, architecture=WHERE, workers=1)
    out, of = str(tmp_path / "out"), ("--hf-reference", str(reference), "--architecture", other, "--json")
    for arguments in (
        ("check", str(dumped), *of),
        ("merge", str(dumped), out, *of),
        ("metadata", str(tmp_path / "right"), *of[2:]),
        ("verify", str(tmp_path / "right"), *of[2:]),
    ):
        facts = json.loads((result := invoke(*arguments)).stdout)
        assert (result.exit_code, facts["error"]) == (4, "TableMismatchError"), facts
        assert (facts["dumped"], facts["given"], facts["architecture"]) == (*digests, NAME)
    assert not Path(out).exists()
    said = f"facts.table={digests[1]}"  # whoever knows that both mean the same may say so
    check([dumped], hf_reference=reference, architecture=other, corrections=[said])


def test_ranks_with_different_tables_are_refused(lab: Path, reference: Path, tmp_path: Path) -> None:
    for rank, where in enumerate((WHERE, "acme_other:EXCHANGED")):
        with fake_world(two := Topology(dp=2), rank):
            model = build_model(ACME, two)
            dump(model, tmp_path / "dump", hf_reference=reference, run_id="acme", step=1, architecture=where)
    with pytest.raises(Exception, match=r"facts\.table") as error:
        check([tmp_path / "dump"], hf_reference=reference, architecture=WHERE)
    assert error.value.exit_code == 4  # type: ignore[attr-defined]


def test_a_row_that_lacks_names_its_parameters_and_the_page(
    lab: Path, reference: Path, tmp_path: Path
) -> None:
    """All of them at once: the experts of the decoder, of which there are three a layer."""
    few = replace(table(), rows=tuple(row for row in table().rows if "experts" not in row.targets[0].name))
    with fake_world(SINGLE, 0), pytest.raises(ProblemsFoundError) as error:
        dump(
            build_model(ACME, SINGLE), tmp_path, hf_reference=reference, run_id="a", step=1, architecture=few
        )
    assert len(error.value.problems) == ACME.layers * 8 * 3
    first = error.value.problems[0]
    assert isinstance(first, UnclaimedParameterError)
    assert "docs/contribute/architecture.md" in first.message()


def test_a_table_of_another_architecture_is_refused(lab: Path, reference: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInputError, match=f"a table of Other, but config.json names {NAME}"):
        check([tmp_path], hf_reference=reference, architecture=replace(table(), name="Other"))


def spoiled(change: Callable[[Any], Any]) -> Architecture:
    """The page's table, of which the row of the router was changed."""
    rows = tuple(change(row) if "router" in row.targets[0].name else row for row in table().rows)
    return replace(table(), rows=rows)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda row: replace(row, keys=(row.keys[0].replace("{layer}", "0"),)), "holds a number"),
        (
            lambda row: replace(row, keys=("decoder.layers.{layer}.mlp.experts.experts.{expert}.x",)),
            "has no {expert}",
        ),
        (lambda row: replace(row, targets=(replace(row.targets[0], name="router"),)), "has no {layer}"),
        (
            lambda row: replace(row, keys=("embedding.word_embeddings.weight",), where="model"),
            "two rows claim",
        ),
        (
            lambda row: replace(row, targets=(replace(row.targets[0], shape=("x", "y")),)),
            "needs the dimension x",
        ),
        (lambda row: replace(row, where="sparse"), "gives no set sparse"),
        (lambda row: replace(row, layout=Layout.PACKED, sections=("z",)), "needs the dimension z"),
    ],
)
def test_a_table_that_cannot_work_is_refused_before_anything_is_read(
    change: Any, says: str, lab: Path, reference: Path, tmp_path: Path
) -> None:
    with pytest.raises(ArchitectureTableError, match=re.escape(says)):
        check([tmp_path], hf_reference=reference, architecture=spoiled(change))


def test_dimensions_that_a_layout_needs_are_asked_for(lab: Path, reference: Path, tmp_path: Path) -> None:
    def without_heads(config: Any) -> dict[str, int]:
        return {name: size for name, size in table().dimensions(config).items() if name != "groups"}

    lacking = replace(table(), dimensions=without_heads)
    with fake_world(SINGLE, 0), pytest.raises(ArchitectureTableError, match=r"dimensions\(\) lacks groups"):
        dump(
            build_model(ACME, SINGLE),
            tmp_path,
            hf_reference=reference,
            run_id="a",
            step=1,
            architecture=lacking,
        )


def test_a_setting_that_nobody_knows_is_refused(lab: Path, reference: Path, tmp_path: Path) -> None:
    strange = replace(table(), settings=(replace(table().settings[0], setting="colour"),))
    with pytest.raises(ArchitectureTableError, match="there is no setting colour"):
        check([tmp_path], hf_reference=reference, architecture=strange)


def test_tables_of_shardmerge_have_none_of_these_faults() -> None:
    assert [
        name for name in (own.named(one).name for one in TABLES) if name not in {one.name for one in TABLES}
    ] == []


def test_an_installed_package_has_its_table_found(
    lab: Path, dumped: Path, reference: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By an entry point, as the page writes it; by two packages it is refused."""
    (block,) = re.findall(r"^```toml\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    group, entry = re.findall(r'"(shardmerge.*?)"\]\n(.*)', block)[0]
    with pytest.raises(UnsupportedArchitectureError):
        check([dumped], hf_reference=reference)
    install(tmp_path / "site", "acme", group, entry.replace('"', "").replace("acme.tables", "acme_tables"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert check([dumped], hf_reference=reference).architecture == NAME
    assert NAME in own.installed_names()
    install(tmp_path / "site", "acme_too", group, f"{NAME} = acme_other:EXCHANGED")
    with pytest.raises(ArchitectureTableError, match="there is more than one table"):
        check([dumped], hf_reference=reference)
    with pytest.raises(TableMismatchError):
        check([dumped], hf_reference=reference, architecture="acme_other:EXCHANGED")


def install(site: Path, package: str, group: str, entry: str) -> None:
    """What pip leaves of a package that names an entry point."""
    folder = site / f"{package}-1.0.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(f"[{group}]\n{entry}\n")
