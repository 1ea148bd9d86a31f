"""A language model that was trained beside a vision tower is published with the reference's, or by decision without.

References are what transformers wrote, as published ones are spelt. Megatron's side is real: its own language model and
its own CLIP in one module, on gloo ranks. Numbers of the language model are compared with Megatron-Bridge's record.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from megatron.core.transformer.module import Float16Module
from safetensors.torch import load_file, save_file

from shardmerge.common.command.group import main as command_line
from shardmerge.common.errors import (
    BadInputError,
    ConfigContradictionError,
    MissingTensorError,
    MissingVisionError,
    ProblemsFoundError,
    UnclaimedParameterError,
    UnsupportedParameterError,
)
from shardmerge.phase1_dump import dump
from shardmerge.phase2_merge import check, diff, merge, metadata, verify
from tests.oracles import records
from tests.phase1_dump.dumped import pieces_of
from tests.worlds.checkpoints import hf_class, random_hf_model, read_hf_tensors, write_hf_checkpoint
from tests.worlds.composites import VISION
from tests.worlds.fake import build_model, fake_world
from tests.worlds.families import FAMILIES, Family, by_name
from tests.worlds.filling import fill
from tests.worlds.gloo import GlooRanks
from tests.worlds.topology import SINGLE, Topology
from tests.worlds.vision_language import language_model_of

COMPOSITES = tuple(family for family in FAMILIES if family.is_composite)
MOE = by_name("qwen3_vl_moe")
CUT, CUT_EXPERTS = Topology(tp=2, pp=2), Topology(tp=2, pp=2, ep=2, etp=2, dp=2)
PATTERNS = {
    "qwen3_vl": ["model.visual.*"],
    "qwen3_vl_moe": ["model.visual.*"],
    "kimi_k25": ["vision*", "mm_projector.*"],
    "llama4_vl": ["vision_model.*", "multi_modal*"],
}


def dump_on_rank(rank: int, family: Family, topology: Topology, reference: Path, out: Path) -> None:
    """Fill this rank's part by the formula, and dump it wrapped as training wraps it."""
    chunks = build_model(family, topology)
    fill(chunks, family, topology, rank)
    wrapped = [Float16Module(chunk.config, chunk) for chunk in chunks]
    dump(wrapped, out, hf_reference=reference, run_id="vision", step=3)


def is_vision(name: str) -> bool:
    return name.startswith(VISION)


