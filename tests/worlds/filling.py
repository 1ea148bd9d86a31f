"""Weights that say where they belong: every element is a function of its identity, global row and column.

For the fake world, where nothing can be loaded: each rank fills its part by rank arithmetic, and a test writes
the expected Hugging Face tensor by hand with `expected`. Nothing here asks sharded_state_dict.

An identity is a name of the unsharded model, the same for the local and the Transformer Engine spec:
`embedding.word_embeddings.weight`, `decoder.layers.5.self_attention.linear_qkv.weight`,
`decoder.layers.5.input_layernorm.weight`, `decoder.layers.5.mlp.experts.11.linear_fc1.weight` (global layer,
global expert; rows of a gated linear_fc1 are all gate rows, then all up rows), `output_layer.weight`; of Mamba
`decoder.layers.5.mixer.in_proj.weight` (rows of z, x, B, C, dt), `...mixer.conv1d.weight` as [channels, kernel]; of a
DeltaNet `decoder.layers.5.self_attention.in_proj.weight` (rows of query, key, value, z, beta, alpha); of
multi-token prediction `mtp.layers.1.eh_proj.weight` and `mtp.layers.1.transformer_layer.mlp.router.weight`, of hybrids
`mtp.layers.1.mtp_model_layer.layers.0.mlp.router.weight`.
"""

import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from megatron.core.models.gpt.gpt_model import GPTModel

from tests.worlds.families import Family
from tests.worlds.topology import Coordinates, Topology
from tests.worlds.vision_language import language_model_of
from tests.worlds.widths import Delta, Mamba

FLOAT32_TAIL = 2.0**-15  # in what is kept in float32: lost if anything rounds it to bfloat16

# The norm that a fused Transformer Engine module holds, by its name in the local spec.
FUSED_NORMS = (
    ("self_attention.linear_qkv.layer_norm_weight", "input_layernorm.weight"),
    ("mlp.linear_fc1.layer_norm_weight", "pre_mlp_layernorm.weight"),
    ("self_attention.linear_qkv.layer_norm_bias", "input_layernorm.bias"),
    ("mlp.linear_fc1.layer_norm_bias", "pre_mlp_layernorm.bias"),
    ("self_attention.linear_q_up_proj.layer_norm_weight", "self_attention.q_layernorm.weight"),
    ("self_attention.linear_kv_up_proj.layer_norm_weight", "self_attention.kv_layernorm.weight"),
    ("mixer.in_proj.layer_norm_weight", "norm.weight"),
    ("self_attention.in_proj.layer_norm_weight", "input_layernorm.weight"),
)
# norms over all heads have these names too
OWN_NORMS = {f"self_attention.{one}_norm.weight": f"self_attention.{one}_layernorm.weight" for one in "qk"}
CONVOLUTION = {
    f"mixer.conv1d_{part}": f"mixer.conv1d.{part}" for part in ("weight", "bias")
}  # as 0.19 calls them
ROW_CUT = re.compile(
    r"(linear_qkv|linear_q_proj|linear_q_up_proj|linear_kv_up_proj|word_embeddings|output_layer|eh_proj)\."
    r"|mixer\.(A_log|D|dt_bias|norm\.weight)$|self_attention\.(A_log|dt_bias)$|softmax_offset$"
)
FC1 = ("linear_fc1.weight", "linear_fc1.bias")
COLUMN_CUT = re.compile(r"(linear_proj|linear_fc2|out_proj)\.weight$")
IN_SECTIONS = re.compile(r"(mixer|self_attention)\.(in_proj|conv1d)\.")
FLOAT32 = re.compile(r"(expert_bias|mixer\.(A_log|D))$")
STEP_LAYER = re.compile(r"(mtp\.layers\.\d+)\.(?:transformer_layer|mtp_model_layer)(\.layers\.\d+)?\.(.*)")
FULL_NORM = re.compile(r"self_attention\.[qk]_layernorm\.")
LATENT_DOWN = re.compile(r"linear_(q|kv)_down_proj\.weight$")


