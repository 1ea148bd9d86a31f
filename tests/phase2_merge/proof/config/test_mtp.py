"""Multi-token prediction is trained, grafted or dropped, by an explicit choice; a broken promise is refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shardmerge.common.architectures import blueprint
from shardmerge.common.errors import (
    BadInputError,
    MissingRankError,
    MissingTensorError,
    MtpMismatchError,
    ProblemsFoundError,
    ReplicaMismatchError,
)
from shardmerge.phase2_merge import check, diff, inspect, merge, merge_part, metadata, verify
from tests.dumps.dumps import Cut, Held, Model, load, save, write_dump
from tests.phase2_merge.proof.config.mtp_dumps import (
    COPIES,
    DEEPSEEK,
    HEAD,
    HIDDEN,
    NEMOTRON,
    STAGES,
    VOCAB,
    Written,
    cuts,
    deepseek_shapes,
    is_mtp,
    nemotron_shapes,
    plain_modules,
    published,
    shapes_of,
    with_copies,
)


@pytest.fixture(params=["deepseek", "nemotron"])
def trained(request: pytest.FixtureRequest, tmp_path: Path) -> Written:
    if request.param == "deepseek":
        return Written(tmp_path, DEEPSEEK, deepseek_shapes())
    return Written(tmp_path, NEMOTRON, nemotron_shapes())


def test_what_was_trained_is_published_and_copies_have_the_bytes_of_their_source(trained: Written) -> None:
    out = trained.merge()
    assert load(out) == published(trained)
    assert trained.config_of(out)["num_nextn_predict_layers"] == 1
    report = json.loads((out / ".shardmerge" / "report.json").read_text())
    assert report["check"]["mtp"] == "trained"
    assert verify(out).checksums_compared == len(published(trained))
    assert merge([trained.dump], out, hf_reference=trained.reference, max_shard_bytes=2000).rewritten == ()
    assert metadata(out, new_corrections=["config.rope_theta=5"]).changed
    assert diff(trained.dump, out).differing == ()
    assert load(out) == published(trained)


def test_parts_publish_the_same(trained: Written) -> None:
    out, reference = trained.folder / "parted", trained.reference
    for part in ("1/2", "2/2"):
        merge_part([trained.dump], out, part, hf_reference=reference, workers=1, max_shard_bytes=2000)
    merge([trained.dump], out, hf_reference=reference, finalize=True, workers=1, max_shard_bytes=2000)
    assert load(out) == published(trained)


def test_dropped_it_is_in_no_file_and_config_json_says_so(trained: Written) -> None:
    out = trained.merge(drop_mtp=True)
    assert load(out) == {name: tensor for name, tensor in trained.all.tensors.items() if not is_mtp(name)}
    config = trained.config_of(out)
    assert config["num_nextn_predict_layers"] == 0
    if config["model_type"] == "nemotron_h":
        assert "mtp_hybrid_override_pattern" not in config
        assert config["mtp_layers_block_type"] == []
    report = json.loads((out / ".shardmerge" / "report.json").read_text())
    assert report["check"]["mtp"] == "dropped"
    assert (
        "none, and config.json says so"
        in check([trained.dump], hf_reference=trained.reference, drop_mtp=True).text()
    )
    metadata(out, hf_reference=trained.reference)
    assert trained.config_of(out)["num_nextn_predict_layers"] == 0
    assert verify(out).checksums_compared == len(load(out))


def test_grafted_it_comes_from_the_reference_but_copies_repeat_what_was_trained(tmp_path: Path) -> None:
    one = Written(tmp_path, DEEPSEEK, deepseek_shapes(), trained=False)
    reference = {
        name: (dtype, shape, bytes(len(data))) for name, (dtype, shape, data) in one.all.tensors.items()
    }
    save(one.reference / "model.safetensors", with_copies(reference))
    out = one.merge(grafts=["mtp"])
    grafted = {name: tensor for name, tensor in reference.items() if is_mtp(name)}
    assert load(out) == with_copies({**one.all.tensors, **grafted})
    report = json.loads((out / ".shardmerge" / "report.json").read_text())
    assert report["check"]["mtp"] == "grafted"
    assert verify(out).checksums_compared == len(load(out))


@pytest.mark.parametrize("pattern", [*COPIES, "*.1.embed_tokens.*", "*shared_head.head*"])
def test_a_graft_of_nothing_but_copies_is_refused(pattern: str, tmp_path: Path) -> None:
    one = Written(tmp_path, DEEPSEEK, deepseek_shapes())
    save(one.reference / "model.safetensors", published(one))
    with pytest.raises(
        BadInputError, match=r"fits only copies: .* once more, and the merge writes it itself"
    ):
        one.merge(grafts=[pattern])


def test_what_is_promised_and_not_held_names_the_three_choices(trained: Written) -> None:
    without = Written(trained.folder / "without", trained.config, shapes_of(trained), trained=False)
    with pytest.raises(
        MtpMismatchError, match=r"nobody holds any of it. Choose: dump .*--graft mtp.*--drop-mtp"
    ) as info:
        without.merge()
    assert info.value.exit_code == 4
    assert without.config_of(without.merge(drop_mtp=True))["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize("missing", [0, 1])
def test_the_three_choices_are_named_beside_a_missing_rank_that_cannot_have_held_it(
    missing: int, trained: Written
) -> None:
    without = Written(trained.folder / "without", trained.config, shapes_of(trained), trained=False)
    shutil.rmtree(without.dump / f"rank-{missing:05}")
    with pytest.raises(ProblemsFoundError) as info:
        without.merge()
    promise, rank = info.value.problems
    assert isinstance(promise, MtpMismatchError)
    assert "Choose: dump" in promise.message()
    assert isinstance(rank, MissingRankError)
    assert rank.rank == missing
    assert "mtp" not in rank.message()


def test_ranks_that_may_have_held_it_are_named_and_not_the_choices(trained: Written) -> None:
    """Without its stage nobody knows whether it was trained: the ranks are looked for first."""
    without = Written(trained.folder / "without", trained.config, shapes_of(trained), trained=False)
    for rank in (2, 3):
        shutil.rmtree(without.dump / f"rank-{rank:05}")
    with pytest.raises(ProblemsFoundError) as info:
        without.merge()
    assert {type(problem) for problem in info.value.problems} == {MissingRankError}
    label = "layer 1" if trained.config["model_type"] == "deepseek_v3" else "layers mtp.0-mtp.1"
    assert all(label in str(problem) for problem in info.value.problems)


def test_what_is_held_and_not_promised_names_the_three_choices(trained: Written) -> None:
    trained.say({**trained.config, "num_nextn_predict_layers": 0})
    with pytest.raises(
        MtpMismatchError, match=r"config.json promises none. Choose: let .*--graft mtp.*--drop-mtp"
    ):
        trained.merge()
    out = trained.merge(corrections=["config.num_nextn_predict_layers=1"])
    assert load(out) == published(trained)


def test_a_step_has_experts_where_the_decoder_has_none() -> None:
    expected = {**deepseek_shapes(), **dict.fromkeys(COPIES, (VOCAB, HIDDEN))}
    assert blueprint({**DEEPSEEK, "first_k_dense_replace": 3}).shapes() == expected


def test_a_correction_that_promises_what_is_dropped_is_refused(trained: Written) -> None:
    """It could not be kept, and the report would say that it was."""
    promise = "config.num_nextn_predict_layers=1"
    refused = f"{promise} contradicts --drop-mtp, which makes it 0"
    with pytest.raises(BadInputError, match=refused):
        check([trained.dump], hf_reference=trained.reference, drop_mtp=True, corrections=[promise])
    with pytest.raises(BadInputError, match=refused):
        trained.merge(drop_mtp=True, corrections=[promise])
    out = trained.merge(drop_mtp=True, corrections=["config.num_nextn_predict_layers=0"])
    before = (out / ".shardmerge" / "report.json").read_bytes()
    with pytest.raises(BadInputError, match=refused):
        metadata(out, corrections=[promise])
    with pytest.raises(BadInputError, match=refused):
        metadata(out, hf_reference=trained.reference, corrections=[promise])
    assert (out / ".shardmerge" / "report.json").read_bytes() == before
    assert trained.config_of(out)["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize(
    "said", ["mtp_hybrid_override_pattern=M", 'mtp_layers_block_type=["attention", "moe"]']
)
def test_no_other_word_promises_what_is_dropped(said: str, tmp_path: Path) -> None:
    one = Written(tmp_path, NEMOTRON, nemotron_shapes())
    with pytest.raises(
        BadInputError, match=r"config\.mtp_.* contradicts --drop-mtp, which (makes|removes) it"
    ):
        one.merge(drop_mtp=True, new_corrections=[f"config.{said}"])


@pytest.mark.parametrize("pattern", ["*.norm.weight", "mtp.*"])
def test_what_is_dropped_is_not_grafted_either(pattern: str, tmp_path: Path) -> None:
    one = Written(tmp_path, NEMOTRON, nemotron_shapes(), trained=False)
    save(one.reference / "model.safetensors", one.all.tensors)
    kept = {
        name: tensor for name, tensor in one.model.tensors.items() if name != "backbone.layers.0.norm.weight"
    }
    if pattern == "mtp.*":
        with pytest.raises(BadInputError, match="none of that name"):
            one.merge(drop_mtp=True, grafts=[pattern])
        return
    shutil.rmtree(one.dump)
    model = Model(one.config, kept)
    facts = {"dtype": "BF16", "dimensions": one.table.dimensions}
    write_dump(one.dump, model, cuts(model), STAGES, facts=facts)
    assert load(one.merge(drop_mtp=True, grafts=[pattern])) == one.model.tensors


def test_a_merge_again_takes_the_choice_of_today(tmp_path: Path) -> None:
    one = Written(tmp_path, DEEPSEEK, deepseek_shapes(), trained=False)
    one.say({**DEEPSEEK, "num_nextn_predict_layers": 0})
    out = one.merge()
    one.say(DEEPSEEK)
    one.merge(drop_mtp=True)
    metadata(out, hf_reference=one.reference)
    assert one.config_of(out)["num_nextn_predict_layers"] == 0


@pytest.mark.parametrize("said", [{}, {"num_mtp_layers": 1}])
def test_a_config_json_of_deepseek_that_says_nothing_promises_one_step_as_readers_take_it(
    said: dict[str, int], tmp_path: Path
) -> None:
    silent = {key: value for key, value in DEEPSEEK.items() if key != "num_nextn_predict_layers"}
    one = Written(tmp_path, DEEPSEEK, deepseek_shapes(), trained=False)
    one.say({**silent, **said})
    with pytest.raises(MtpMismatchError):
        one.merge()
    config = one.config_of(one.merge(drop_mtp=True))
    assert (config["num_nextn_predict_layers"], "num_mtp_layers" in config) == (0, False)


@pytest.mark.parametrize("words", [["moe", "attention"], {"attention": 1, "moe": 2}])
def test_two_spellings_of_a_step_that_contradict_each_other_are_refused(words: Any, tmp_path: Path) -> None:
    one = Written(tmp_path, NEMOTRON, nemotron_shapes())
    one.say({**NEMOTRON, "mtp_layers_block_type": words})
    with pytest.raises(BadInputError, match="mtp_layers_block_type"):
        one.merge()


def test_weights_of_a_reference_that_its_config_json_does_not_promise_name_the_choices(
    trained: Written,
) -> None:
    save(trained.reference / "model.safetensors", published(trained))
    trained.say({**trained.config, "num_nextn_predict_layers": 0})
    with pytest.raises(MtpMismatchError, match=r"The dump holds .*promises none. Choose: let"):
        trained.merge()
    without = Written(trained.folder / "without", trained.config, shapes_of(trained), trained=False)
    save(without.reference / "model.safetensors", published(trained))
    without.say({**trained.config, "num_nextn_predict_layers": 0})
    with pytest.raises(MtpMismatchError, match=r"The reference holds .*promises none. Choose: let"):
        without.merge()
    out = without.merge(grafts=["mtp"], corrections=["config.num_nextn_predict_layers=1"])
    assert load(out).keys() == published(trained).keys()


def test_a_copy_whose_source_is_missing_is_not_named_beside_it(tmp_path: Path) -> None:
    one = Written(tmp_path, DEEPSEEK, deepseek_shapes())
    del one.model.tensors[HEAD]
    facts = {"dtype": "BF16", "dimensions": one.table.dimensions}
    dump = write_dump(tmp_path / "again", one.model, cuts(one.model), STAGES, facts=facts)
    with pytest.raises(MissingTensorError, match=HEAD):
        check([dump], hf_reference=one.reference)


def test_replicas_of_what_is_dropped_may_differ(trained: Written) -> None:
    name = next(name for name in trained.model.tensors if name.endswith("enorm.weight"))
    shutil.rmtree(trained.dump)
    facts = {"dtype": "BF16", "dimensions": trained.table.dimensions}
    held = [Held(3, 2, name, (0,), (HIDDEN,), b"\1\x3f" * HIDDEN)]
    write_dump(trained.dump, trained.model, cuts(trained.model), STAGES, held=held, facts=facts)
    with pytest.raises(ReplicaMismatchError, match=name):
        trained.merge()
    assert trained.config_of(trained.merge(drop_mtp=True))["num_nextn_predict_layers"] == 0


def test_quantized_steps_that_are_dropped_leave_no_word_in_the_files(tmp_path: Path) -> None:
    """Neither their formats nor scales of their KV caches: here nothing else is quantized."""
    one = Written(tmp_path, NEMOTRON, nemotron_shapes())
    module = "mtp.layers.0.eh_proj"
    dtype, shape, data = one.model.tensors.pop(f"{module}.weight")
    one.model.tensors[f"{module}.weight"] = ("F8_E4M3", shape, data[: len(data) // 2])
    scales = [f"{module}.input_scale", f"{module}.weight_scale"]
    scales += [f"mtp.layers.0.mixer.{side}_proj.{side}_scale" for side in "kv"]
    one.model.tensors |= dict.fromkeys(scales, ("F32", (), np.float32(1).tobytes()))
    told = {
        "layers": {"FP8": [module]}, "excluded": sorted(plain_modules(one.model) - {module}),
        "kv_cache": {"FP8": ["mtp.layers.0.mixer"]}, "scalars": {"names": scales, "values": [1.0] * 4},
        "uncalibrated": [], "producer": {"name": "modelopt", "version": "0.47.0"},
    }  # fmt: skip
    facts = {"dtype": "BF16", "dimensions": one.table.dimensions}
    whole = {name: [Cut(3, (0,) * len(shape), shape)] for name, (_, shape, _) in one.model.tensors.items()}
    shutil.rmtree(one.dump)
    write_dump(one.dump, one.model, whole, STAGES, facts=facts, quantization=told)
    out = one.merge(drop_mtp=True)
    assert load(out) == {name: tensor for name, tensor in one.all.tensors.items() if not is_mtp(name)}
    assert "quantization_config" not in one.config_of(out)
    assert not (out / "hf_quant_config.json").exists()
    assert dtype == "BF16"


@pytest.mark.parametrize("is_trained", [True, False])
def test_metadata_of_a_packed_output_promise_exactly_the_steps_it_holds(
    is_trained: bool, tmp_path: Path
) -> None:
    """No shape of it is compared again, and the number of steps is no dimension."""
    one = Written(tmp_path, NEMOTRON, nemotron_shapes(), trained=is_trained)
    module = "backbone.layers.0.mixer.q_proj"
    _, shape, data = one.model.tensors[f"{module}.weight"]
    one.model.tensors[f"{module}.weight"] = ("F8_E4M3", shape, data[: len(data) // 2])
    scales = [f"{module}.input_scale", f"{module}.weight_scale"]
    one.model.tensors |= dict.fromkeys(scales, ("F32", (), np.float32(1).tobytes()))
    told = {
        "layers": {"FP8": [module]}, "excluded": sorted(plain_modules(one.model) - {module}), "kv_cache": {},
        "scalars": {"names": scales, "values": [1.0, 1.0]}, "uncalibrated": [],
        "producer": {"name": "modelopt", "version": "0.47.0"},
    }  # fmt: skip
    facts = {"dtype": "BF16", "dimensions": one.table.dimensions}
    whole = {name: [Cut(3, (0,) * len(shape), shape)] for name, (_, shape, _) in one.model.tensors.items()}
    shutil.rmtree(one.dump)
    write_dump(one.dump, one.model, whole, STAGES, facts=facts, quantization=told)
    right, wrong = (1, 0) if is_trained else (0, 1)
    out = one.merge(corrections=[f"config.num_nextn_predict_layers={right}"])
    with pytest.raises(MtpMismatchError, match=r"config\.json promises"):
        metadata(out, corrections=[f"config.num_nextn_predict_layers={wrong}"])
    if is_trained:
        with pytest.raises(ProblemsFoundError, match=r"mtp\.layers\.2\..* is in no manifest"):
            metadata(out, corrections=["config.num_nextn_predict_layers=2"])
        with pytest.raises(ProblemsFoundError, match=r"mtp\.layers\.1\."):
            metadata(out, corrections=["config.mtp_hybrid_override_pattern=*"])
    metadata(out, corrections=[f"config.num_nextn_predict_layers={right}"])
    assert one.config_of(out)["num_nextn_predict_layers"] == right


def test_a_missing_part_of_it_is_missing_like_any_other(trained: Written) -> None:
    name = next(name for name in trained.model.tensors if name.endswith("eh_proj.weight"))
    del trained.model.tensors[name]
    facts = {"dtype": "BF16", "dimensions": trained.table.dimensions}
    dump = write_dump(trained.folder / "again", trained.model, cuts(trained.model), STAGES, facts=facts)
    with pytest.raises(MissingTensorError, match=name):
        check([dump], hf_reference=trained.reference)


def test_the_bytes_of_a_packed_head_are_no_copy_of_it(tmp_path: Path) -> None:
    """Its scales belong to them, and readers ask for none of a copy."""
    one = Written(tmp_path, DEEPSEEK, deepseek_shapes())
    shutil.rmtree(one.dump)
    one.model.tensors[HEAD] = ("F8_E4M3", (VOCAB, HIDDEN), bytes(VOCAB * HIDDEN))
    scales = ["lm_head.input_scale", "lm_head.weight_scale"]
    one.model.tensors |= dict.fromkeys(scales, ("F32", (), np.float32(1).tobytes()))
    told = {
        "layers": {"FP8": ["lm_head"]}, "excluded": sorted(plain_modules(one.model)), "kv_cache": {},
        "scalars": {"names": scales, "values": [1.0, 1.0]}, "uncalibrated": [],
        "producer": {"name": "modelopt", "version": "0.47.0"},
    }  # fmt: skip
    facts = {"dtype": "BF16", "dimensions": one.table.dimensions}
    whole = {name: [Cut(3, (0,) * len(shape), shape)] for name, (_, shape, _) in one.model.tensors.items()}
    write_dump(one.dump, one.model, whole, STAGES, facts=facts, quantization=told)
    with pytest.raises(MissingTensorError, match=r"model.layers.1.shared_head.head.weight"):
        one.merge(verify="size")


def test_choices_that_contradict_each_other_or_cannot_be_are_refused(trained: Written) -> None:
    with pytest.raises(BadInputError, match="--drop-mtp and --graft mtp"):
        trained.merge(drop_mtp=True, grafts=["mtp"])
    with pytest.raises(BadInputError, match="holds no tensor of multi-token prediction"):
        trained.merge(grafts=["mtp"])
    trained.say({**trained.config, "num_nextn_predict_layers": -1})
    with pytest.raises(BadInputError, match="num_nextn_predict_layers"):
        trained.merge()


def test_the_map_draws_layers_below_mtp_after_all_others(tmp_path: Path) -> None:
    one = Written(tmp_path, NEMOTRON, nemotron_shapes())
    assert [cover.label for cover in inspect(one.dump).layers] == ["0", "mtp.0", "mtp.1"]
    assert [cover.label for cover in inspect(one.merge()).layers] == ["0", "mtp.0", "mtp.1"]