@pytest.fixture(scope="module")
def references(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By the name of a family. transformers writes all before a world is up."""
    folder = tmp_path_factory.mktemp("vision")
    return {
        family.name: write_hf_checkpoint(family, folder / family.name, max_shard_size="300KB")
        for family in COMPOSITES
    }


@pytest.fixture(scope="module")
def dumps(
    ranks: GlooRanks, references: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """By the name of a family: the dump of real ranks."""
    made = {}
    for family in COMPOSITES:
        topology = CUT if family.experts is None else CUT_EXPERTS
        made[family.name] = tmp_path_factory.mktemp(f"{family.name}-dump")
        ranks.run(dump_on_rank, topology, family, topology, references[family.name], made[family.name])
    return made


@pytest.fixture
def bare(references: dict[str, Path], tmp_path: Path) -> Path:
    """The reference of the MoE without weights."""
    (tmp_path / "bare").mkdir()
    shutil.copy(references[MOE.name] / "config.json", tmp_path / "bare")
    return tmp_path / "bare"


@pytest.mark.parametrize("family", COMPOSITES, ids=lambda family: family.name)
def test_the_documented_graft_gives_a_checkpoint_that_transformers_loads_whole(
    family: Family, dumps: dict[str, Path], references: dict[str, Path], tmp_path: Path
) -> None:
    reference, out = references[family.name], tmp_path / "out"
    arguments = [str(dumps[family.name]), str(out), "--hf-reference", str(reference)]
    grafts = [part for pattern in PATTERNS[family.name] for part in ("--graft", pattern)]
    done = CliRunner().invoke(command_line, ["merge", *arguments, *grafts, "--workers", "1"])
    assert done.exit_code == 0, done.output
    merged, listed = read_hf_tensors(out), read_hf_tensors(reference)
    tower = {name: tensor for name, tensor in listed.items() if is_vision(name)}
    assert {name for name in merged if is_vision(name)} == {*tower}
    assert all(torch.equal(merged[name], tensor) for name, tensor in tower.items())
    language = {name: tensor for name, tensor in merged.items() if not is_vision(name)}
    assert records.differing(language, records.read(family)) == []
    said = json.loads((reference / "config.json").read_text())
    assert json.loads((out / "config.json").read_text()) == said | {
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }
    read, told = hf_class(family).from_pretrained(out, output_loading_info=True, dtype=torch.bfloat16)
    assert [*told["missing_keys"], *told["unexpected_keys"], *told["mismatched_keys"]] == []
    saved = random_hf_model(family).state_dict()
    beside = [name for name in saved if "language_model." not in name and "lm_head" not in name]
    assert len(beside) >= len(tower)  # transformers cuts some in three
    assert all(torch.equal(read.state_dict()[name].float(), saved[name].float()) for name in beside)
    assert verify(out).warnings == ()


def test_ranks_write_columns_of_packed_experts_at_tp_2_ep_2_and_etp_2(dumps: dict[str, Path]) -> None:
    """Of 8 experts of width 40: four a rank, and of each the half of gate's columns, of up's and of down's rows."""
    held: dict[str, set[tuple[tuple[int, ...], tuple[int, ...]]]] = {}
    for piece in pieces_of(dumps[MOE.name]):
        if ".layers.0.mlp.experts." in piece.name:
            assert piece.offset is not None
            held.setdefault(piece.name.rpartition(".")[2], set()).add((piece.offset, piece.shape))
    firsts = (0, 4)
    assert held == {
        "gate_up_proj": {((first, 0, column), (4, 72, 20)) for first in firsts for column in (0, 20, 40, 60)},
        "down_proj": {((first, row, 0), (4, 20, 72)) for first in firsts for row in (0, 20)},
    }


@pytest.mark.parametrize("family", COMPOSITES, ids=lambda family: family.name)
def test_the_word_vision_takes_what_the_patterns_take(
    family: Family, dumps: dict[str, Path], references: dict[str, Path], tmp_path: Path
) -> None:
    given: Any = {"hf_reference": references[family.name], "workers": 1}
    merge([dumps[family.name]], tmp_path / "word", grafts=["vision"], **given)
    merge([dumps[family.name]], tmp_path / "patterns", grafts=PATTERNS[family.name], **given)
    assert diff(tmp_path / "word", tmp_path / "patterns").differing == ()
    report = json.loads((tmp_path / "word/.shardmerge/report.json").read_text())["check"]
    assert {*report["grafted"]} == {*filter(is_vision, read_hf_tensors(references[family.name]))}
    assert any("a vision tower" in reason for reason in report["drops"])


def test_without_a_decision_a_promised_tower_is_missing(
    dumps: dict[str, Path], references: dict[str, Path], bare: Path, tmp_path: Path
) -> None:
    for reference in (references[MOE.name], bare):
        with pytest.raises(
            MissingVisionError, match=r"\(vision_config\).*model\.visual\.\*.*--graft vision.*--allow vision"
        ):
            merge([dumps[MOE.name]], tmp_path / "out", hf_reference=reference, workers=1)
        assert not (tmp_path / "out").exists()
    with pytest.raises(
        BadInputError, match=r"--graft vision: .* holds no tensor of a vision tower of Qwen3VLMoe"
    ):
        check([dumps[MOE.name]], hf_reference=bare, grafts=["vision"])


def test_a_part_of_a_tower_is_not_one(dumps: dict[str, Path], references: dict[str, Path]) -> None:
    with pytest.raises(ProblemsFoundError) as found:
        check([dumps[MOE.name]], hf_reference=references[MOE.name], grafts=["model.visual.merger.*"])
    tower = {name for name in read_hf_tensors(references[MOE.name]) if is_vision(name)}
    assert {
        problem.tensor for problem in found.value.problems if isinstance(problem, MissingTensorError)
    } == {name for name in tower if ".visual.merger." not in name}


@pytest.mark.parametrize("with_weights", [True, False])
def test_the_language_model_alone_is_published_by_decision_and_that_stays_known(
    with_weights: bool, dumps: dict[str, Path], references: dict[str, Path], bare: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    reference = references[MOE.name] if with_weights else bare
    report = merge([dumps[MOE.name]], out, hf_reference=reference, workers=1, allow=["vision"])
    assert not any(map(is_vision, read_hf_tensors(out)))
    assert records.differing(read_hf_tensors(out), records.read(MOE)) == []
    assert [line for line in report.check.warnings if "vision tower" in line and line.endswith("(allowed)")]
    assert any("vision tower" in line for line in verify(out).warnings)
    assert metadata(out, corrections=["config.image_token_id=7"]).changed
    assert metadata(out, hf_reference=reference).changed
    (out / ".shardmerge/report.json").unlink()
    shutil.rmtree(out / ".shardmerge")
    with pytest.raises(MissingVisionError):
        verify(out)


def test_a_config_that_promises_no_tower_needs_none(
    dumps: dict[str, Path], bare: Path, tmp_path: Path
) -> None:
    given: Any = {"new_corrections": ["config.vision_config=null"], "hf_reference": bare, "workers": 1}
    merge([dumps[MOE.name]], tmp_path / "out", **given)
    assert verify(tmp_path / "out").warnings == ()
    with pytest.raises(MissingVisionError):
        metadata(tmp_path / "out", hf_reference=bare)


def test_a_tower_of_a_quantized_reference_is_complete_or_refused(
    dumps: dict[str, Path], references: dict[str, Path], tmp_path: Path
) -> None:
    """Its names of the language model say nothing, those of the tower all."""
    reference = tmp_path / "quantized"
    shutil.copytree(references[MOE.name], reference)
    config = json.loads((reference / "config.json").read_text())
    config["text_config"]["quantization_config"] = {"quant_method": "compressed-tensors"}
    (reference / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProblemsFoundError, match=r"model\.visual\.blocks"):
        check([dumps[MOE.name]], hf_reference=reference, grafts=["model.visual.merger.*"])
    merge([dumps[MOE.name]], tmp_path / "out", hf_reference=reference, grafts=["vision"], workers=1)
    assert "quantization_config" not in json.loads((tmp_path / "out/config.json").read_text())["text_config"]
    assert verify(tmp_path / "out").warnings == ()
    file = next(path for path in reference.glob("*.safetensors") if any(map(is_vision, load_file(path))))
    tensors = load_file(file)
    packed = next(name for name in tensors if is_vision(name))
    save_file(tensors | {packed: tensors[packed].to(torch.float8_e4m3fn)}, file, metadata={"format": "pt"})
    with pytest.raises(BadInputError, match=rf"--graft takes {packed} .* is F8_E4M3 there: it is quantized"):
        check([dumps[MOE.name]], hf_reference=reference, grafts=["vision"])


def test_corrections_reach_both_places_and_contradictions_stop(
    dumps: dict[str, Path], bare: Path, tmp_path: Path
) -> None:
    given: Any = {"hf_reference": bare, "allow": ["vision"]}
    config = json.loads((bare / "config.json").read_text())
    config["text_config"]["tie_word_embeddings"] = True
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigContradictionError, match=r"text_config\.tie_word_embeddings"):
        check([dumps[MOE.name]], **given)
    merge(
        [dumps[MOE.name]],
        tmp_path / "out",
        corrections=["config.tie_word_embeddings=false", "config.dtype=float16"],
        workers=1,
        **given,
    )
    written = json.loads((tmp_path / "out/config.json").read_text())
    assert (written["tie_word_embeddings"], written["text_config"]["tie_word_embeddings"]) == (False, False)
    assert (written["dtype"], written["torch_dtype"], written["text_config"]["dtype"]) == ("float16",) * 3


def test_a_language_model_that_computes_otherwise_is_told_by_its_nested_keys(
    references: dict[str, Path], dumps: dict[str, Path], bare: Path
) -> None:
    config = json.loads((bare / "config.json").read_text())
    config["text_config"]["rope_parameters"] |= {"mrope_section": [2, 2, 2]}
    config["text_config"]["rms_norm_eps"] = 1e-5
    (bare / "config.json").write_text(json.dumps(config))
    with pytest.raises(ProblemsFoundError) as found:
        check([dumps[MOE.name]], hf_reference=bare, allow=["vision"])
    assert {problem.setting: problem.keys for problem in found.value.problems} == {  # type: ignore[attr-defined]
        "rope_sections": (
            "text_config.rope_scaling.mrope_section",
            "text_config.rope_parameters.mrope_section",
        ),
        "norm_eps": ("text_config.rms_norm_eps",),
    }


def test_a_tower_that_is_not_frozen_is_never_lost_without_a_word(
    references: dict[str, Path], tmp_path: Path
) -> None:
    with fake_world(SINGLE, 0):
        chunks = build_model(MOE, SINGLE)
        chunks[0].vision_model.ln_pre.weight.requires_grad_(True)
        given: Any = {"hf_reference": references[MOE.name], "run_id": "run", "step": 1}
        with pytest.raises(
            UnsupportedParameterError, match=r"vision_model\.ln_pre\.weight on rank 0: .*--drop-vision"
        ):
            dump(chunks, tmp_path / "refused", **given)
        assert not list((tmp_path / "refused").glob("rank-*/"))
        manifest = dump(chunks, tmp_path / "left", drop_vision=True, **given)
        assert manifest is not None
        number = len([*chunks[0].vision_model.parameters()])
        assert [count for reason, count in manifest.drops.items() if "vision" in reason] == [number]


def test_a_language_model_by_itself_writes_the_same_bytes(
    references: dict[str, Path], tmp_path: Path
) -> None:
    given: Any = {"hf_reference": references[MOE.name], "run_id": "run", "step": 1}
    with fake_world(SINGLE, 0):
        chunks = build_model(MOE, SINGLE)
        fill(chunks, MOE, SINGLE, 0)
        dump(chunks, tmp_path / "whole", **given)
        dump([language_model_of(chunk) for chunk in chunks], tmp_path / "alone", **given)
    assert diff(tmp_path / "whole", tmp_path / "alone").differing == ()


def test_what_else_stands_beside_is_refused_with_all_its_names(
    references: dict[str, Path], tmp_path: Path
) -> None:
    with fake_world(SINGLE, 0):
        chunks = build_model(MOE, SINGLE)
        chunks[0].audio_model = torch.nn.Linear(3, 2)
        with pytest.raises(ProblemsFoundError) as found:
            dump(chunks, tmp_path / "dump", hf_reference=references[MOE.name], run_id="run", step=1)
        names = [
            problem.parameter
            for problem in found.value.problems
            if isinstance(problem, UnclaimedParameterError)
        ]
        assert names == ["audio_model.weight", "audio_model.bias"]
        del chunks[0].audio_model
        chunks[0].language_model = None
        with pytest.raises(UnsupportedParameterError, match="this rank holds nothing of the language model"):
            dump(chunks, tmp_path / "dump", hf_reference=references[MOE.name], run_id="run", step=1)
