"""`verify --scan`: NaN, infinities and zeros in bytes written by hand, and in a directory of another program."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from shardmerge.common import safetensors_header
from shardmerge.common.errors import StrangeNumbersError
from shardmerge.phase2_merge import verify
from shardmerge.phase2_merge.proof.numbers import Numbers, scan
from tests.dumps import dumps
from tests.dumps.worlds import MakeWorld

CASES = [
    ("BF16", "803f c07f", (1, 0, False)),  # 1, NaN
    ("BF16", "80ff 807f", (0, 2, False)),  # -inf, inf
    ("BF16", "0080 0000", (0, 0, True)),  # -0, 0
    ("F16", "007c 017c ff7b", (1, 1, False)),  # inf, NaN, largest
    ("F32", struct.pack("<2f", float("nan"), float("-inf")).hex(), (1, 1, False)),
    ("F64", struct.pack("<2d", float("nan"), 1e308).hex(), (1, 0, False)),
    ("F8_E4M3", "7f ff 7e", (2, 0, False)),  # no infinity: 7e is 448
    ("F8_E5M2", "7c 7d 7b", (1, 1, False)),
    ("F8_E8M0", "ff 00", (1, 0, False)),
    ("U8", "ff 00", None),
    ("U8", "00 00", (0, 0, True)),
    ("F8_E8M0", "00 00", None),
    ("BF16", "803f ff7f", (1, 0, False)),
]


@pytest.mark.parametrize(("dtype", "hexadecimal", "expected"), CASES)
def test_patterns(
    dtype: str, hexadecimal: str, expected: tuple[int, int, bool] | None, tmp_path: Path
) -> None:
    data = bytes.fromhex(hexadecimal)
    size = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}.get(dtype, 1)
    head, header = safetensors_header.build([("w", dtype, (len(data) // size,))])
    (tmp_path / "f").write_bytes(head + data)
    found = scan(tmp_path / "f", header, lambda _: None)
    assert found == ([Numbers("w", *expected)] if expected else [])


def test_nan_in_any_directory_is_refused_and_names_the_tensor(world: MakeWorld) -> None:
    one = world()
    dtype, shape, data = one.model.tensors["model.norm.weight"]
    one.model.tensors = {name: (dtype, of, b"\x80\x3f" * (len(raw) // 2)) for name, (_, of, raw) in
                         one.model.tensors.items()}  # fmt: skip
    one.model.tensors["model.norm.weight"] = (dtype, shape, b"\xc0\x7f" + b"\x80\x3f" * (len(data) // 2 - 1))
    dumps.write_reference(one.reference, one.model, weights=True)
    verify(one.reference)  # without looking at numbers it is sound
    with pytest.raises(StrangeNumbersError) as error:
        verify(one.reference, scan=True)
    assert (error.value.tensor, error.value.nan_count, error.value.exit_code) == ("model.norm.weight", 1, 4)


def test_zeros_are_a_warning_by_layer(world: MakeWorld) -> None:
    one = world()
    one.model.tensors = {
        name: (dtype, shape, (b"\0\0" if "o_proj" in name else b"\x80\x3f") * (len(raw) // 2))
        for name, (dtype, shape, raw) in one.model.tensors.items()
    }
    dumps.write_reference(one.reference, one.model, weights=True)
    assert verify(one.reference, scan=True).warnings == ("all zero: self_attn.o_proj.weight of layers 0-1",)
