"""Headers are known twice: built when a file is written, spelt again to be compared. The two must not drift apart."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shardmerge.common import safetensors_header
from shardmerge.common.dtypes import BITS
from shardmerge.common.safetensors_header import layout_order
from shardmerge.phase2_merge.proof.headers import header_json

NAMES = st.one_of(
    st.sampled_from(
        ["model.norm.weight", "lm_head.weight", "model.layers.10.w", "model.layers.9.w", "B", "a"]
    ),
    st.text(st.characters(min_codepoint=33, max_codepoint=126, exclude_characters='"\\'), min_size=1),
)
BYTE_DTYPES = sorted(dtype for dtype, bits in BITS.items() if bits % 8 == 0)
TENSORS = st.dictionaries(
    NAMES.filter(lambda name: name != "__metadata__"),
    st.tuples(st.sampled_from(BYTE_DTYPES), st.lists(st.integers(0, 3000), max_size=5)),
)


@given(TENSORS)
def test_a_header_is_spelt_as_it_is_built(tensors: dict[str, tuple[str, list[int]]]) -> None:
    prefix, header = safetensors_header.build((name, *kind) for name, kind in tensors.items())
    start = header.data_offset
    wanted = [(e.name, e.dtype, e.shape, start + e.begin, start + e.end) for e in header.entries]
    spelt = header_json(wanted, start)
    assert prefix == len(spelt.ljust(len(prefix) - 8)).to_bytes(8, "little") + spelt.ljust(len(prefix) - 8)


def test_the_smallest_header_is_these_bytes() -> None:
    wanted = [("w", "BF16", (2, 4), 4096, 4112), ("a", "F32", (), 4112, 4116)]
    assert sorted(wanted, key=lambda one: layout_order(one[4] - one[3], one[0])) == wanted
    assert header_json(wanted, 4096) == (
        b'{"__metadata__":{"format":"pt"},'
        b'"a":{"data_offsets":[16,20],"dtype":"F32","shape":[]},'
        b'"w":{"data_offsets":[0,16],"dtype":"BF16","shape":[2,4]}}'
    )
