"""Transformer Engine's own Python classes on a machine without GPU, CUDA libraries or compiled extension.

The wheel `transformer_engine` (pure Python) is imported as it is. Only the compiled module
`transformer_engine_torch` is replaced: its enums keep their names, its kernels exist but raise when called. So
modules, parameters and quantized tensor classes are real; a forward pass and a quantizer are not possible.
Must not know megatron-core, which has to be imported afterwards.
"""

import enum
import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any
from unittest import mock

import torch

EXTENSION = "transformer_engine_torch"


class DType(enum.IntEnum):
    """The members that TE's Python twin of this enum demands. Source: transformer_engine/pytorch/constants.py."""

    kByte = 0
    kInt32 = 2
    kFloat32 = 4
    kFloat16 = 5
    kBFloat16 = 6
    kFloat8E4M3 = 7
    kFloat8E5M2 = 8
    kFloat4E2M1 = 10


def _counted(name: str, members: str) -> object:
    """Make an enum class whose members are numbered from 0, as the extension's are."""
    return enum.IntEnum(name, [(member, number) for number, member in enumerate(members.split())])


class Absent:
    """Stands for a kernel, class or enum member of the extension: may be named and kept, never called."""

    def __init__(self, path: str) -> None:
        self._path = path

    def __getattr__(self, name: str) -> "Absent":
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self._path}.{name}")

    def __call__(self, *_args: object, **_kwargs: object) -> Any:
        raise RuntimeError(f"{self._path} is compiled code, which a CPU test world does not have")

    def __int__(self) -> int:
        return zlib.crc32(
            self._path.encode()
        )  # enum members go into tables of numbers: any distinct one will do

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Absent) and other._path == self._path

    def __hash__(self) -> int:
        return hash(self._path)

    def __repr__(self) -> str:
        return f"<absent {self._path}>"


class AbsentModule(ModuleType):
    """A module in which every name exists; what is not set stays `Absent`."""

    def __init__(self, name: str, **members: object) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__: list[str] = []
        self.__all__: list[str] = sorted(members)
        self.__dict__.update(members)

    def __getattr__(self, name: str) -> Absent:
        if name.startswith("__"):
            raise AttributeError(name)
        return Absent(f"{self.__name__}.{name}")


def install(te_path: str) -> None:
    """Make `transformer_engine.pytorch` importable from the folder `te_path`, and import it.

    Raises RuntimeError if megatron-core was imported already: it decides at import whether TE exists.
    """
    if EXTENSION in sys.modules:
        return
    if "megatron.core" in sys.modules:
        raise RuntimeError(
            "megatron.core is imported already and has decided that Transformer Engine is absent"
        )
    sys.path.insert(0, te_path)
    sys.modules[EXTENSION] = _extension()
    # the flag keeps transformer_engine.common from loading its core library, cuDNN and nvrtc
    with mock.patch.dict(os.environ, {"NVTE_PROJECT_BUILDING": "1"}), _triton_by_name():
        common: Any = importlib.import_module("transformer_engine.common")
        common.load_framework_extension = _nothing_to_load
        importlib.import_module("transformer_engine.pytorch")
    _lift_device_check()


def _extension() -> AbsentModule:
    """Return the stand-in for the compiled module: enums that Python code computes with, and two versions."""
    forward = "GEMM1_INPUT GEMM1_WEIGHT GEMM1_OUTPUT GEMM2_INPUT GEMM2_WEIGHT GEMM2_OUTPUT"
    backward = "GRAD_OUTPUT1 GRAD_INPUT1 GRAD_OUTPUT2 GRAD_INPUT2 GRAD_OUTPUT3 GRAD_INPUT3"
    backends = {"NVTE_No_Backend": -1, "NVTE_F16_arbitrary_seqlen": 1, "NVTE_FP8": 2}
    return AbsentModule(
        EXTENSION,
        DType=DType,
        FP8FwdTensors=_counted("FP8FwdTensors", f"{forward} GEMM3_INPUT GEMM3_WEIGHT GEMM3_OUTPUT"),
        FP8BwdTensors=_counted("FP8BwdTensors", backward),
        NVTE_Fused_Attn_Backend=enum.IntEnum("NVTE_Fused_Attn_Backend", backends),
        # base classes of Python classes
        CommOverlapHelper=type("CommOverlapHelper", (), {}),
        CommOverlap=type("CommOverlap", (), {}),
        CommOverlapP2P=type("CommOverlapP2P", (), {}),
        # asked at import
        get_cudnn_version=lambda: 92400,
        get_cublasLt_version=lambda: 130100,
        get_num_cublas_streams=lambda: 4,
        register_float8_quantizers=_nothing_to_load,
    )


def _nothing_to_load(*_args: object) -> None:
    return None


@contextmanager
def _triton_by_name() -> Iterator[None]:
    """Let TE define its triton kernels where triton is absent; torch never sees the stand-in.

    torch's compiler probes for triton when it is first imported, so that happens before.
    """
    if importlib.util.find_spec("triton") is not None:
        yield
        return
    for prober in ("torch._dynamo", "torch._inductor.utils"):
        importlib.import_module(prober)
    language = AbsentModule(
        "triton.language", constexpr=type("constexpr", (), {"__init__": _nothing_to_load})
    )
    members: dict[str, object] = dict.fromkeys(("jit", "autotune", "heuristics"), _decorator)
    triton = AbsentModule("triton", language=language, __version__="3.4.0", Config=_nothing_of, **members)
    stand_ins = {"triton": triton, "triton.language": language}
    stand_ins |= {name: AbsentModule(name) for name in ("triton.language.core", "triton.language.standard")}
    with mock.patch.dict(sys.modules, stand_ins):
        yield
        imported = {name: module for name, module in sys.modules.items() if name.split(".")[0] != "triton"}
    sys.modules.update(imported)  # mock restores the modules as they were before the block


def _nothing_of(*_args: object, **_kwargs: object) -> None:
    return None


def _decorator(*args: Any, **_kwargs: object) -> Any:
    """Serve as `@jit` and as `@autotune(...)`: the function stays as it is."""
    if len(args) == 1 and callable(args[0]):
        return args[0]
    return _unchanged


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    return function


def _lift_device_check() -> None:
    """Let TE's modules be built without a GPU, which their common constructor refuses.

    The answer is given during that constructor only: elsewhere torch.cuda.is_available stays honest.
    """
    from transformer_engine.pytorch.module.base import TransformerEngineBaseModule

    construct = TransformerEngineBaseModule.__init__

    def construct_anywhere(module: Any, *args: Any, **kwargs: Any) -> None:
        with mock.patch.object(torch.cuda, "is_available", return_value=True):
            construct(module, *args, **kwargs)

    TransformerEngineBaseModule.__init__ = construct_anywhere