@dataclass(frozen=True, slots=True)
class Held:
    """One local tensor, its identity, and the global rows and columns it holds (columns empty if 1-D)."""

    identity: str
    tensor: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor


def fill(chunks: list[GPTModel], family: Family, topology: Topology, rank: int) -> None:
    """Overwrite every parameter and the expert bias of this rank's chunks."""
    for held in holdings(chunks, family, topology, rank):
        held.tensor.data.copy_(_values(held.identity, held.rows, held.columns))


def fill_from(
    whole: Mapping[str, torch.Tensor], chunks: list[GPTModel], family: Family, topology: Topology, rank: int
) -> None:
    """Overwrite the same with this rank's cuts of whole tensors, by identity; rows of padding become 9.

    Raises KeyError for a parameter that `whole` lacks.
    """
    for held in holdings(chunks, family, topology, rank):
        source = whole[held.identity]
        rows = held.rows.clamp(max=len(source) - 1)
        values = source[rows] if not held.columns.numel() else source[rows][:, held.columns]
        values[held.rows >= len(source)] = 9
        held.tensor.data.copy_(values)


def expected(identity: str, rows: Iterable[int], columns: Iterable[int] | None = None) -> torch.Tensor:
    """Return the float32 values of these global rows (and columns, for a matrix), exact in bfloat16.

    Only an identity that `FLOAT32` matches has values that are not.
    """
    return _values(identity, torch.tensor(list(rows)), torch.tensor([] if columns is None else list(columns)))


def holdings(chunks: list[GPTModel], family: Family, topology: Topology, rank: int) -> Iterator[Held]:
    """Walk what this rank holds: all parameters, and the router's expert_bias buffer."""
    place = topology.coordinates(rank)
    for chunk in map(language_model_of, chunks):
        buffers = [item for item in chunk.named_buffers() if item[0].endswith("expert_bias")]
        for name, tensor in [*chunk.named_parameters(), *buffers]:
            identity = identify(name, chunk, family, topology, place)
            flat = tensor.detach().flatten(1) if tensor.ndim > 2 else tensor
            rows, columns = _extent(identity, flat.shape, family, topology, place)
            yield Held(identity, flat, rows, columns)


def identify(name: str, chunk: GPTModel, family: Family, topology: Topology, place: Coordinates) -> str:
    """Return the identity of the chunk's parameter `name`."""
    if name == "output_layer.weight" and family.tied:
        return "embedding.word_embeddings.weight"  # the last stage's copy
    of_step, of_decoder = STEP_LAYER.match(name), re.match(r"decoder\.layers\.(\d+)\.(.*)", name)
    if of_step is not None:  # all steps are on one stage
        inner = f"mtp_model_layer{of_step[2]}" if of_step[2] else "transformer_layer"  # 0.16 and 0.19 differ
        layer, rest = f"{of_step[1]}.{inner}", of_step[3]
    elif of_decoder is not None:
        layer = f"decoder.layers.{chunk.decoder.layers[int(of_decoder[1])].layer_number - 1}"
        rest = of_decoder[2]
    else:
        return name
    rest = (dict(FUSED_NORMS) | CONVOLUTION | OWN_NORMS).get(rest, rest)
    return f"{layer}.{_with_global_expert(rest, family, topology, place)}"


