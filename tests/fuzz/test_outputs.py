"""References and outputs, damaged at random: config.json, index, declared quantization, and what a merge keeps.

As in test_fuzz.py: a refusal of the tree, or a sound result; nothing else.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shardmerge.phase2_merge import check, diff, inspect, merge, metadata, verify
from tests.dumps import dumps

from .surviving import BOUNDED, BYTES, JSON, NUMBERS, changed, is_small, survives

INDEX, RECORDS = "model.safetensors.index.json", ".shardmerge"
CONFIG_KEYS = [*sorted(dumps.moe_config(1)), "mlp_only_layers", "decoder_sparse_step", "num_local_experts"]
NAMES = [
    "model.norm.weight",
    "lm_head.weight",
    "../x",
    "x" * 300,
    "a\0b",
    "/",
    "",
    ".",
    "model-00001-of-00002.safetensors",
]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`dump`, `reference` with weights, and `out`, merged into several shards, some of them assembled."""
    folder = tmp_path_factory.mktemp("outputs")
    model = dumps.model_of(dumps.moe_config(1, 2))
    topology = dumps.Topology(tp=2)
    dumps.write_dump(folder / "dump", model, dumps.cuts_of(model, topology), topology)
    dumps.write_reference(folder / "reference", model)
    merge(
        [folder / "dump"], folder / "out", hf_reference=folder / "reference", max_shard_bytes=1200, workers=1
    )
    assert len(list((folder / "out" / RECORDS / "receipts").iterdir())) > 1
    return folder


@contextmanager
def copied(source: Path) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(shutil.copytree(source, Path(folder) / "copy"))


def look(sound: Path, out: Path) -> None:
    """Everything that reads an output, the commands that write last."""
    survives(lambda: verify(out))
    survives(lambda: inspect(out))
    survives(lambda: diff(out, sound / "out"))
    survives(lambda: metadata(out))
    survives(
        lambda: merge(
            [sound / "dump"], out, hf_reference=sound / "reference", max_shard_bytes=1200, workers=1
        )
    )


def put(path: Path, value: Any) -> None:
    """As json.dumps writes it: NaN and halves of characters too."""
    path.write_text(json.dumps(value))


@BOUNDED
@given(key=st.sampled_from(CONFIG_KEYS), value=NUMBERS | JSON)
def test_any_value_in_the_config_of_a_reference(sound: Path, key: str, value: Any) -> None:
    assume(is_small(key, value))
    with copied(sound / "reference") as reference:
        config = json.loads((reference / "config.json").read_text())
        put(reference / "config.json", config | {key: value})
        survives(lambda: check([sound / "dump"], hf_reference=reference, verify="size"))
        survives(lambda: metadata(sound / "out", hf_reference=reference))
    survives(lambda: metadata(sound / "out", hf_reference=sound / "reference"))


@BOUNDED
@given(key=st.sampled_from([*CONFIG_KEYS, "quantization_config", "dtype"]), value=NUMBERS | JSON)
def test_any_value_in_the_config_of_an_output(sound: Path, key: str, value: Any) -> None:
    assume(is_small(key, value))
    with copied(sound / "out") as out:
        config = json.loads((out / "config.json").read_text())
        put(out / "config.json", config | {key: value})
        look(sound, out)


@BOUNDED
@given(name=st.sampled_from(NAMES) | st.text(max_size=5), file=st.sampled_from(NAMES) | JSON)
def test_any_entry_of_an_index(sound: Path, name: str, file: Any) -> None:
    with copied(sound / "out") as out:
        index = json.loads((out / INDEX).read_text())
        index["weight_map"][name] = file
        put(out / INDEX, index)
        look(sound, out)


@BOUNDED
@given(
    key=st.sampled_from(["metadata", "weight_map", "other"]),
    value=JSON | st.fixed_dictionaries({"total_size": NUMBERS | JSON}),
)
def test_any_part_of_an_index(sound: Path, key: str, value: Any) -> None:
    with copied(sound / "out") as out:
        put(out / INDEX, json.loads((out / INDEX).read_text()) | {key: value})
        look(sound, out)


