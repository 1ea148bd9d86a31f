"""The manifest: round trip, digest, and every way it can contradict itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from shardmerge.common import canonical_json
from shardmerge.common import manifest as manifests
from shardmerge.common.errors import BadInputError, CorruptManifestError
from shardmerge.common.manifest import FragmentFile, Manifest, Placed, columns
from shardmerge.common.manifest_facts import Facts, Health, QuantizationFacts, Scalars
from shardmerge.common.rectangle import Rectangle

HASH = "0123456789abcdef" * 2
PLACED = [
    Placed(Rectangle("m.w", "BF16", (8, 4), (4, 0), (4, 4)), 0, 4096, 4128, 3, HASH),
    Placed(Rectangle("m.b", "F32", (8,), (0,), (8,)), 0, 4128, 4160, 3, HASH),
    Placed(Rectangle("m.s", "F32", (), (), ()), -1, 0, 0, 2, HASH),
]


def manifest(**changes: Any) -> Manifest:
    names, dtypes, found = columns(PLACED)
    given: dict[str, Any] = {
        "run_id": "run-1", "step": 7, "attempt": "0", "rank": 3, "world_size": 4, "coordinates": {"tp": 1},
        "groups": {"tp": [2, 3]}, "architecture": "LlamaForCausalLM", "facts": Facts(dtype="BF16"),
        "files": (FragmentFile("whole-00001.safetensors", 4160, 4096, HASH),), "names": names, "dtypes": dtypes,
        "columns": found, "drops": {"rotary": 2},
    }  # fmt: skip
    return Manifest(**given | changes)


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_bytes(manifests.encode(manifest()))
    assert manifests.read(path) == manifest()
    assert list(manifests.read(path).placed()) == PLACED


def test_it_ends_with_the_digest_of_all_before(tmp_path: Path) -> None:
    data = manifests.encode(manifest())
    body, digest = data[: data.rindex(b',"xxh3_128"')], json.loads(data)["xxh3_128"]
    assert digest == xxhash.xxh3_128_hexdigest(body)
    assert data.endswith(f'"{digest}"}}\n'.encode())


def test_dimensions_that_a_rectangle_lacks_are_neutral() -> None:
    _, _, found = columns(PLACED)
    assert found.ndim == [2, 1, 0]
    assert found.global_shape == [[8, 8, 1], [4, 1, 1]]
    assert found.global_offset == [[4, 0, 0], [0, 0, 0]]


def test_no_rectangles_at_all_are_a_manifest_too(tmp_path: Path) -> None:
    names, dtypes, found = columns([])
    path = tmp_path / "manifest.json"
    path.write_bytes(manifests.encode(manifest(names=names, dtypes=dtypes, columns=found, files=())))
    assert len(manifests.read(path).columns) == 0


def test_too_many_dimensions_cannot_be_written() -> None:
    with pytest.raises(BadInputError, match="6 dimensions"):
        columns([Placed(Rectangle("w", "U8", (1,) * 6, (0,) * 6, (1,) * 6), 0, 0, 1, 0, HASH)])


@pytest.mark.parametrize("at", [0.1, 0.3, 0.5, 0.7, 0.9, 0.999])
def test_any_changed_byte_is_noticed(tmp_path: Path, at: float) -> None:
    data = bytearray(manifests.encode(manifest()))
    data[int(at * len(data))] ^= 1
    path = tmp_path / "manifest.json"
    path.write_bytes(data)
    with pytest.raises(CorruptManifestError) as error:
        manifests.read(path)
    assert error.value.path == str(path)
    assert error.value.exit_code == 4


def edited(tmp_path: Path, **changes: Any) -> Manifest:
    """A manifest with these top-level values, and a digest that fits, as it is read."""
    value = json.loads(manifests.encode(manifest())) | changes
    del value["xxh3_128"]
    body = canonical_json.encode(value)[:-2]
    path = tmp_path / "manifest.json"
    path.write_bytes(body + f',"xxh3_128":"{xxhash.xxh3_128_hexdigest(body)}"}}\n'.encode())
    return manifests.read(path)


def reason(tmp_path: Path, **changes: Any) -> str:
    """Why such a manifest is refused."""
    with pytest.raises(CorruptManifestError) as error:
        edited(tmp_path, **changes)
    return error.value.reason


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"format": "other"}, "not a shardmerge manifest"),
        ({"schema_version": 2}, "schema_version 2"),
        ({"rank": 4}, "rank 4 of 4"),
        ({"rank": -1}, "rank -1 of 4"),
        ({"world_size": True}, "must be integers"),
        ({"world_size": 10**15}, "rank 3 of 1000000000000000"),
        ({"run_id": 5}, "must be strings"),
        ({"step": "7"}, "step must be an integer"),
        ({"architecture": None}, "architecture must be a string"),
        ({"groups": {"tp": [9]}}, "group tp"),
        ({"groups": [1]}, "must be objects"),
        ({"coordinates": {"tp": "1"}}, "coordinates must be integers"),
        ({"facts": []}, "must be objects"),
        (
            {"files": [{"name": "../x", "num_bytes": 1, "header_bytes": 1, "header_xxh3_128": HASH}]},
            "file name",
        ),
        ({"files": [{"name": "x"}]}, "missing"),
    ],
)
def test_heads_that_cannot_be_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in reason(tmp_path, **changes)


PACKED = {
    "layers": {"NVFP4": ["m"]},
    "excluded": ["n"],
    "kv_cache": {"FP8": ["a"]},
    "scalars": {"names": ["m.input_scale"], "values": [0.5]},
    "uncalibrated": [],
    "producer": {"name": "modelopt"},
    "bad_scales": {"m.weight_scale@0,0": 2},
}


def test_facts_health_and_quantization_are_what_was_written(tmp_path: Path) -> None:
    facts = {"dtype": "BF16", "dimensions": {"hidden": 8}, "dtype_from_reference": False}
    health = {"nonfinite": [[0, 5, 7]], "all_zero": [1]}
    found = edited(tmp_path, facts=facts, health=health, quantization=PACKED)
    assert found.facts == Facts(dtype="BF16", dimensions={"hidden": 8}, dtype_from_reference=False)
    assert found.health == Health(nonfinite=[[0, 5, 7]], all_zero=[1])
    assert found.quantization == QuantizationFacts(
        layers={"NVFP4": ["m"]},
        excluded=["n"],
        kv_cache={"FP8": ["a"]},
        scalars=Scalars(["m.input_scale"], [0.5]),
        uncalibrated=[],
        producer={"name": "modelopt"},
        bad_scales={"m.weight_scale@0,0": 2},
    )


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"facts": {}},
        {"facts": {"dtype_from_reference": True, "vendor": [1, None], "more": 2}},
        {"health": {}},
        {"health": {"all_zero": [], "later": {"x": 1}}},
        {"quantization": {}},
        {"quantization": PACKED},
        {"quantization": {"layers": {}, "later": "x"}},
    ],
)
def test_keys_that_are_absent_stay_absent_and_unknown_ones_stay(
    tmp_path: Path, changes: dict[str, Any]
) -> None:
    found = edited(tmp_path, **changes)
    assert manifests.encode(found) == (tmp_path / "manifest.json").read_bytes()


def test_what_a_quantized_rank_does_not_say_is_named() -> None:
    packed = {key: value for key, value in PACKED.items() if key not in ("layers", "producer", "bad_scales")}
    assert QuantizationFacts.of_json(packed).missing == ("layers", "producer")
    assert QuantizationFacts.of_json(PACKED).missing == ()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"facts": {"dtype": 5}}, "facts.dtype is 5, which is not a string"),
        ({"facts": {"dtype": None}}, "facts.dtype is null"),
        ({"facts": {"dimensions": [8]}}, "facts.dimensions is a list, which is not an object"),
        ({"facts": {"dimensions": {"hidden": True}}}, "facts.dimensions holds True, which is not an integer"),
        ({"facts": {"dtype_from_reference": 1}}, "facts.dtype_from_reference is 1, which is not true or false"),
        ({"health": {"nonfinite": [5]}}, "health.nonfinite holds 5, which is not a list"),
        ({"health": {"nonfinite": [[1, 2]]}}, "a row of health.nonfinite does not hold 3 numbers"),
        ({"health": {"nonfinite": [[0, "many", 1]]}}, "health.nonfinite holds 'many'"),
        ({"health": {"all_zero": [0.5]}}, "health.all_zero holds 0.5, which is not an integer"),
        ({"quantization": {"layers": {"FP8": "m"}}}, "quantization.layers holds 'm', which is not a list"),
        ({"quantization": {"layers": {"FP8": [1]}}}, "quantization.layers.FP8 holds 1, which is not a string"),
        ({"quantization": {"excluded": {}}}, "quantization.excluded is an object, which is not a list"),
        ({"quantization": {"kv_cache": []}}, "quantization.kv_cache is a list, which is not an object"),
        ({"quantization": {"scalars": {}}}, "quantization.scalars is not an object of names and values"),
        (
            {"quantization": {"scalars": {"names": ["a"], "values": []}}},
            "quantization.scalars has 1 names, 0 values",
        ),
        (
            {"quantization": {"scalars": {"names": ["a"], "values": ["1"]}}},
            "quantization.scalars.values holds '1', which is not a number",
        ),
        ({"quantization": {"uncalibrated": [[]]}}, "uncalibrated holds a list, which is not a string"),
        ({"quantization": {"producer": {"name": 1}}}, "quantization.producer holds 1, which is not a string"),
        ({"quantization": {"bad_scales": {"m": "2"}}}, "bad_scales holds '2', which is not an integer"),
    ],
)  # fmt: skip
def test_facts_of_another_type_are_refused(tmp_path: Path, changes: dict[str, Any], expected: str) -> None:
    assert expected in reason(tmp_path, **changes)


def test_a_fact_that_equals_nothing_is_refused(tmp_path: Path) -> None:
    body = (
        manifests.encode(manifest(facts=Facts(more={"x": 12345})))[:-2]
        .replace(b"12345", b"1e999")
        .rsplit(b',"xxh3_128"', 1)[0]
    )
    path = tmp_path / "manifest.json"
    path.write_bytes(body + f',"xxh3_128":"{xxhash.xxh3_128_hexdigest(body)}"}}\n'.encode())
    with pytest.raises(CorruptManifestError, match="not JSON compliant"):
        manifests.read(path)


def test_a_head_has_no_rectangles_and_does_not_look_at_them() -> None:
    value = json.loads(manifests.encode(manifest(names=["m.w"])))
    names, _, empty = columns([])
    assert manifests.head(value, PATH) == manifest(names=names, columns=empty)
    assert manifests.head(value | {"names": None, "columns": 5}, PATH) == manifest(names=names, columns=empty)
    with pytest.raises(CorruptManifestError, match="rank 4 of 4"):
        manifests.head(value | {"rank": 4}, PATH)


@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_no_bytes_crash_the_reader(data: bytes) -> None:
    with pytest.raises(CorruptManifestError):
        manifests.parsed(data, Path("manifest.json"))


PATH = Path("manifest.json")
JSON = (
    st.none()
    | st.booleans()
    | st.integers(-3, 1 << 70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=3)
)
NESTED = st.recursive(
    JSON, lambda i: st.lists(i, max_size=3) | st.dictionaries(st.text(max_size=3), i, max_size=3)
)


@given(st.sampled_from(sorted(json.loads(manifests.encode(manifest())))), NESTED)
def test_no_value_of_any_field_crashes_the_reader(field: str, value: Any) -> None:
    changed = json.loads(manifests.encode(manifest())) | {field: value}
    changed.pop("xxh3_128", None)
    body = canonical_json.encode(changed)[:-2]
    data = body + f',"xxh3_128":"{xxhash.xxh3_128_hexdigest(body)}"}}\n'.encode()
    try:
        found = manifests.of_json(manifests.parsed(data, PATH), PATH)
    except CorruptManifestError:
        return
    assert found.rank < found.world_size