def _with_global_expert(name: str, family: Family, topology: Topology, place: Coordinates) -> str:
    """Replace the local expert number of a SequentialMLP or a TEGroupedMLP by the global one."""
    match = re.match(r"mlp\.experts\.local_experts\.(\d+)\.(linear_fc[12]\.(?:weight|bias))$", name)
    grouped = re.match(r"mlp\.experts\.(linear_fc[12]\.(?:weight|bias))(\d+)$", name)
    if family.experts is None or (match is None and grouped is None):
        return name
    local, linear = (match[1], match[2]) if match else (grouped[2], grouped[1]) if grouped else ("", "")
    global_expert = place.ep * (family.experts.num_experts // topology.ep) + int(local)
    return f"mlp.experts.{global_expert}.{linear}"


def _extent(
    identity: str, shape: torch.Size, family: Family, topology: Topology, place: Coordinates
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the global rows and columns of a local tensor of `shape`."""
    routed = ".mlp.experts." in identity
    size, cut = (topology.etp, place.etp) if routed else (topology.tp, place.tp)
    rows = torch.arange(shape[0])
    columns = torch.arange(shape[1] if len(shape) == 2 else 0)
    if IN_SECTIONS.search(identity):
        rows = _rows_in_sections(_sections(identity, family), size, cut)
    elif identity.endswith(FC1) and not family.is_gated:
        rows = rows + cut * shape[0]
    elif identity.endswith(FC1):  # local rows are [gate part ; up part]
        half = shape[0] // 2
        rows = torch.where(rows < half, rows + cut * half, rows - half + (size + cut) * half)
    elif FULL_NORM.search(identity) and family.full_norms == "cut":
        whole = family.heads if "q_layernorm" in identity else family.groups
        rows = rows + cut * min(whole, size) // size * shape[0]
    elif ROW_CUT.search(identity) or _is_cut_down_projection(identity, shape, family):
        rows = rows + cut * shape[0]
    elif COLUMN_CUT.search(identity):
        columns = columns + cut * shape[1]
    return rows, columns


def _sections(identity: str, family: Family) -> list[int]:
    """Rows of the parts of a projection or a convolution, in their order."""
    of_projection = ".in_proj." in identity
    if family.delta is not None:
        return _delta_sections(family.delta, of_projection=of_projection)
    assert family.mamba is not None
    return _mamba_sections(family.mamba, of_projection=of_projection)


def _delta_sections(delta: Delta, *, of_projection: bool) -> list[int]:
    """Rows of query, key, value, z, beta and alpha; the convolution has the first three."""
    keys, values = delta.key_heads * delta.key_channels, delta.value_heads * delta.value_channels
    every = [keys, keys, values, values, delta.value_heads, delta.value_heads]
    return every if of_projection else every[:3]


def _mamba_sections(mamba: Mamba, *, of_projection: bool) -> list[int]:
    """Rows of z, x, B, C and dt; the convolution has neither the first nor the last."""
    inner, state = mamba.heads * mamba.head_channels, mamba.groups * mamba.state
    every = [inner, inner, state, state, mamba.heads]
    return every if of_projection else every[1:4]


def _rows_in_sections(sections: list[int], size: int, cut: int) -> torch.Tensor:
    """Every section is cut for itself."""
    held, first = [], 0
    for rows in sections:
        held.append(first + cut * (rows // size) + torch.arange(rows // size))
        first += rows
    return torch.cat(held)


def _is_cut_down_projection(identity: str, shape: torch.Size, family: Family) -> bool:
    """The latent down projections are cut in the local spec and replicated in Transformer Engine's."""
    match = LATENT_DOWN.search(identity)
    if match is None or family.latent is None:
        return False
    latent = family.latent
    whole = latent.query_rank if match[1] == "q" else latent.key_value_rank + latent.rope_channels
    return shape[0] != whole


def _values(identity: str, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Compute (polynomial in row and column, modulo 251, minus 125) / 128; the identity's hash sets it."""
    digest = zlib.crc32(identity.encode())
    start, by_row, by_column = digest % 251, 1 + digest // 251 % 250, 1 + digest // 62750 % 250
    numbers = start + by_row * rows + rows * rows
    if columns.numel():
        row, column = rows[:, None], columns[None, :]
        numbers = numbers[:, None] + by_column * column + row * column
    tail = FLOAT32_TAIL if FLOAT32.search(identity) else 0.0
    return (numbers % 251 - 125).float() / 128 + tail