QUANTIZATION = ["quant_algo", "kv_cache_quant_algo", "group_size", "exclude_modules", "quantized_layers",
                "quantization", "config_groups", "ignore", "kv_cache_scheme", "quant_method", "weight_block_size",
                "modules_to_not_convert"]  # fmt: skip


@BOUNDED
@given(
    told=st.dictionaries(
        st.sampled_from(QUANTIZATION),
        JSON | st.sampled_from(["FP8", "NVFP4", "MIXED_PRECISION", "modelopt", "fp8", [128, 128]]),
    ),
    in_config=st.booleans(),
)
def test_any_declaration_of_a_quantization(sound: Path, told: Any, in_config: bool) -> None:
    with copied(sound / "out") as out:
        if in_config:
            config = json.loads((out / "config.json").read_text())
            put(out / "config.json", config | {"quantization_config": told})
        else:
            put(out / "hf_quant_config.json", {"quantization": told, "producer": {}})
        look(sound, out)
        survives(lambda: metadata(out, corrections=["quantization.quant_algo=FP8"]))


RECORDED = ["plan.json", "report.json", "ledger.parquet", "receipts"]


@BOUNDED
@given(file=st.sampled_from(RECORDED), **BYTES)
def test_bytes_of_a_record_changed(sound: Path, file: str, at: int, put: bytes, cut: int) -> None:
    with copied(sound / "out") as out:
        path = out / RECORDS / file
        path = sorted(path.iterdir())[0] if path.is_dir() else path
        path.write_bytes(changed(path.read_bytes(), at, put, cut))
        look(sound, out)


@BOUNDED
@given(data=st.data(), value=NUMBERS | JSON)
def test_any_value_in_a_record(sound: Path, data: st.DataObject, value: Any) -> None:
    with copied(sound / "out") as out:
        file = data.draw(st.sampled_from(["plan.json", "report.json", "receipts"]))
        path = out / RECORDS / file
        path = sorted(path.iterdir())[0] if path.is_dir() else path
        found = json.loads(path.read_text())
        target = found
        for _ in range(data.draw(st.integers(0, 3))):
            inner = [
                one
                for one in (target.values() if isinstance(target, dict) else target)
                if isinstance(one, dict | list) and one
            ]
            if not inner:
                break
            target = data.draw(st.sampled_from(inner))
        key = data.draw(
            st.sampled_from(sorted(target) if isinstance(target, dict) else list(range(len(target))))
        )
        target[key] = value
        put(path, found)
        look(sound, out)


@BOUNDED
@given(
    value=JSON
    | st.fixed_dictionaries(
        {"replace": st.lists(st.sampled_from(NAMES)), "remove": st.lists(st.sampled_from(NAMES)) | JSON}
    )
)
def test_any_journal(sound: Path, value: Any) -> None:
    with copied(sound / "out") as out:
        put(out / RECORDS / "journal.json", value)
        look(sound, out)


@BOUNDED
@given(value=JSON, **BYTES)
def test_any_receipt_of_a_killed_merge(sound: Path, value: Any, at: int, put: bytes, cut: int) -> None:
    """What is not a receipt is none: its shard is written again."""
    with copied(sound / "out") as copy:
        out = copy.with_name("killed")
        partial = copy.rename(out.with_name("killed.partial"))
        (partial / RECORDS / "commit.json").unlink()  # it is written last
        first, second, *_ = sorted((partial / RECORDS / "receipts").iterdir())
        first.write_text(json.dumps(value))
        second.write_bytes(changed(second.read_bytes(), at, put, cut))
        merge([sound / "dump"], out, hf_reference=sound / "reference", max_shard_bytes=1200, workers=1)
        assert verify(out).checksums_compared == 18
