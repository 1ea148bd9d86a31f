"""The classes and functions that `.metadata` and the archives of chunks name, and the inert values that stand for them.

Whatever is not here is refused. Source: torch.distributed.checkpoint (metadata.py, planner.py, filesystem.py),
torch.serialization, torch._utils; megatron.core.dist_checkpointing.strategies.torch.
"""

from __future__ import annotations

from typing import Any

from .pickles import Name, Names

# the dtype of torch, by its name there -> its safetensors name; others are refused when a tensor has them
DTYPES = {
    "bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64", "bool": "BOOL",
    "uint8": "U8", "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint16": "U16", "uint32": "U32", "uint64": "U64",
    "float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0",
}  # fmt: skip
# the typed storage of torch -> the safetensors name of its elements
STORAGES = {
    "BFloat16Storage": "BF16", "HalfStorage": "F16", "FloatStorage": "F32", "DoubleStorage": "F64",
    "ByteStorage": "U8", "CharStorage": "I8", "ShortStorage": "I16", "IntStorage": "I32", "LongStorage": "I64",
    "BoolStorage": "BOOL",
}  # fmt: skip
CHECKPOINT = "torch.distributed.checkpoint."
# they carry what we have no use for
IGNORED = (
    (CHECKPOINT + "metadata", "BytesStorageMetadata"),
    (CHECKPOINT + "planner", "SavePlan"),
    (CHECKPOINT + "planner", "WriteItem"),
    (CHECKPOINT + "planner", "TensorWriteData"),
    (CHECKPOINT + "planner", "BytesIOWriteData"),
    (CHECKPOINT + "filesystem", "_StoragePrefix"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreSavePlan"),
    ("megatron.core.dist_checkpointing.strategies.torch", "MCoreMetadata"),
)
MAX_DIMS = 8
MAX_SIZE = 1 << 48


class Ignored:
    """What stands for an object of which nothing is used. It holds nothing, whatever state it is given."""

    __slots__ = ()

    def build(self, state: Any) -> None:
        """Take a state and forget it."""


NOTHING = Ignored()


def nothing(_arguments: tuple[Any, ...]) -> Ignored:
    """Return what stands for an object of which nothing is used."""
    return NOTHING


def size(arguments: tuple[Any, ...]) -> tuple[int, ...]:
    """Return the tuple that a torch.Size holds. Raises ValueError if it is not one of a few plausible sizes."""
    (values,) = arguments
    if type(values) not in (tuple, list) or len(values) > MAX_DIMS:
        raise ValueError("a shape that is not one")
    for value in values:
        if type(value) is not int or not 0 <= value < MAX_SIZE:
            raise ValueError("a shape that cannot be")
    return tuple(values)


def text(arguments: tuple[Any, ...]) -> str:
    """Return the only argument, a text. Raises ValueError for anything else."""
    (value,) = arguments
    if type(value) is not str:
        raise ValueError("a name that is not a text")
    return value


COMMON: Names = {
    ("torch", "Size"): Name(size),
    **{("torch", name): f"dtype {dtype}" for name, dtype in DTYPES.items()},
    **{("torch", name): f"storage {dtype}" for name, dtype in STORAGES.items()},
}
OF_METADATA: Names = {
    **COMMON,
    **dict.fromkeys(IGNORED, Name(nothing)),
    (CHECKPOINT + "metadata", "_MEM_FORMAT_ENCODING"): Name(nothing),
    (CHECKPOINT + "planner", "WriteItemType"): Name(nothing),
    ("torch.serialization", "_get_layout"): Name(text),
    ("pathlib", "PosixPath"): Name(nothing),
    ("pathlib._local", "PosixPath"): Name(nothing),
}
